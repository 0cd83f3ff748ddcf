"""Phys4D's worlds, what a camera sees of them, and metrics: exact on the truth, and on shifted truth."""

import math

import pytest
import torch

from flashlla.experiments.phys4d.evaluation import (
    LOST,
    OVERLAPS,
    appearance,
    consistency,
    drifts,
    geometry_metrics,
    motion_masks,
    penetration,
    physics_iq_score,
    slope,
    spatial_iou,
    spatiotemporal_iou,
    video_metrics,
    weighted_spatial_iou,
)
from flashlla.experiments.phys4d.lifting import (
    NOTHING,
    TIME,
    Cloud,
    Tracks,
    chamfer_4d,
    coverage,
    depth_cloud,
    track,
)
from flashlla.experiments.phys4d.render import FOCAL, lift, pixel_places, project, render, warp
from flashlla.experiments.phys4d.worlds import (
    GRAVITY,
    HIGH,
    KINDS,
    LOW,
    RADIUS,
    ROLLING,
    broken,
    draw_scenes,
    inner_walls,
    second_take,
    simulate,
)

FRAMES, SIZE, KNOWN = 6, 16, 2


@pytest.fixture(scope="module")
def scene():
    return draw_scenes(200, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def motion(scene):
    return simulate(scene, FRAMES)


@pytest.fixture(scope="module")
def clip(motion):
    return render(motion, SIZE)


def means(metrics):
    return {name: values.nanmean().item() for name, values in metrics.items()}


# ---- worlds -----------------------------------------------------------------------------------------


def test_everything_follows_from_the_seed_bit_by_bit():
    def make():
        generator = torch.Generator().manual_seed(3)
        scene = draw_scenes(40, generator)
        worlds = (scene, broken(scene, FRAMES, generator), second_take(scene, generator))
        return [t for world in worlds for t in render(simulate(world, FRAMES), SIZE)[:7]]

    assert all(torch.equal(a, b) for a, b in zip(make(), make(), strict=True))


def test_a_free_ball_follows_the_parabola(scene, motion):
    times = torch.arange(FRAMES, dtype=torch.float32)[:, None]
    start, speed = scene.position[:, None], scene.velocity[:, None]
    parabola = start + speed * times[..., None]
    parabola[..., 1] -= GRAVITY * times**2 / 2
    free = motion.free.cummin(1).values & motion.present[:, None]
    assert free[:, -1].any()
    torch.testing.assert_close(motion.position[free], parabola[free], atol=1e-5, rtol=0)


def test_no_ball_leaves_the_box_or_enters_another(scene, motion):
    low, high = inner_walls()
    there = motion.position[motion.present[:, None].expand(motion.free.shape)]
    assert (there >= low - 1e-6).all() and (there <= high + 1e-6).all()
    both = motion.position[motion.present.all(1)]
    assert ((both[:, :, 0] - both[:, :, 1]).norm(dim=-1) > 2 * RADIUS - 0.02).all()


def test_a_bounce_leaves_the_share_of_the_speed_that_restitution_says(scene):
    one = scene.rows(slice(1))._replace(
        kind=torch.tensor([KINDS.index("bounce")]),
        position=torch.tensor([[[0.0, 0.0, 2.5], [0.0, 0.0, 2.5]]]),
        velocity=torch.tensor([[[0.21, 0.0, 0.0], [0.0, 0.0, 0.0]]]),
        present=torch.tensor([[True, False]]),
        gravity=torch.zeros(1),
        restitution=torch.tensor([0.8]),
    )
    x = simulate(one, 8).position[0, :, 0, 0]
    assert x.diff()[0].item() == pytest.approx(0.21, rel=1e-4)
    assert x.diff()[-1].item() == pytest.approx(-0.8 * 0.21, rel=1e-4)


def test_collisions_conserve_momentum_and_elastic_ones_energy(scene):
    hits = scene.rows(scene.is_a("collision"))
    position = hits.position.clone()
    position[..., 1] *= 0.1  # far from floor, ceiling and back
    position[..., 2] += 2.5 - position[..., 2].mean(1, keepdim=True)
    some = hits._replace(
        position=position,
        velocity=hits.velocity * torch.tensor([1.0, 0.0, 0.0]),
        gravity=torch.zeros(len(hits.kind)),
        restitution=torch.ones(len(hits.kind)),
    )
    motion = simulate(some, 4)
    velocity = motion.position.diff(dim=1)
    undisturbed = motion.free[:, 3].all(1) & motion.free[:, 1].all(1) & ~motion.free[:, 2].any(1)
    assert undisturbed.any()
    before, after = velocity[undisturbed, 0], velocity[undisturbed, 2]
    torch.testing.assert_close(before.sum(1), after.sum(1), atol=1e-5, rtol=0)
    energy = [v.square().sum((1, 2)) for v in (before, after)]
    torch.testing.assert_close(*energy, atol=1e-4, rtol=1e-4)


def test_a_pendulum_keeps_its_energy_and_a_slope_its_acceleration(scene, motion):
    swings = scene.rows(scene.is_a("pendulum"))
    bob = simulate(swings, 40).position[:, :, 0]
    torch.testing.assert_close(
        (bob - swings.anchor[:, None]).norm(dim=-1), swings.length[:, None].expand(-1, 40)
    )
    top = GRAVITY * (bob[..., 1].amax(1) - swings.anchor[:, 1])
    rate = swings.along[:, 1]
    start = (swings.length * rate).square() / 2 - GRAVITY * swings.length * swings.along[:, 0].cos()
    assert (top <= start + 1e-3 * GRAVITY).all() and (top > start - 0.05 * GRAVITY).all()
    slope_ = scene.is_a("incline")
    way = motion.position[slope_, :3, 0]
    length = (way - way[:, :1]).norm(dim=-1)
    second = length[:, 2] - 2 * length[:, 1]
    expected = ROLLING * GRAVITY * scene.slant[slope_].abs().sin()
    torch.testing.assert_close(second, expected, atol=1e-5, rtol=1e-3)


def test_broken_worlds_begin_alike_and_go_on_differently(scene, motion):
    other = simulate(broken(scene, FRAMES, torch.Generator().manual_seed(1)), FRAMES)
    assert torch.equal(other.position[:, 0], motion.position[:, 0])
    away = (other.position - motion.position).norm(dim=-1)[:, -1, 0]
    again = simulate(second_take(scene, torch.Generator().manual_seed(1)), FRAMES)
    near = (again.position - motion.position).norm(dim=-1)[:, -1, 0]
    assert away.mean() > 5 * near.mean() > 0


# ---- the camera -------------------------------------------------------------------------------------


def test_projection_and_lifting_are_inverses():
    place = torch.tensor([[0.3, -0.2, 2.5]])
    image, radius = project(place)
    torch.testing.assert_close(lift(image, place[:, 2]), place)
    assert radius.item() == pytest.approx(FOCAL * RADIUS / 2.5)


def test_pixels_are_the_mixture_that_they_are_taken_apart_into(clip):
    parts = coverage(clip.rgb)
    assert parts.min() > -1e-5 and parts.sum(2).max() < 1 + 1e-5
    balls = parts[:, :, :2]
    assert torch.equal(balls.amax(2) > 0.5 + 1e-5, clip.foreground & (balls.amax(2) > 0.5 + 1e-5))


def test_the_truth_of_depth_and_flow_is_consistent(clip):
    found = means(geometry_metrics(clip.depth, clip.flow, clip.rise, clip))
    assert found["abs_rel"] == found["epe"] == 0 and found["warp_l1"] < 1e-5
    assert clip.steady.any() and not (clip.steady & ~clip.foreground[:, :-1]).any()


def test_only_passing_behind_hides(scene, clip):
    hidden = clip.hidden.any(1).any(1)
    assert hidden[scene.is_a("occlusion")].float().mean() > 0.8
    assert not hidden[~scene.is_a("occlusion") & ~scene.is_a("collision")].any()


def test_warping_looks_up_between_pixels():
    image = pixel_places(8)[..., 0]
    flow = torch.zeros(8, 8, 2)
    flow[..., 0] = 0.5
    step = 2 / 8
    torch.testing.assert_close(warp(image[None], flow[None])[0, :, :-1], image[:, :-1] + step / 2)


# ---- lifting ----------------------------------------------------------------------------------------


def test_balls_are_found_where_they_are(clip):
    found, real = track(clip.rgb), Tracks.of(clip.motion)
    visible = real.seen & ~clip.hidden
    assert found.seen[visible].all() and not found.seen[~real.seen].any()
    away = (found.position - real.position)[visible].abs().mean(0)
    assert (away < torch.tensor([0.01, 0.01, 0.06])).all()


def test_pixels_at_their_true_depth_lie_on_the_balls(clip):
    cloud = depth_cloud(clip.rgb, clip.depth, 12)
    points = cloud.points.unflatten(1, (FRAMES, 12))[..., :3]
    distance = (points[:, :, :, None] - clip.motion.position[:, :, None]).norm(dim=-1)
    distance = distance.masked_fill(~clip.motion.present[:, None, None], math.inf).amin(-1)
    assert distance[cloud.there.unflatten(1, (FRAMES, 12))].max() < RADIUS + 0.05


def test_chamfer_distance_of_known_clouds():
    a = torch.tensor([[[0.0, 0.0, 2.0, 0.0], [1.0, 0.0, 2.0, 0.0]]])
    there = torch.ones(1, 2, dtype=torch.bool)
    whole, none = Cloud(a, there), Cloud(a, ~there)
    assert chamfer_4d(whole, whole).item() == 0
    shifted = Cloud(a + torch.tensor([0.0, 0.3, 0.0, 0.0]), there)
    assert chamfer_4d(whole, shifted).item() == pytest.approx(0.3)
    first = Cloud(a, torch.tensor([[True, False]]))
    assert chamfer_4d(whole, first).item() == pytest.approx(0.25)  # (0 + 1) / 2 one way, 0 the other
    assert chamfer_4d(whole, none).item() == NOTHING and chamfer_4d(none, none).item() == 0


# ---- metrics ----------------------------------------------------------------------------------------


def test_the_truth_is_without_error(clip):
    exact = means(consistency(Tracks.of(clip.motion), clip, KNOWN))
    assert max(exact[name] for name in ("chamfer", "drift", "lost")) == 0
    assert abs(exact["drift_slope"]) == 0 and exact["free_flight"] < 1e-6 and exact["penetration"] < 1e-3
    seen = means(video_metrics(clip.rgb, clip, KNOWN))
    assert seen["mse"] == 0 and all(seen[name] == 1 for name in OVERLAPS)
    assert seen["chamfer"] < 0.06 and seen["drift"] < 0.06 and seen["free_flight"] < 0.03


def test_a_shift_that_grows_is_measured_as_such(clip):
    """y is off by 0.1 t: the drift is that, its slope 0.1, and the acceleration is as before."""
    real = Tracks.of(clip.motion)
    off = 0.1 * torch.arange(FRAMES)[:, None]
    moved = real.position.clone()
    moved[..., 1] += off
    found = consistency(Tracks(moved, real.seen), clip, KNOWN)
    plain = ~clip.hidden.any(1).any(1)
    assert found["drift"][plain].mean().item() == pytest.approx(0.1 * (2 + 3 + 4 + 5) / 4, abs=1e-5)
    assert found["drift_slope"].nanmean().item() == pytest.approx(0.1, abs=1e-5)
    assert found["free_flight"].nanmean() < 1e-5


def test_a_wrong_acceleration_is_the_residual(clip):
    real = Tracks.of(clip.motion)
    moved = real.position.clone()
    moved[..., 1] += 0.05 * torch.arange(FRAMES)[:, None] ** 2 / 2
    found = consistency(Tracks(moved, real.seen), clip, KNOWN)["free_flight"]
    assert found.nanmean().item() == pytest.approx(0.05, abs=1e-5)


def test_a_ball_that_is_not_there_has_drifted_far(clip):
    real = Tracks.of(clip.motion)
    gone = drifts(Tracks(real.position, torch.zeros_like(real.seen)), real)
    assert gone.nanmean().item() == LOST


def test_the_slope_leaves_gaps_out():
    series = torch.tensor([[1.0, math.nan, 5.0, 7.0], [math.nan, math.nan, math.nan, 2.0]])
    found = slope(series)
    assert found[0].item() == pytest.approx(2.0) and found[1].isnan()


def test_penetration_adds_up_walls_and_balls():
    position = torch.tensor([[[[HIGH[0] - RADIUS + 0.1, 0.0, 2.5], [LOW[0] + 0.5, 0.0, 2.5]]]])
    both = Tracks(position, torch.ones(1, 1, 2, dtype=torch.bool))
    assert penetration(both).item() == pytest.approx(0.1, abs=1e-6)
    close = Tracks(torch.tensor([[[[0.0, 0.0, 2.5], [0.5, 0.0, 2.5]]]]), both.seen)
    assert penetration(close).item() == pytest.approx(2 * RADIUS - 0.5, abs=1e-6)
    assert penetration(Tracks(close.position, torch.tensor([[[True, False]]]))).item() == 0


def test_overlaps_of_known_masks():
    a, b = (torch.zeros(1, 2, 4, 4, dtype=torch.bool) for _ in range(2))
    for overlap in (spatiotemporal_iou, spatial_iou, weighted_spatial_iou):
        assert overlap(a, b).item() == 1  # both empty
    a[0, 0, 0, :2] = True
    b[0, 1, 0, :2] = True  # the same place at another time
    assert spatiotemporal_iou(a, b).item() == 0
    assert spatial_iou(a, b).item() == weighted_spatial_iou(a, b).item() == 1
    b[0, 0, 0, :2] = True
    assert spatiotemporal_iou(a, b).item() == 0.5 and weighted_spatial_iou(a, b).item() == 0.5


def test_a_clip_that_stands_still_moves_nothing(clip):
    still = clip.rgb[:, :1].expand_as(clip.rgb)
    assert not motion_masks(still).any()
    found = means(appearance(still, clip.rgb, KNOWN))
    assert found["mse"] > 0 and found["s_iou"] < 0.2


def test_the_score_is_in_percent_of_a_second_take():
    takes = {"mse": 0.01, "st_iou": 0.8, "s_iou": 0.9, "ws_iou": 0.6}
    assert physics_iq_score(takes, takes) == pytest.approx(100)
    half = {name: value / 2 for name, value in takes.items()} | {"mse": 0.11}
    assert physics_iq_score(half, takes) == pytest.approx(100 * (0.5 - 0.1))
    assert physics_iq_score({**takes, "mse": 5.0}, takes) == 0


def test_constant_depth_and_no_flow_have_the_errors_that_they_should(clip):
    found = geometry_metrics(clip.depth * 1.1, 0 * clip.flow, clip.rise * 0, clip)
    assert found["abs_rel"].mean().item() == pytest.approx(0.1, abs=1e-5)
    assert found["epe"].nanmean() > 0.5


def test_time_is_a_length(clip):
    real = Tracks.of(clip.motion)
    still = Cloud(torch.zeros(1, 1, 4), torch.ones(1, 1, dtype=torch.bool))
    later = Cloud(torch.tensor([[[0.0, 0.0, 0.0, TIME]]]), still.there)
    assert chamfer_4d(still, later).item() == pytest.approx(TIME)
    assert TIME * (real.position.shape[1] - 1) < 2  # the axis is not longer than the box
