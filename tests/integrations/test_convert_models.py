"""Our own layers and models, converted: weights, sizes and norms stay, and the configuration says so."""

import pytest
import torch
from torch.nn import functional as F

from flashlla import models
from flashlla.integrations import convert
from flashlla.models.encoder import Encoder, EncoderConfig
from flashlla.models.policy import PolicyConfig, PolicyModel
from flashlla.nn import LocalLinearAttention, ParallaxAttention, SoftmaxAttention

CLASSES = {"lla": LocalLinearAttention, "parallax": ParallaxAttention}
OPTIONS = {
    "lla": {"ridge": "learned", "ridge_init": 1.0, "gate": "learned", "gate_init": 0.0},
    "parallax": {},
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}

both_targets = pytest.mark.parametrize("to", CLASSES)


@pytest.fixture
def draw(generator):
    def draw(*shape, dtype=torch.float64):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return draw


@pytest.fixture
def tokens(generator):
    return torch.randint(0, 32, (3, 12), generator=generator)


def language_model(mixer="softmax", *, dtype=None, **changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "dim": 32, "depth": 2, "heads": 4, "kv_heads": 2}
    return models.LanguageModel(
        models.LanguageModelConfig(**{**sizes, "mixer": mixer, **changes}), dtype=dtype
    )


def open_correction(model):
    """Away from the start, where every member of the family is softmax attention."""
    for name, p in model.named_parameters():
        if name.endswith(("gate.raw", "r_scale")):
            torch.nn.init.ones_(p)


# ---- layers --------------------------------------------------------------------------------------------


@both_targets
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "options",
    (
        {},
        {"kv_heads": 2, "head_dim": 6, "value_dim": 10, "bias": True, "window_size": 3},
        {"qk_norm": False, "rotary": False, "causal": False},
        {"rope_base": 100.0, "backend": "blockwise"},
    ),
    ids=("defaults", "grouped, windowed", "bare", "rope_base"),
)
@pytest.mark.parametrize("training", (True, False))
def test_outputs_of_a_layer_are_unchanged(training, options, dtype, to, draw):
    torch.manual_seed(0)
    layer = SoftmaxAttention(32, 4, dtype=dtype, **options).train(training)
    x, bounds = draw(2, 9, 32, dtype=dtype), torch.tensor([0, 7, 18])
    calls = (
        lambda: layer(x),
        lambda: layer(x[:, :4], context=x),
        lambda: layer(x.flatten(0, 1), cu_seqlens=bounds),
    )
    before = [call() for call in calls]
    parameters = dict(layer.named_parameters())
    assert convert(layer, to) is layer
    assert type(layer) is CLASSES[to] and not set(m.training for m in layer.modules()) - {training}
    for call, out in zip(calls, before, strict=True):
        torch.testing.assert_close(call(), out, rtol=0, atol=TOLERANCE[dtype])
    now = dict(layer.named_parameters())
    assert all(now[name] is p for name, p in parameters.items())
    built = CLASSES[to](32, 4, dtype=dtype, **options, **OPTIONS[to])
    assert list(layer.state_dict()) == list(built.state_dict())
    assert {n: v for n, v in vars(layer).items() if n[0] != "_" and n != "training"} == {
        n: v for n, v in vars(built).items() if n[0] != "_" and n != "training"
    }
    open_correction(layer)
    assert all((call() - out).abs().max() > 1e-3 for call, out in zip(calls, before, strict=True))


@both_targets
def test_low_precision_outputs_are_unchanged_to_rounding(to, draw):
    torch.manual_seed(0)
    layer, x = SoftmaxAttention(32, 4, dtype=torch.bfloat16), draw(2, 40, 32, dtype=torch.bfloat16)
    before = layer(x).double()
    after = convert(layer, to)(x).double()
    assert (after - before).norm() <= torch.finfo(torch.bfloat16).eps * before.norm()


@both_targets
def test_a_cache_that_a_layer_has_filled_goes_on(to, draw):
    torch.manual_seed(0)
    layer, x = SoftmaxAttention(32, 4, dtype=torch.float64).requires_grad_(False), draw(2, 9, 32)
    expected, cache = layer(x), layer.make_cache(2, 9)
    layer(x[:, :6], cache=cache)
    convert(layer, to).requires_grad_(False)
    torch.testing.assert_close(layer(x[:, 6:], cache=cache), expected[:, 6:], rtol=0, atol=1e-12)


# ---- language models -----------------------------------------------------------------------------------


@both_targets
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_language_model_computes_what_it_did(dtype, to, tokens):
    options = {"window_size": 5, "qk_norm": False}
    model = language_model(dtype=dtype, mixer_options=options)
    before = model(tokens)
    assert convert(model, to) is model
    torch.testing.assert_close(model(tokens), before, rtol=0, atol=3 * TOLERANCE[dtype])
    assert model.config.mixer == to
    assert model.config.mixer_options == {**options, **OPTIONS[to]}


@both_targets
def test_a_converted_model_is_saved_and_loaded(to, tokens, tmp_path):
    pytest.importorskip("safetensors", reason="saving models needs it")
    model = convert(language_model(mixer_options={"window_size": 5}), to)
    open_correction(model)
    models.save_model(model, tmp_path)
    loaded = models.load_model(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(tokens), model(tokens))


@both_targets
@pytest.mark.parametrize("cache", ("static", "growing", "sliding", "paged"))
def test_greedy_generation_is_unchanged(cache, to, tokens):
    model = language_model(dtype=torch.float64, mixer_options={"window_size": 6}).eval()
    options = {"max_new_tokens": 12, "temperature": 0.0, "cache": cache}
    before = models.generate(model, tokens, **options)
    assert torch.equal(models.generate(convert(model, to), tokens, **options), before)
    open_correction(model)
    longer = models.generate(model, tokens, **options)
    assert torch.equal(
        model(longer[:, :-1]).argmax(-1)[:, tokens.shape[1] - 1 :], longer[:, tokens.shape[1] :]
    )


@both_targets
def test_softmax_blocks_of_a_hybrid_stack(to, tokens):
    options = {"softmax": {"window_size": 4}, "deltanet": {"chunk_size": 8}}
    model = language_model(("softmax", "deltanet"), depth=4, mixer_options=options, dtype=torch.float64)
    before, others = model(tokens), [model.blocks[i].mixer for i in (1, 3)]
    convert(model, to)
    torch.testing.assert_close(model(tokens), before, rtol=0, atol=1e-11)
    assert model.config.mixer == (to, "deltanet")
    assert model.config.mixer_options == {
        to: {"window_size": 4, **OPTIONS[to]},
        "deltanet": options["deltanet"],
    }
    assert [model.blocks[i].mixer for i in (1, 3)] == others
    rebuilt = models.LanguageModel(model.config, dtype=torch.float64)
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(tokens), model(tokens))


def test_blocks_of_the_target_that_are_there_already():
    mixer = ("softmax", "lla")
    model = language_model(mixer, mixer_options={"lla": {"ridge": 2.0}})
    with pytest.raises(NotImplementedError, match="LanguageModel has 'lla' blocks already"):
        convert(model)
    assert type(model.blocks[0].mixer.attention) is SoftmaxAttention and model.config.mixer == mixer
    model = language_model(
        mixer, mixer_options={"softmax": {"window_size": 3}, "lla": {"window_size": 3, **OPTIONS["lla"]}}
    )
    convert(model)
    assert model.config.mixer == ("lla", "lla")
    assert model.config.mixer_options == {"lla": {"window_size": 3, **OPTIONS["lla"]}}
    model = convert(language_model(mixer), "parallax")
    assert model.config.mixer == ("parallax", "lla") and model.config.mixer_options == {"parallax": {}}


@both_targets
def test_models_within_models(to, tokens):
    """A policy and its actor have one configuration; an encoder's layers have no causal mask."""
    config = PolicyConfig(vocab_size=32, dim=32, depth=2, heads=4, mixer="softmax", actions=3)
    policy = convert(PolicyModel(config, dtype=torch.float64), to)
    assert policy.config == policy.actor.config and policy.config.mixer == to
    assert type(policy.config) is PolicyConfig and policy.config.actions == 3
    encoder = Encoder(
        EncoderConfig(vocab_size=32, dim=32, depth=2, heads=4, mixer="softmax"), dtype=torch.float64
    )
    before = encoder(tokens, lengths=[12, 5, 1])
    after = convert(encoder, to)(tokens, lengths=[12, 5, 1])
    assert encoder.config.mixer == to
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(after[1, :5], before[1, :5], rtol=0, atol=1e-12)


def test_options_reach_layers_and_configuration(tokens):
    model = convert(language_model(), ridge=2.0, gate=0.5)
    assert model.config.mixer_options == {"ridge": 2.0, "ridge_init": 1.0, "gate": 0.5, "gate_init": 0.0}
    built = models.LanguageModel(model.config)
    built.load_state_dict(model.state_dict())
    assert torch.equal(built(tokens), model(tokens))


@both_targets
def test_fine_tuning_opens_every_head(to, tokens):
    model = convert(language_model(), to)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    opened = [p for name, p in model.named_parameters() if name.endswith(("gate.raw", "r_scale"))]
    assert len(opened) == 2 and all(bool((p.abs() > 1e-3).all()) for p in opened)
    assert losses[-1] < 0.8 * losses[0]
