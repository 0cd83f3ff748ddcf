"""Models of transformers that are converted: what they compute, learn and keep."""

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")

from tiny_transformers import DECODERS, VOCABULARY, make_member, make_model, pad  # noqa: E402
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM  # noqa: E402

from flashlla.integrations import convert  # noqa: E402
from flashlla.integrations.transformers import convert_attention, register  # noqa: E402

register()
TRANSFORMERS_4 = transformers.__version__.startswith("4.")
MODELS = (*DECODERS, "bart", *(() if TRANSFORMERS_4 else ("bert",)))
every_model = pytest.mark.parametrize("name", MODELS)
every_decoder = pytest.mark.parametrize("name", DECODERS)
every_member = pytest.mark.parametrize("member", ("lla", "parallax"))
reports = pytest.mark.filterwarnings("ignore")  # of transformers, about what it loads


@pytest.fixture
def batch(generator):
    """Tokens with padding, and which of them count."""
    tokens, attention_mask = pad(
        [torch.randint(3, VOCABULARY, (n,), generator=generator) for n in (9, 4, 7)], "right"
    )
    return {"input_ids": tokens, "attention_mask": attention_mask}


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits[batch["attention_mask"] == 1]


def attention_layers(model):
    return [m for m in model.modules() if hasattr(m, "lla") or hasattr(m, "parallax")]


def new_parameters(model):
    return {n: p for n, p in model.named_parameters() if ".lla." in n or ".parallax." in n}


# ---- what changes, and what does not -------------------------------------------------------------------


@every_member
@every_model
def test_outputs_and_weights_stay(name, member, batch):
    model = make_model(name, "sdpa")
    before, weights = logits(model, batch), {n: p for n, p in model.named_parameters()}
    assert convert(model, to=member) is model
    torch.testing.assert_close(logits(model, batch), before, rtol=0, atol=1e-5)
    after = dict(model.named_parameters())
    assert all(after[n] is p for n, p in weights.items())
    assert set(after) - set(weights) == set(new_parameters(model)) != set()
    assert not any(m.training for m in model.modules())


OTHERS = {
    "phi": {},
    "gemma": {},
    "gemma2": {"attn_logit_softcapping": None, "sliding_window": 4},
    "gemma3_text": {"sliding_window": 4},
    "cohere2": {"sliding_window": 4},
    "olmo2": {},
    "glm": {},
    "starcoder2": {"sliding_window": 4},
    "gpt_neox": {},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 32, "dropout": 0.0},
    "qwen2": {},
    "mixtral": {"num_local_experts": 2},
    "granite": {},
    "smollm3": {},
}


def make_other(model_type, attention):
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    more = {"initializer_range": 0.15, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if model_type.startswith(("gem", "glm")):
        more["head_dim"] = 8
    config = AutoConfig.for_model(model_type, **sizes, **heads, **more, **OTHERS[model_type])
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


@every_member
@pytest.mark.parametrize("model_type", OTHERS)
def test_outputs_of_other_architectures_stay(model_type, member, batch):
    """Windows in some of the layers, partial rotations, norms of all heads, experts, learned positions."""
    model = make_other(model_type, "eager")
    before = logits(model, batch)
    convert_attention(model, member)
    torch.testing.assert_close(logits(model, batch), before, rtol=0, atol=1e-5)


@reports
def test_a_model_made_of_models(tmp_path):
    text = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=8,
        patch_size=4,
    )
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=60)
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    tokens, image = torch.randint(3, 60, (1, 9)), torch.randn(1, 3, 8, 8)
    tokens[0, 2:6] = config.image_token_index

    def output():
        with torch.no_grad():
            return model(input_ids=tokens, pixel_values=image).logits

    before = output()
    convert_attention(model, "lla")
    torch.testing.assert_close(output(), before, rtol=0, atol=1e-5)
    assert len(attention_layers(model)) == 3
    for parameter in new_parameters(model).values():
        torch.nn.init.normal_(parameter)
    changed = output()
    assert (changed - before).abs().max() > 1e-3
    for folder in ("first", "second"):
        model.save_pretrained(tmp_path / folder)
        model = type(model).from_pretrained(tmp_path / folder)
        assert torch.equal(output(), changed)


@pytest.mark.parametrize("name", ("llama", "gpt2"))
def test_layers_with_learned_ridge_and_gate(name, batch):
    model = convert_attention(make_model(name, "sdpa"), "lla", ridge_init=0.3, gate_init=0.5)
    layers = attention_layers(model)
    assert len(layers) == 2
    for layer in layers:
        torch.testing.assert_close(layer.lla.ridge(), torch.full((4,), 0.3))
        torch.testing.assert_close(layer.lla.gate(), torch.full((4,), 0.5))
    expected = make_model(name, "lla", lla_ridge=0.3, lla_gate=0.5)
    torch.testing.assert_close(logits(model, batch), logits(expected, batch), rtol=0, atol=1e-5)


def test_fixed_ridge_and_gate_are_no_parameters(batch):
    model = convert_attention(make_model("llama", "sdpa"), "lla", ridge=0.3, gate=None)
    assert not new_parameters(model)
    expected = make_model("llama", "lla", lla_ridge=0.3)
    torch.testing.assert_close(logits(model, batch), logits(expected, batch), rtol=0, atol=1e-5)


@every_model
def test_a_probe_takes_the_path_of_the_queries(name, batch, monkeypatch):
    """With the projection of the queries, its norm and a scale of 1, the probe is the query."""
    from flashlla.integrations.transformers import attention

    model, pairs = convert_attention(make_model(name, "sdpa"), "parallax"), []
    for layer in attention_layers(model):
        torch.nn.init.ones_(layer.parallax.r_scale)
        if name == "gpt2":
            width = layer.parallax.r_proj.weight.shape[0]
            layer.parallax.r_proj.weight = torch.nn.Parameter(layer.c_attn.weight[:, :width].T.clone())
            torch.nn.init.zeros_(layer.c_attn.bias)
        if hasattr(layer, "q_norm"):
            torch.nn.init.normal_(layer.q_norm.weight)
            layer.parallax.r_norm.load_state_dict(layer.q_norm.state_dict())

    over_mask = attention._over_mask

    def remember(member, queries, *rest):
        pairs.append(queries)
        return over_mask(member, queries, *rest)

    monkeypatch.setattr(attention, "_over_mask", remember)
    logits(model, batch)
    assert len(pairs) == len(attention_layers(model))
    for query, probe in pairs:
        torch.testing.assert_close(probe, query)


@pytest.mark.parametrize(
    ("config", "rotated"),
    (
        ({"model_type": "phi", "partial_rotary_factor": 0.5}, 4),  # half of each head
        ({"model_type": "glm", "head_dim": 8, "partial_rotary_factor": 0.5}, 4),  # and in pairs
        ({"model_type": "cohere"}, 8),  # all of it, in pairs
        ({"model_type": "olmo2"}, 8),  # the norm takes all heads at once
    ),
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_probes_of_other_conventions(config, rotated, batch, monkeypatch):
    from flashlla.integrations.transformers import attention

    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0, "eos_token_id": 2}
    config = AutoConfig.for_model(**config, **sizes, **heads)
    if "partial_rotary_factor" in config.to_dict():
        config.partial_rotary_factor = 0.5
    model = convert_attention(AutoModelForCausalLM.from_config(config).eval(), "parallax")
    (layer,) = attention_layers(model)
    torch.nn.init.ones_(layer.parallax.r_scale)
    seen = []
    over_mask = attention._over_mask
    monkeypatch.setattr(attention, "_over_mask", lambda *args: (seen.append(args[1]), over_mask(*args))[1])
    logits(model, batch)
    ((query, probe),) = seen
    torch.testing.assert_close(probe, query)
    turned = (probe[:, 1:] - probe[:, :1]).abs()
    assert layer.parallax.head_dim == 8 and turned.shape[-1] == 8
    cos, _ = model.model.rotary_emb(torch.zeros(1, 3, 32), torch.arange(3)[None])
    assert cos.shape[-1] == rotated


def test_new_parameters_follow_the_weights():
    model = make_model("qwen3", "sdpa").to(torch.bfloat16).requires_grad_(False).train()
    for member in ("lla", "parallax"):
        converted = convert_attention(copy.deepcopy(model), member)
        new = new_parameters(converted)
        assert new and all(p.dtype == torch.bfloat16 and p.requires_grad for p in new.values())
        assert all(m.training for m in converted.modules())


# ---- files and copies ----------------------------------------------------------------------------------


@reports
@every_member
@every_model
def test_a_saved_model_loads_as_it_was(name, member, batch, tmp_path):
    model = make_member(name, member)
    expected = logits(model, batch)
    for folder in ("first", "second"):  # and what was loaded can be saved
        model.save_pretrained(tmp_path / folder)
        model = type(model).from_pretrained(tmp_path / folder)
        assert model.config._attn_implementation == member
        assert torch.equal(logits(model, batch), expected)
    saved = json.loads((tmp_path / "second" / "config.json").read_text())
    assert saved["lla_conversion"]["to"] == member


@reports
def test_it_loads_through_the_auto_classes_and_in_another_dtype(tmp_path):
    model = make_member("qwen3", "lla")
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(base.layers[1].self_attn.lla.ridge.raw, model.model.layers[1].self_attn.lla.ridge.raw)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.model.layers[0].self_attn.lla.gate.raw.dtype == torch.bfloat16


@reports
@every_member
def test_softmax_of_a_converted_model_is_one_call_away(member, batch, tmp_path):
    model = make_member("llama", member)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert loaded.config._attn_implementation == member  # the file decides
    loaded.set_attn_implementation("sdpa")
    expected = make_model("llama", "sdpa")
    torch.testing.assert_close(logits(loaded, batch), logits(expected, batch), rtol=0, atol=1e-5)


def test_a_configuration_alone_makes_a_converted_model():
    record = convert_attention(make_model("mistral", "sdpa"), "lla", ridge=2.0, gate_init=0.25).config
    model = AutoModelForCausalLM.from_config(copy.deepcopy(record))
    layers = attention_layers(model)
    assert model.config._attn_implementation == "lla" and len(layers) == 2
    assert all(layer.lla.ridge() == 2.0 for layer in layers)
    assert all(layer.lla.gate().eq(0.25).all() for layer in layers)


def test_without_registration_loading_is_loud(tmp_path):
    """In a process that knows nothing of flashlla: an error, or a list of the parameters that are dropped."""
    make_member("llama", "lla").save_pretrained(tmp_path)
    code = f"from transformers import AutoModelForCausalLM as A; A.from_pretrained({str(tmp_path)!r})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = ran.stdout + ran.stderr
    if TRANSFORMERS_4:
        assert "were not used" in said and "self_attn.lla.ridge.raw" in said
    else:
        assert ran.returncode and 'attn_implementation="lla"` is not supported' in said


@every_member
def test_copies_and_pickles(member, batch):
    model = make_member("llama", member)
    expected = logits(model, batch)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other, batch), expected)
        torch.nn.init.zeros_(next(p for n, p in new_parameters(other).items() if "gate" in n or "scale" in n))
        assert not torch.equal(logits(other, batch), expected)
    assert torch.equal(logits(model, batch), expected)


# ---- training ------------------------------------------------------------------------------------------


def step_losses(model, batch, steps):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    losses = []
    for _ in range(steps):
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@every_member
@every_model
def test_training_opens_the_gate_and_everything_behind_it(name, member, batch):
    model = convert_attention(make_model(name, "sdpa"), member).train()
    before = {n: p.detach().clone() for n, p in new_parameters(model).items()}
    losses = step_losses(model, batch, 3)
    assert losses[-1] < losses[0]
    for parameter_name, p in new_parameters(model).items():
        assert p.isfinite().all()
        assert (p - before[parameter_name]).abs().max() > 1e-3, parameter_name


@every_member
@every_decoder
def test_gradients_are_those_of_the_definition(name, member, batch, by_definition):
    model = make_member(name, member)
    weights = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(2))

    def gradients():
        model.zero_grad()
        (model(**batch).logits[batch["attention_mask"] == 1] @ weights).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    ours = gradients()
    by_definition()
    expected = gradients()
    assert set(new_parameters(model)) <= set(ours) == set(expected)
    for parameter_name, gradient in ours.items():
        scale = expected[parameter_name].abs().max()
        torch.testing.assert_close(gradient, expected[parameter_name], rtol=0, atol=float(1e-4 * scale))


@pytest.mark.filterwarnings("ignore")  # the call has a new name in transformers 5
@pytest.mark.parametrize("reentrant", (True, False))
@every_member
@every_decoder
def test_gradient_checkpointing_changes_no_gradient(name, member, reentrant, batch):
    model = make_member(name, member).train()
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.zero_grad()
        model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
        results.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for parameter_name, gradient in results[0].items():
        torch.testing.assert_close(results[1][parameter_name], gradient, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("member", "padded"), (("lla", False), ("parallax", True)))
def test_compiled_layers_are_one_graph(member, padded, batch):
    """Masks are made outside of it, and packed rows are known by then."""
    model, graphs = make_member("llama", member), []
    inputs = batch if padded else {"input_ids": batch["input_ids"]}

    def count(graph, _):
        graphs.append(sum(str(node.target).startswith("flashlla.forward") for node in graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, backend=count)(**inputs, use_cache=False).logits
        expected = model(**inputs, use_cache=False).logits
    counts = batch["attention_mask"] == 1 if padded else ...
    torch.testing.assert_close(compiled[counts], expected[counts], rtol=0, atol=1e-6)
    assert max(graphs) == len(attention_layers(model))


# ---- errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    (
        ({"to": "mamba"}, ValueError, "to='mamba' is unknown; choose one of lla, parallax"),
        ({"ridge": -1.0}, ValueError, "ridge=-1.0 must be greater than 0"),
        ({"ridge": "adaptive"}, ValueError, "ridge='adaptive' is unknown"),
        ({"gate_init": float("nan")}, ValueError, "gate_init=nan must be finite"),
        ({"ridge_init": "one"}, TypeError, "ridge_init must be a float"),
        ({"to": "parallax", "gate_init": 0.5}, ValueError, "gate_init=0.5 is for to='lla'"),
    ),
    ids=str,
)
def test_wrong_options_change_nothing(arguments, error, message):
    model = make_model("llama", "sdpa")
    before = copy.deepcopy(model.config.to_dict())
    with pytest.raises(error, match=message):
        convert_attention(model, **arguments)
    assert not attention_layers(model) and model.config.to_dict() == before
    assert model.config._attn_implementation == "sdpa"


def test_models_that_cannot_be_converted():
    with pytest.raises(TypeError, match="got Linear"):
        convert_attention(torch.nn.Linear(2, 2))
    converted = convert_attention(make_model("llama", "sdpa"))
    with pytest.raises(ValueError, match="converted to 'lla' already"):
        convert_attention(converted, "parallax")
    mamba = transformers.MambaConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1)
    with pytest.raises(NotImplementedError, match="MambaModel has no attention that goes through"):
        convert_attention(AutoModel.from_config(mamba))
    latent = make_model("deepseek", "sdpa")
    with pytest.raises(NotImplementedError, match="turns its queries by positions in a way of its own"):
        convert_attention(latent, "parallax")
    assert not attention_layers(latent)


@pytest.mark.skipif(not TRANSFORMERS_4, reason="BERT of transformers 5 goes through the interface")
def test_bert_of_transformers_4_cannot_be_converted():
    with pytest.raises(NotImplementedError, match="BertForMaskedLM has no attention that goes through"):
        convert_attention(make_model("bert", "sdpa"))
