"""Metrics of vectors that are known, their null and controls, and hidden states of every kind of model."""

import math

import pytest
import torch

from flashlla.models import (
    Encoder,
    EncoderConfig,
    LanguageModel,
    LanguageModelConfig,
    PolicyConfig,
    PolicyModel,
    probes,
)
from flashlla.models.diffusion import TrajectoryConfig, TrajectoryTransformer
from flashlla.models.mixers import MIXERS

DIM = 128
# What a pilot measured with other code, from independent draws.
KNOWN_NULLS = {
    128: {"top_5": 0.260, "top_10": 0.416, "erank": 0.488, "erank_l1": 0.755, "hoyer": 0.219, "l0": 0.163},
    1024: {"top_5": 0.278, "top_10": 0.438, "erank": 0.482, "erank_l1": 0.753, "hoyer": 0.209, "l0": 0.161},
}


def test_one_entry_alone_is_as_sparse_as_can_be():
    h = torch.zeros(3, DIM)
    h[:, 5] = -2.0
    found = {name: values.tolist() for name, values in probes.measure(h).items()}
    assert found["l1"] == [2.0] * 3
    for name in ("top_5", "top_10", "top_10_l1"):
        assert found[name] == [1.0] * 3
    assert found["hoyer"] == pytest.approx([1.0] * 3)
    for name in ("erank", "erank_l1", "participation", "l0"):
        assert found[name] == pytest.approx([1 / DIM] * 3)
    assert found["gini"] == pytest.approx([1 - 1 / DIM] * 3)


def test_equal_magnitudes_are_as_dense_as_can_be():
    h = torch.full((DIM,), 0.5)
    h[::2] *= -1
    found = {name: value.item() for name, value in probes.measure(h).items()}
    assert found["l1"] == pytest.approx(DIM / 2)
    assert found["top_5"] == pytest.approx(math.floor(0.05 * DIM) / DIM)
    assert found["top_10"] == found["top_10_l1"] == pytest.approx(math.floor(0.1 * DIM) / DIM)
    for name in ("erank", "erank_l1", "participation", "kurtosis"):
        assert found[name] == pytest.approx(1.0)
    for name in ("hoyer", "gini"):
        assert found[name] == pytest.approx(0.0, abs=1e-6)
    assert found["l0"] == 0.0


def test_the_signs_say_which_way_sparser_is():
    """Cubes of a Gaussian are sparser than a Gaussian, of the same length."""
    h = torch.randn(50, DIM, generator=torch.Generator().manual_seed(0))
    cubes = h.pow(3)
    cubes = cubes * (h.norm(dim=-1) / cubes.norm(dim=-1))[:, None]
    for name, metric in probes.METRICS.items():
        assert metric.sign * (metric.compute(cubes).mean() - metric.compute(h).mean()) > 0, name


def test_only_l1_depends_on_the_length():
    h = torch.randn(4, 10, DIM)
    for name, values in probes.measure(3 * h).items():
        factor = 3 if name == "l1" else 1
        torch.testing.assert_close(values, factor * probes.measure(h, [name])[name])
        assert values.shape == (4, 10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_precision_is_computed_in_float32(dtype):
    h = torch.randn(5, DIM).to(dtype)
    for name, values in probes.measure(h).items():
        assert values.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(values, probes.measure(h.double(), [name])[name].to(values.dtype))


def test_the_zero_vector_has_no_sparsity():
    found = probes.measure(torch.zeros(DIM))
    assert found.pop("l1") == 0
    assert all(value.isnan() for value in found.values())


@pytest.mark.parametrize("dim", KNOWN_NULLS)
def test_the_gaussian_null(dim):
    null = probes.gaussian_null(dim)
    assert null is probes.gaussian_null(dim), "computed once"
    for name, value in KNOWN_NULLS[dim].items():
        assert null[name].mean == pytest.approx(value, abs=0.002), name
    assert null["l1"].mean == pytest.approx(dim * math.sqrt(2 / math.pi), rel=1e-3)
    assert 0.005 < null["top_10"].std < 0.05
    h = torch.randn(2000, dim, generator=torch.Generator().manual_seed(1))
    for name, values in probes.measure(h).items():
        assert abs(values.mean() - null[name].mean) < 4 * null[name].std / math.sqrt(len(h)), name


def test_a_rotation_keeps_lengths_and_takes_sparsity_away():
    turn = probes.random_rotation(DIM, seed=3)
    torch.testing.assert_close(turn @ turn.T, torch.eye(DIM, dtype=torch.float64))
    assert not torch.equal(turn, probes.random_rotation(DIM, seed=4))
    sparse = torch.zeros(200, DIM)
    sparse.scatter_(1, torch.randint(DIM, (200, 3)), 1.0)
    null = probes.gaussian_null(DIM)
    for name, values in probes.rotated(sparse).items():
        if name != "l1":
            assert abs(values.mean() - null[name].mean) < null[name].std, name


def test_wrong_arguments():
    with pytest.raises(ValueError, match="metric 'l3' is unknown"):
        probes.measure(torch.ones(DIM), ["l3"])
    with pytest.raises(ValueError, match=r"share=0\.05 of 10 entries is none"):
        probes.measure(torch.ones(10))
    with pytest.raises(ValueError, match="share=2"):
        probes.top_l1(torch.ones(10), 2)


def test_the_table_shows_measured_null_and_rotated():
    h = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    comparison = probes.compare(h.reshape(3, 100, 64), ["top_10", "hoyer"])
    assert comparison.vectors == 300 and [row.metric for row in comparison.rows] == ["top_10", "hoyer"]
    row = comparison.rows[0]
    assert abs(row.mean - row.null) < 0.01 and abs(row.rotated - row.null) < 0.01
    assert row.std == pytest.approx(row.null_std, rel=0.2)
    text = str(comparison)
    assert text.count("\n") == 3 and "Gaussian" in text and f"{row.mean:.4g}" in text


# ---- hidden states ----------------------------------------------------------------------------------

SIZES = {"dim": 32, "depth": 3, "heads": 2}
TOKENS = torch.randint(50, (4, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mixer", MIXERS)
def test_states_of_a_language_model(mixer):
    model = LanguageModel(LanguageModelConfig(vocab_size=50, mixer=mixer, **SIZES)).eval()
    states = probes.hidden_states(model, TOKENS, layers=(0, 2, -1, "norm"), position=5)
    assert states.shape == (4, 4, 32)
    with torch.no_grad():
        x = model.embedding(TOKENS)
        assert torch.equal(states[0], x[:, 5])
        for i, block in enumerate(model.blocks, 1):
            x = block(x, None, None)
            if i == 2:
                assert torch.equal(states[1], x[:, 5])
        assert torch.equal(states[2], x[:, 5])
        assert torch.equal(states[3], model.hidden(TOKENS)[:, 5])


def test_one_position_a_row():
    model = LanguageModel(LanguageModelConfig(vocab_size=50, **SIZES)).eval()
    ends = [8, 3, 0, 5]
    states = probes.hidden_states(model, TOKENS, position=ends)
    each = [probes.hidden_states(model, TOKENS, position=end)[0, i] for i, end in enumerate(ends)]
    assert torch.equal(states[0], torch.stack(each))


def test_states_of_the_other_models():
    encoder = Encoder(EncoderConfig(vocab_size=50, **SIZES)).eval()
    found = probes.hidden_states(encoder, TOKENS, layers=(-1, "norm"), position=0)
    with torch.no_grad():
        assert torch.equal(found[1], encoder.hidden(TOKENS)[:, 0])
        assert torch.equal(found[1], encoder.norm(found[0]))
    policy = PolicyModel(PolicyConfig(vocab_size=50, **SIZES)).eval()
    with torch.no_grad():
        assert torch.equal(probes.hidden_states(policy, TOKENS)[0], policy.actor.hidden(TOKENS)[:, -1])
    paths = TrajectoryTransformer(TrajectoryConfig(channels=2, **SIZES)).eval()
    found = probes.hidden_states(paths, torch.randn(4, 6, 2), torch.rand(4), layers=(0, 1, "norm"))
    assert found.shape == (3, 4, 32)


def test_hooks_are_gone_afterwards():
    model = LanguageModel(LanguageModelConfig(vocab_size=50, **SIZES)).eval()
    for layers, complaint in (((4,), "layer 4 must be"), (("last",), "layer 'last' must be")):
        with pytest.raises(ValueError, match=complaint):
            probes.hidden_states(model, TOKENS, layers=layers)
    with pytest.raises(TypeError):
        probes.hidden_states(model, TOKENS.float())
    probes.hidden_states(model, TOKENS)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_models_without_one_stack():
    with pytest.raises(ValueError, match="Linear has 0 stacks"):
        probes.hidden_states(torch.nn.Linear(2, 2), torch.ones(1, 2))
    two = torch.nn.ModuleDict({name: torch.nn.ModuleList([torch.nn.Identity()]) for name in "ab"})
    with pytest.raises(ValueError, match=r"2 stacks of blocks \(a, b\)"):
        probes.hidden_states(two, torch.ones(1, 2))
    bare = torch.nn.Module()
    bare.blocks = torch.nn.ModuleList([torch.nn.Identity()])
    bare.forward = lambda x: bare.blocks[0](x)
    with pytest.raises(ValueError, match="Module has no final norm behind its 1 blocks"):
        probes.hidden_states(bare, torch.ones(1, 2, 4))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_states_of_a_transformers_model(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    if kind == "llama":
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
        config = transformers.LlamaConfig(vocab_size=50, num_attention_heads=2, pad_token_id=0, **sizes)
    else:
        config = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=2)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    model = probes.load_transformers(tmp_path / "model")
    assert not model.training
    mask = torch.ones_like(TOKENS)
    mask[1, :3] = 0
    inside = {"attention_mask": mask, "use_cache": False}
    with torch.no_grad():
        expected = model(TOKENS, output_hidden_states=True, **inside).hidden_states
    states = probes.hidden_states(model, TOKENS, layers=(0, 1, 2, "norm"), **inside)
    for state, whole in zip(states, expected, strict=True):
        torch.testing.assert_close(state, whole[:, -1])
    before, behind = probes.hidden_states(model, TOKENS, layers=(-1, "norm"), **inside)
    assert not torch.allclose(before, behind), "the last block, before the norm"


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        probes.load_transformers(tmp_path)
