"""Phys4D: the model and its adapters, the stages, the rewards, and claims on made-up tables."""

import itertools
import json

import pandas
import pytest
import torch

from flashlla.experiments.phys4d.claims import CLAIMS
from flashlla.experiments.phys4d.data import Library, rows
from flashlla.experiments.phys4d.evaluation import warp_error
from flashlla.experiments.phys4d.films import save_film
from flashlla.experiments.phys4d.model import (
    WorldModel,
    adapted,
    behind,
    colors,
    generate,
    merged,
    scaled,
)
from flashlla.experiments.phys4d.policy import PolicyRecipe, reinforce, rewards
from flashlla.experiments.phys4d.results import summary
from flashlla.experiments.phys4d.run import PRESETS, Config, trials
from flashlla.experiments.phys4d.stages import (
    Recipe,
    balanced,
    draw_batch,
    finetune,
    generation_loss,
    geometry_loss,
    train_heads,
    warp_loss,
)
from flashlla.experiments.phys4d.study import ARMS

KNOWN, FRAMES, SIZE = 2, 5, 16


@pytest.fixture(scope="module")
def library():
    return Library.make(24, 8, FRAMES, SIZE, seed=0)


@pytest.fixture(scope="module")
def model():
    return make_model()


def make_model(mixer="softmax"):
    """One whose layers that start at zero do not."""
    torch.manual_seed(0)
    model = WorldModel(mixer, 24, 1, 2)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.1)
    return model.requires_grad_(False).eval()


def make_noise(library):
    return torch.randn(library.test.rgb[:, KNOWN:].shape, generator=torch.Generator().manual_seed(1))


# ---- data -------------------------------------------------------------------------------------------


def test_libraries_follow_from_the_seed(library):
    again, other = (Library.make(24, 8, FRAMES, SIZE, seed=seed) for seed in (0, 1))
    assert torch.equal(again.true.rgb, library.true.rgb) and torch.equal(
        again.labels.flow, library.labels.flow
    )
    assert not torch.equal(other.true.rgb, library.true.rgb)


def test_labels_are_wrong_by_clip_and_by_pixel(library):
    wrong, right = library.labels, library.broken
    assert torch.equal(wrong.rgb, right.rgb) and torch.equal(wrong.owner, right.owner)
    error = wrong.depth - right.depth
    assert error.flatten(1).mean(1).std() > 0.2 and error.flatten(1).std(1).min() > 0.05


def test_pixels_have_about_unit_variance(library):
    assert 0.5 < scaled(library.true.rgb).var() < 2
    torch.testing.assert_close(colors(scaled(library.true.rgb)), library.true.rgb)


# ---- the model --------------------------------------------------------------------------------------


def test_heads_start_at_the_wall_and_without_motion(library):
    depth, flow, rise = WorldModel("softmax", 24, 1, 2).geometry(library.test.rgb)
    assert (depth == library.test.depth.max()).all() and not flow.any() and not rise.any()


def test_the_motion_head_sees_both_frames(library, model):
    rgb = library.test.rgb.clone()
    before = model.motion_head(torch.cat([torch.zeros(1, 24), torch.ones(1, 24)], -1))
    after = model.motion_head(torch.cat([torch.zeros(1, 24), -torch.ones(1, 24)], -1))
    assert not torch.equal(before, after) and model.geometry(rgb)[1].shape == (8, FRAMES - 1, SIZE, SIZE, 2)


@pytest.mark.parametrize("mixer", ("softmax", "lla", "gated_deltanet"))
def test_an_adapter_at_zero_changes_no_bit_and_merges_to_rounding(library, mixer):
    model = make_model(mixer)
    x, level = scaled(library.test.rgb), behind(torch.full((8,), 0.5), KNOWN, FRAMES)
    tuned = adapted(model, 2)
    with torch.no_grad():
        assert all(map(torch.equal, model(x, level), tuned(x, level)))
        for name, p in tuned.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
        changed, plain = tuned(x, level).clean, merged(tuned)
        assert not torch.allclose(changed, model(x, level).clean, atol=1e-3)
        torch.testing.assert_close(plain(x, level).clean, changed, atol=1e-5, rtol=1e-5)
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in model.named_parameters()]


def test_adapters_and_heads_alone_learn(model):
    tuned = adapted(model, 2)
    learning = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert learning == {n for n, _ in tuned.named_parameters() if "lora_" in n or "_head." in n}
    assert any(".mlp." in name for name in learning) and any(".mixer." in name for name in learning)
    assert adapted(merged(tuned), 2) is not None  # and once more


def test_known_frames_stay_and_equal_noise_gives_equal_clips(library, model):
    noise = make_noise(library)
    first, second = (generate(model, library.test.rgb, KNOWN, noise, 3) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(first[:, :KNOWN], library.test.rgb[:, :KNOWN])
    future = library.test.rgb.clone()
    future[:, KNOWN:] = 0  # is not looked at
    assert torch.equal(generate(model, future, KNOWN, noise, 3), first)


# ---- losses -----------------------------------------------------------------------------------------


def test_the_truth_costs_nothing(library, model):
    truth = library.true
    said = (scaled(truth.rgb), truth.depth, truth.flow, truth.rise)
    level = torch.rand(len(truth.rgb))
    assert generation_loss(said[0], truth, level, KNOWN) == 0
    assert warp_loss(*said[1:], truth) < 1e-5
    x = model(scaled(truth.rgb), behind(level, KNOWN, FRAMES))
    exact = x._replace(depth=truth.depth, flow=truth.flow, rise=truth.rise)
    assert geometry_loss(exact, truth) < 0.01 < geometry_loss(x, truth)


def test_generation_is_the_error_of_the_velocity(library):
    truth = library.true
    level = torch.full((len(truth.rgb),), 0.5)
    off = scaled(truth.rgb) + 0.3
    assert generation_loss(off, truth, level, KNOWN).item() == pytest.approx((0.3 / 0.5) ** 2, rel=1e-4)


def test_few_pixels_of_balls_count_as_much_as_all_others():
    inside = torch.zeros(1, 10, 10, dtype=torch.bool)
    inside[0, 0, :6] = True
    assert balanced(inside.float(), inside).item() == 0.5


def test_predicting_no_ball_does_not_please_the_warp_loss(library):
    """The mask is the simulator's: a flow that leads to the wall is wrong, whatever is predicted there."""
    truth = library.true
    away = truth.flow + 20.0
    assert warp_loss(truth.depth, away, truth.rise, truth) > 0.2
    assert warp_error(truth.depth, truth.flow, truth.rise)[truth.steady].max() < 1e-3


# ---- stages -----------------------------------------------------------------------------------------


def test_stage_1_leaves_the_backbone_and_stage_2_does_not(library, model, tmp_path):
    with_heads, _ = train_heads(model, library.labels, KNOWN, Recipe(2, 4, 1e-2, 0, tmp_path / "heads"))
    tuned, _ = finetune(
        with_heads, library.true, KNOWN, Recipe(2, 4, 1e-2, 0, tmp_path / "sft"), rank=2, warp=True
    )
    noise = make_noise(library)
    clips = [generate(m, library.test.rgb, KNOWN, noise, 2) for m in (model, with_heads, tuned)]
    assert torch.equal(clips[0], clips[1]) and not torch.equal(clips[1], clips[2])
    assert not torch.equal(model.geometry(clips[0])[0], with_heads.geometry(clips[0])[0])


def test_levels_lie_high(library):
    batch = draw_batch(library.true, 1000, torch.Generator().manual_seed(0))
    assert batch.level.square().mean().item() == pytest.approx(0.5, abs=0.05)


def test_the_reward_is_best_for_the_truth(library, model):
    truth = library.test

    class Exact:
        """In place of a learned head."""

        def geometry(self, rgb):
            return truth.depth, None, None

    best = rewards(Exact(), truth.rgb, truth, KNOWN)
    still = truth.rgb[:, :1].expand_as(truth.rgb)
    assert (best == 0).all() and (rewards(Exact(), still, truth, KNOWN) < 0).all()
    assert rewards(model, truth.rgb, truth, KNOWN).shape == (8,)


RECIPE = PolicyRecipe(
    draws=2,
    prompts=2,
    samples=3,
    steps=3,
    trained=2,
    batch=4,
    learning_rate=1e-2,
    divergence=0.1,
    tuning=0.2,
    rank=2,
    shuffled=False,
)


def test_stage_3_that_was_interrupted_ends_where_it_would_have(library, model, tmp_path):
    def learn(folder, measure):
        return reinforce(model, library.true, KNOWN, RECIPE, seed=0, folder=folder, measure=measure, parts=2)[
            0
        ].state_dict()

    whole = learn(tmp_path / "whole", lambda policy: {})
    calls = itertools.count()

    def stop(policy):
        if next(calls):
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "parts", stop)
    again = learn(tmp_path / "parts", lambda policy: {})
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert not all(torch.equal(whole[name], value) for name, value in model.state_dict().items())


def test_passes_count_a_backward_pass_as_two():
    clips = RECIPE.prompts * RECIPE.samples
    assert RECIPE.passes == RECIPE.draws * (clips * (3 + 2 + 3 * 2) + 2 * 3 * 4)


def test_a_film_has_a_picture_a_frame(library, model, tmp_path):
    from PIL import Image

    some = rows(library.test, slice(2))
    save_film(tmp_path / "film.gif", some, some.rgb, model.geometry(some.rgb), KNOWN)
    assert Image.open(tmp_path / "film.gif").n_frames == FRAMES
    assert (tmp_path / "film.gif").stat().st_size < 1e6


# ---- the configuration ------------------------------------------------------------------------------


def test_trials_are_mixers_and_seeds():
    found = list(trials(PRESETS["small"]))
    assert [(t.mixer, t.seed) for t in found] == [
        (mixer, seed) for seed in range(PRESETS["small"].seeds) for mixer in PRESETS["small"].mixer
    ]


@pytest.mark.parametrize(
    "changes, complaint",
    (
        ({"size": 18}, "size=18"),
        ({"dim": 50}, "dim=50"),
        ({"rl_trained": 9}, "rl_trained=9"),
        ({"rl_samples": 1}, "rl_samples=1"),
        ({"rl_trained": 1}, "rl_trained=1"),
        ({"rl_prompts": 5000}, "rl_prompts=5000"),
        ({"tuning_rate": 0.0}, "tuning_rate=0.0"),
    ),
)
def test_wrong_values_are_told_in_one_line(changes, complaint, refused):
    refused(Config, changes, complaint)


# ---- claims -----------------------------------------------------------------------------------------

BETTER = {
    "base": 0.0,
    "heads": 0.0,
    "sft_plain": 0.3,
    "sft": 0.4,
    "more_sft": 0.5,
    "rl": 0.7,
    "rl_shuffled": 0.3,
}
FALL = ("chamfer", "drift", "drift_slope", "abs_rel", "epe", "warp_l1", "true_abs_rel", "true_epe")


def made_up(changes=None):
    """A table on which every stage is better than the one before it; ``changes`` by arm and column."""
    made = []
    for mixer, seed in itertools.product(("softmax", "lla"), range(3)):
        common = {"mixer": mixer, "seed": seed}
        for arm, progress in BETTER.items():
            values = {name: 1 - progress + 0.01 * seed for name in FALL}
            values |= {"st_iou": progress, "score": 100 * progress, "mse": 0.5 - 0.01 * progress}
            values |= {"changed": float(arm not in ("base", "heads")), "free_flight": 0.1}
            if arm == "heads":
                values |= {"true_abs_rel": 0.3, "true_epe": 0.3}
            values |= (changes or {}).get(arm, {})
            made.append({"kind": "arm", "arm": arm, **common, **values})
            made += [{"kind": "drift", "arm": arm, "frame": f, "drift": 0.1 * f, **common} for f in (2, 3)]
        for arm, step in itertools.product(("rl", "rl_shuffled"), (0, 1)):
            made.append(
                {
                    "kind": "reward",
                    "arm": arm,
                    "step": step,
                    "reward": 0.0,
                    "chamfer": 1.0,
                    "mse": 0.1,
                    **common,
                }
            )
        made.append({"kind": "reference", "arm": "constant", "abs_rel": 1.0, "epe": 1.0, **common})
        made.append({"kind": "drift", "arm": "retake", "frame": 2, "drift": 0.1, **common})
    return pandas.DataFrame(json.loads(json.dumps(made)))


@pytest.mark.parametrize("name", [claim.name for claim in CLAIMS])
def test_every_claim_holds_on_a_table_that_is_as_the_paper_says(name, judged):
    assert judged(name, made_up()).outcome == "supported"


@pytest.mark.parametrize(
    "name, changes",
    (
        ("frozen", {"heads": {"changed": 1.0}}),
        ("depth_head", {"heads": {"true_abs_rel": 0.8}}),
        ("motion_head", {"heads": {"true_epe": 0.8}}),
        ("motion_counts", {"sft": {"true_epe": 1.2}}),
        ("tuning_mse", {"sft": {"mse": 0.9}}),
        ("tuning_overlap", {"sft": {"st_iou": -0.1}}),
        ("warp", {"sft": {"warp_l1": 0.9}}),
        ("warp_depth", {"sft": {"abs_rel": 0.9}}),
        ("reward", {"rl": {"chamfer": 0.9}}),
        ("drift", {"rl": {"drift": 0.9}}),
        ("compute", {"more_sft": {"chamfer": 0.1}}),
        ("shuffled", {"rl_shuffled": {"chamfer": 0.1}}),
        ("order", {"sft": {"chamfer": 2.0}}),
        ("quality", {"rl": {"mse": 0.9}}),
        ("horizon", {"rl": {"drift_slope": 2.0}}),
        ("every_mixer_tuning", {"sft": {"chamfer": 2.0}}),
        ("every_mixer_reward", {"rl": {"chamfer": 2.0}}),
    ),
)
def test_a_claim_fails_where_it_should(name, changes, judged):
    assert judged(name, made_up(changes)).outcome == "not supported"


def test_one_mixer_that_gets_worse_is_enough_to_fail_for_every_mixer(judged):
    table = made_up()
    table.loc[(table["arm"] == "rl") & (table["mixer"] == "lla"), "chamfer"] = 2.0
    assert judged("every_mixer_reward", table).outcome == "not supported"


def test_without_its_arms_nothing_is_answered(judged):
    table = made_up()
    table = table[table["arm"].isin(("base", "constant"))]
    assert {judged(claim.name, table).outcome for claim in CLAIMS} == {"inconclusive"}


def test_readers_get_a_line_for_every_arm():
    found = summary(made_up())
    assert len(found) == 2 * len(ARMS) + 1
