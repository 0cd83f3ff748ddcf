"""Whole models of the mixers: they learn, are saved, and generate; stacks of one kind and of several."""

import json

import pytest
import torch
from torch.nn import functional as F

from flashlla import models
from flashlla.experiments.demo.data import load_corpus, random_batch
from flashlla.models import training
from flashlla.models.mixers import ATTENTION_MIXERS, MIXERS

HYBRID = {
    "mixer": ["gated_deltanet", "mamba2", "lla"],
    "mixer_options": {"lla": {"window_size": 16, "ridge": 1.0}, "mamba2": {"kv_heads": None, "state_dim": 8}},
    "depth": 3,
    "kv_heads": 2,
}
STACKS = {name: {"mixer": name, "depth": 2} for name in MIXERS if name not in ATTENTION_MIXERS}
STACKS["hybrid"] = HYBRID
every_stack = pytest.mark.parametrize("stack", STACKS)


@pytest.fixture
def build():
    def make(stack, dtype=None, seed=0, **changes):
        torch.manual_seed(seed)
        sizes = {"vocab_size": 256, "dim": 32, "heads": 4, **STACKS[stack], **changes}
        return models.LanguageModel(models.LanguageModelConfig(**sizes), dtype=dtype)

    return make


@pytest.fixture(scope="module")
def corpus():
    return load_corpus()


def loss_of(model, inputs, targets):
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@every_stack
def test_fifty_steps_lower_the_loss_on_the_text_of_the_demo(stack, build, corpus, generator):
    model = build(stack)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=5e-3), []
    for _ in range(50):
        loss = loss_of(model, *random_batch(corpus.train, 8, 64, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 5.3  # an untrained model knows nothing: log 256 is 5.55
    assert sum(losses[-5:]) / 5 < 3.35  # the entropy of single bytes is 3.4


@every_stack
def test_a_saved_model_computes_the_same(stack, build, tmp_path):
    pytest.importorskip("safetensors")
    model, tokens = build(stack), torch.arange(40).view(2, 20)
    models.save_model(model, tmp_path)
    loaded = models.load_model(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(tokens), model(tokens))
    assert json.loads((tmp_path / "config.json").read_text()) == model.config.to_dict()


@every_stack
def test_a_resumed_run_is_the_same_run(stack, build, tmp_path):
    def train(folder, stop_after=4, seed=0):
        def batch(step, rank):
            tokens = torch.randint(256, (2, 21), generator=training.batch_generator(0, step, rank))
            return tokens[:, :-1], tokens[:, 1:]

        trainer = training.Trainer(
            build(stack, seed=seed),
            lambda model, batch: loss_of(model, *batch),
            batch,
            training.TrainerConfig(4, log_every=1),
            tmp_path / folder,
            progress=False,
        )
        assert trainer.fit(should_stop=lambda: trainer.step == stop_after) == (stop_after == 4)
        records = training.read_metrics(tmp_path / folder / "metrics.jsonl")
        return trainer.weights(), [record["loss"] for record in records]

    weights, losses = train("whole")
    train("parts", stop_after=2)
    resumed, losses_of_parts = train("parts", seed=1)  # the start does not matter
    assert losses_of_parts == losses
    assert [name for name in weights if not torch.equal(weights[name], resumed[name])] == []


@every_stack
@pytest.mark.parametrize("cache", ("static", "growing"))
def test_generated_tokens_are_those_of_the_full_pass(stack, cache, build, generator):
    model = build(stack, dtype=torch.float64)
    prompts = [torch.randint(256, (n,), generator=generator) for n in (1, 17, 20)]
    out = models.generate(model, prompts, 12, cache=cache)
    with torch.no_grad():
        for row, prompt in enumerate(prompts):
            alone = prompt[None]
            for _ in range(12):
                alone = torch.cat([alone, model(alone)[:, -1:].argmax(-1)], 1)
            assert torch.equal(out[row, 20 - len(prompt) :], alone[0])


@pytest.mark.parametrize("stack", ("gated_deltanet", "hyena", "hybrid"))
def test_compiled_steps_give_the_same_tokens(stack, build, monkeypatch):
    torch._dynamo.reset()
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compiler(model, backend="aot_eager"))
    model, prompt = build(stack, dtype=torch.float64), torch.arange(12).view(2, 6)
    expected = models.generate(model, prompt, 8)
    assert torch.equal(models.generate(model, prompt, 8, compile=True), expected)


@every_stack
def test_every_parameter_learns_and_the_output_scales(stack, build):
    model, tokens = build(stack), torch.arange(40).view(2, 20)
    loss_of(model, tokens[:, :-1], tokens[:, 1:]).backward()
    assert [name for name, p in model.named_parameters() if not p.grad.any()] == []
    x = torch.randn(2, 5, 32)
    for block in model.blocks:
        before = block.mixer(x)
        block.mixer.scale_output(0.5)
        torch.testing.assert_close(block.mixer(x), before / 2)


def test_pages_and_graphs_are_refused_with_a_remedy(build):
    model, prompt = build("hybrid"), torch.arange(6)[None]
    with pytest.raises(NotImplementedError, match="use kind='static' or cache='static'"):
        models.generate(model, prompt, 2, cache="paged")
    with pytest.raises(NotImplementedError, match="leave it out"):
        models.generate(model, prompt, 2, cuda_graph=True)


def test_sliding_windows_beside_states_of_fixed_size(build):
    options = {"mixer": ["gla", "lla"], "depth": 2, "mixer_options": {"lla": {"window_size": 4}}}
    model, prompt = build("hybrid", **options), torch.arange(30)[None]
    expected = models.generate(model, prompt, 10)
    assert torch.equal(models.generate(model, prompt, 10, cache="sliding"), expected)


# ---- the configuration of a hybrid stack -----------------------------------------------------------------


def config(**changes):
    return models.LanguageModelConfig(vocab_size=32, dim=24, depth=4, heads=4, **changes)


def test_a_pattern_is_repeated():
    pattern = config(mixer=["gla", "softmax"], mixer_options={"gla": {"heads": 2}})
    expected = ("gla", {"heads": 2, "kv_heads": None}), ("softmax", {"heads": 4, "kv_heads": None})
    assert pattern.mixers == expected * 2
    assert config(mixer="gla", mixer_options={"gate_rank": 8}).mixers == (
        (("gla", {"heads": 4, "kv_heads": None, "gate_rank": 8}),) * 4
    )
    kinds = [type(block.mixer) for block in models.LanguageModel(pattern).blocks]
    assert kinds == [models.mixers.GatedLinearAttention, models.mixers.AttentionMixer] * 2


def test_a_pattern_through_json():
    pattern = config(mixer=["gla", "softmax"], mixer_options={"gla": {"heads": 2}})
    data = json.loads(json.dumps(pattern.to_dict()))
    assert data["mixer"] == ["gla", "softmax"] and data == pattern.to_dict()
    assert models.LanguageModelConfig.from_dict(data) == pattern


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    (
        ({"mixer": 3}, TypeError, "mixer must be a name or a list of names, got int"),
        ({"mixer": []}, ValueError, "mixer is an empty list"),
        ({"mixer": ["gla", "magic"]}, ValueError, r"mixer\[1\]='magic' is unknown; choose one of lla"),
        ({"mixer": ["gla"] * 3}, ValueError, "depth=4 is no multiple of the 3 names in mixer"),
        (
            {"mixer": ["gla"], "mixer_options": {"gate_rank": 8}},
            ValueError,
            "mixer_options has 'gate_rank', which is not in mixer",
        ),
        (
            {"mixer": ["gla"], "mixer_options": {"gla": 8}},
            TypeError,
            r"mixer_options\['gla'\] must be a mapping",
        ),
    ),
)
def test_wrong_patterns(changes, error, message):
    with pytest.raises(error, match=message):
        config(**changes)
