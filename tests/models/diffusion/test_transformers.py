"""The diffusion transformers: what sees what, conditions, positions, and a flow that is learned."""

import pytest
import torch

from flashlla.models import diffusion
from flashlla.models.mixers import MIXERS

SIZES = {"channels": 3, "dim": 24, "depth": 2, "heads": 4}
KINDS = {
    "trajectory": (diffusion.TrajectoryConfig, diffusion.TrajectoryTransformer, (2, 6, 3)),
    "video": (diffusion.VideoConfig, diffusion.VideoTransformer, (2, 3, 4, 6, 3)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def build():
    """A model with weights that are not zero anywhere."""

    def make(kind, dtype=torch.float64, **changes):
        torch.manual_seed(0)
        config, model, _ = KINDS[kind]
        model = model(config(**{**SIZES, **changes}), dtype=dtype)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.1)
        return model

    return make


@pytest.fixture
def sample(generator):
    def make(kind, dtype=torch.float64):
        x = torch.randn(KINDS[kind][2], dtype=dtype, generator=generator)
        return x, torch.rand(2, dtype=dtype, generator=generator)

    return make


@every_kind
def test_a_new_model_passes_its_input_on_and_predicts_zero(kind, sample):
    config, model, _ = KINDS[kind]
    model, (x, level) = model(config(**SIZES)), sample(kind, torch.float32)
    assert torch.equal(model(x, level), torch.zeros_like(x))
    with torch.no_grad():
        torch.nn.init.normal_(model.level.layers[0].weight, std=10.0)
        assert torch.equal(model.hidden(x, level), model.hidden(x, 1 - level))


def test_frames_and_hidden_states_in_one_pass(build, sample):
    model, (x, level) = build("video"), sample("video")
    both = model.forward_with_hidden(x, level)
    for found, alone in zip(both, (model(x, level), model.hidden(x, level)), strict=True):
        assert torch.equal(found, alone)


@pytest.mark.parametrize("mixer", MIXERS)
@every_kind
def test_every_place_sees_every_other(kind, mixer, build, sample):
    model, (x, level) = build(kind, mixer=mixer), sample(kind)
    x.requires_grad_()
    out = model(x, level)
    assert out.shape == x.shape
    (gradient,) = torch.autograd.grad(out[0].flatten(0, -2)[0].sum(), x)
    assert (gradient[0].flatten(0, -2).abs().sum(-1) > 0).all()
    assert not gradient[1].any()  # another sample


@every_kind
def test_levels_of_each_place(kind, build, sample):
    model, (x, level) = build(kind), sample(kind)
    each = level[:, None].expand(x.shape[:2])
    torch.testing.assert_close(model(x, each), model(x, level))
    other = each.clone()
    other[0, 1] = 1 - other[0, 1]
    changed = (model(x, other) - model(x, each)).abs().flatten(2).amax(-1)
    assert (changed[0] > 0).all() and not changed[1].any()  # through the mixers, within the sample


@every_kind
def test_a_condition_acts_on_its_sample_only(kind, build, sample, generator):
    model, (x, level) = build(kind, condition_dim=5), sample(kind)
    condition = torch.randn(2, 5, dtype=torch.float64, generator=generator)
    other = condition.clone()
    other[0] += 1
    changed = (
        (model(x, level, condition=other) - model(x, level, condition=condition)).abs().flatten(1).amax(-1)
    )
    assert changed[0] > 0 and changed[1] == 0


@every_kind
def test_output_channels(kind, build, sample):
    x, level = sample(kind)
    assert build(kind, out_channels=7)(x, level).shape == (*x.shape[:-1], 7)


def test_context_stands_in_front_at_level_zero(build, sample, generator):
    model, (x, level) = build("trajectory", context_dim=5), sample("trajectory")
    context = torch.randn(2, 4, 5, dtype=torch.float64, generator=generator)
    out = model(x, level, context=context)
    assert out.shape == x.shape
    assert (model(x, level, context=context + 1) - out).abs().amax((1, 2)).gt(0).all()
    assert model.hidden(x, level, context=context).shape == (2, 6, 24)
    assert model(x, level, context=context[:, :0]).shape == x.shape


def test_the_order_of_a_trajectory_and_of_frames_matters(build, sample):
    for kind in KINDS:
        model, (x, level) = build(kind), sample(kind)
        assert (model(x.flip(1), level).flip(1) - model(x, level)).abs().max() > 1e-6


def test_one_block_over_space_sees_one_frame_and_one_over_time_one_place(build, sample):
    model, (x, _) = build("video", patch_size=1), sample("video")
    tokens, c = model.in_proj(x).flatten(2, 3).detach().requires_grad_(), torch.zeros(2, 1, 1, 24).double()
    for block, seen in zip(model.blocks, ((1, slice(None)), (slice(None), 2)), strict=True):
        (gradient,) = torch.autograd.grad(block(tokens, c)[0, 1, 2].sum(), tokens)
        expected = torch.zeros(3, 24, dtype=torch.bool)
        expected[seen] = True
        assert torch.equal(gradient[0].abs().sum(-1) > 0, expected)


def test_full_attention_is_one_sequence_of_all_patches(build, sample):
    model, (x, level) = build("video", attention="full", depth=1), sample("video")
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x, level)[0, 0, 0, 0].sum(), x)
    assert (gradient[0].abs().sum(-1) > 0).all()


def test_patches_go_back_to_where_they_came_from(build, sample):
    model, (x, _) = build("video", patch_size=2), sample("video")
    b, f, h, w, c = x.shape
    squares = x.view(b, f, h // 2, 2, w // 2, 2, c).transpose(3, 4).reshape(b, f, h * w // 4, 4 * c)
    assert torch.equal(model.unpatchify(squares, h, w), x)


@every_kind
def test_compiles_as_one_graph_and_runs_under_autocast(kind, build, sample):
    torch._dynamo.reset()
    model, (x, level) = build(kind, torch.float32), sample(kind, torch.float32)
    expected = model(x, level)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, level), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(x, level).float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("mixer", ("lla", "gated_deltanet"))
def test_a_flow_is_learned(mixer, generator):
    """Rectified flow towards constant paths.

    From one point at a level s alone the velocity, noise minus data, is known up to a variance of
    2 / (1 + (2 s - 1)^2), which is pi / 2 on average.
    """
    torch.manual_seed(0)
    config = diffusion.TrajectoryConfig(**{**SIZES, "channels": 1}, mixer=mixer)
    model = diffusion.TrajectoryTransformer(config)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(60):
        data = torch.randn(32, 1, 1, generator=generator).expand(-1, 8, -1)
        noise, level = torch.randn(32, 8, 1, generator=generator), torch.rand(32, generator=generator)
        x = data + level[:, None, None] * (noise - data)
        losses.append((model(x, level) - (noise - data)).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert sum(losses[-10:]) / 10 < 0.9 * torch.pi / 2


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "message"),
    (
        (
            "trajectory",
            {"x": torch.zeros(2, 6, 4)},
            ValueError,
            r"x has shape .*; expected \[batch, seq, 3\]",
        ),
        ("trajectory", {"x": torch.zeros(2, 6, 3).long()}, TypeError, "x has dtype torch.int64"),
        (
            "trajectory",
            {"level": torch.zeros(3)},
            ValueError,
            r"level has shape \(3,\); expected \(2,\), one a",
        ),
        ("trajectory", {"level": 0.5}, TypeError, "level must be a floating-point torch.Tensor"),
        ("trajectory", {"condition": torch.zeros(2, 5)}, ValueError, "condition_dim=None; these go together"),
        ("trajectory", {"context": torch.zeros(2, 1, 5)}, ValueError, "context_dim=None; these go together"),
        (
            "video",
            {"x": torch.zeros(2, 3, 5, 6, 3)},
            ValueError,
            "frames of 5 x 6 are not made of patches of 2",
        ),
        ("video", {"x": torch.zeros(2, 3, 4, 6)}, ValueError, "expected .batch, frames, height, width, 3"),
    ),
)
def test_wrong_inputs(kind, arguments, error, message, build, sample):
    x, level = sample(kind)
    with pytest.raises(error, match=message):
        build(kind)(**{"x": x, "level": level, **arguments})


def test_wrong_conditions_and_configurations(build, sample):
    (x, level), model = sample("trajectory"), build("trajectory", condition_dim=5, context_dim=4)
    with pytest.raises(ValueError, match="no condition is given and the model has condition_dim=5"):
        model(x, level)
    vector = torch.zeros(2, 5).double()
    with pytest.raises(ValueError, match=r"condition has shape \(2, 6\); expected \(2, 5\)"):
        model(x, level, condition=torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"context has shape \(2, 3, 5\); expected \[2, context_len, 4\]"):
        model(x, level, condition=vector, context=torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match="attention='axial' is unknown; choose one of factorised, full"):
        diffusion.VideoConfig(**SIZES, attention="axial")
    with pytest.raises(ValueError, match="dim=20 must be a multiple of 6"):
        diffusion.VideoConfig(**{**SIZES, "dim": 20})
