"""Attention inside models of transformers, against attention by its definition and against softmax of
theirs.
"""

import traceback
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import flashlla

transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")

from tiny_transformers import DECODERS, VOCABULARY, make_member, make_model, pad, with_attention  # noqa: E402

from flashlla.integrations.transformers import register  # noqa: E402

register()
every_decoder = pytest.mark.parametrize("name", DECODERS)
every_member = pytest.mark.parametrize("member", ("lla", "parallax"))
LENGTH = 12
TRANSFORMERS_4 = transformers.__version__.startswith("4.")


@pytest.fixture
def draw(generator):
    """Random tokens, none of them padding."""
    return lambda *shape: torch.randint(3, VOCABULARY, shape, generator=generator)


def masks(draw):
    """Inputs of a model, by what is special about them, and which rows count."""
    tokens, everything = draw(3, LENGTH), torch.ones(3, LENGTH, dtype=torch.bool)
    left, right = everything.clone(), everything.clone()
    left[0, :5], left[1, :1] = False, False
    right[0, 7:], right[2, 11:] = False, False
    packed = torch.cat([torch.arange(4), torch.arange(7), torch.arange(1)])
    return {
        "causal": ({"input_ids": tokens}, everything),
        "nothing padded": ({"input_ids": tokens, "attention_mask": everything.long()}, everything),
        "left": ({"input_ids": tokens, "attention_mask": left.long()}, left),
        "right": ({"input_ids": tokens, "attention_mask": right.long()}, right),
        "packed": (
            {"input_ids": tokens[:1], "position_ids": packed[None], "use_cache": False},
            everything[:1],
        ),
        "packed rows": (
            {
                "input_ids": tokens,
                "position_ids": torch.stack([packed, torch.arange(LENGTH), packed.roll(7)]),
                "use_cache": False,
            },
            everything,
        ),
    }


EVERY_MASK = ("causal", "nothing padded", "left", "right", "packed", "packed rows")


@every_member
@pytest.mark.parametrize("mask", EVERY_MASK)
@every_decoder
def test_logits_are_those_of_the_definition(name, mask, member, draw, by_definition):
    model = make_member(name, member)
    inputs, counts = masks(draw)[mask]
    with torch.no_grad():
        ours = model(**inputs).logits
        by_definition()
        expected = model(**inputs).logits
    torch.testing.assert_close(ours[counts], expected[counts], rtol=0, atol=1e-5)


@every_member
@every_decoder
def test_the_correction_of_these_tests_matters(name, member, draw):
    model, inputs = make_member(name, member), {"input_ids": draw(2, LENGTH)}
    with torch.no_grad():
        ours = model(**inputs).logits
        model.set_attn_implementation("sdpa")
        assert (ours - model(**inputs).logits).abs().max() > 0.01


@pytest.mark.parametrize("mask", EVERY_MASK)
@every_decoder
def test_without_correction_logits_are_those_of_softmax(name, mask, draw):
    """Behind a gate of 0, or far out on the ridge."""
    changes = {"lla_gate": 0.0} if name in ("llama", "gpt2") else {"lla_ridge": 1e8}
    model = make_model(name, "lla", **changes)
    inputs, counts = masks(draw)[mask]
    with torch.no_grad():
        ours = model(**inputs).logits
        for theirs in ("sdpa", "eager"):
            expected = with_attention(model, name, theirs)(**inputs).logits
            torch.testing.assert_close(ours[counts], expected[counts], rtol=0, atol=1e-5)


def test_ridge_and_gate_of_the_configuration(draw, by_definition):
    tokens, logits = draw(2, LENGTH), {}
    changed = ({}, {"lla_ridge": 0.1}, {"lla_gate": 0.5})
    with torch.no_grad():
        for changes in changed:
            logits[str(changes)] = make_model("llama", "lla", **changes)(tokens).logits
        by_definition()
        for changes in changed:
            expected = make_model("llama", "lla", **changes)(tokens).logits
            torch.testing.assert_close(logits[str(changes)], expected, rtol=0, atol=1e-5)
    assert (logits["{}"] - logits[str(changed[1])]).abs().max() > 0.01


@pytest.mark.parametrize("option", ("ridge", "solver", "rtol", "max_iters", "backend"))
def test_options_of_the_configuration_arrive(option, draw):
    wrong = {"ridge": -1.0, "solver": "magic", "rtol": 2.0, "max_iters": 0, "backend": "fast"}[option]
    with pytest.raises(ValueError, match=f"{option}="):
        make_model("llama", "lla", **{f"lla_{option}": wrong})(draw(1, 4))


@pytest.mark.parametrize("side", ("left", "right"))
@every_member
@every_decoder
def test_a_padded_batch_is_each_row_alone(name, member, side, draw):
    model, prompts = make_member(name, member), [draw(n) for n in (4, 11, 7)]
    tokens, attention_mask = pad(prompts, side)
    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(tokens, attention_mask=attention_mask, position_ids=positions).logits
        for row, prompt in enumerate(prompts):
            alone = model(prompt[None]).logits[0]
            torch.testing.assert_close(logits[row, attention_mask[row] == 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("use_cache", (True, False))
@pytest.mark.parametrize("told_by", ("position_ids", "cu_seq_lens"))
@every_member
@every_decoder
def test_packed_sequences_are_each_alone(name, member, told_by, use_cache, draw):
    if use_cache and name == "gpt2" and TRANSFORMERS_4:
        pytest.skip("GPT-2 of transformers 4 tells its attention nothing of packed sequences beside a cache")
    model, sequences = make_member(name, member), [draw(n) for n in (5, 1, 8)]
    bounds = torch.tensor([0, 5, 6, 14], dtype=torch.int32)
    packed = {
        "input_ids": torch.cat(sequences)[None],
        "position_ids": torch.cat([torch.arange(len(s)) for s in sequences])[None],
        "use_cache": use_cache,
    }
    if told_by == "cu_seq_lens":
        packed |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 8, "max_length_k": 8}
    with torch.no_grad():
        logits = model(**packed).logits[0]
        for sequence, part in zip(sequences, logits.split([5, 1, 8]), strict=True):
            torch.testing.assert_close(part, model(sequence[None]).logits[0], rtol=0, atol=1e-5)


# ---- caches --------------------------------------------------------------------------------------------


def make_cache(kind, model):
    if kind == "dynamic":
        return transformers.DynamicCache(config=model.config)
    return transformers.StaticCache(config=model.config, max_cache_len=20)


def advance(model, cache, tokens, start, attention_mask=None):
    """Logits of tokens behind those that the cache holds."""
    more = {}
    if TRANSFORMERS_4:
        more["cache_position"] = torch.arange(start, start + tokens.shape[1])
    if attention_mask is not None:
        seen = attention_mask[:, : start + tokens.shape[1]]
        more |= {"attention_mask": seen, "position_ids": (seen.cumsum(1) - 1).clamp(min=0)[:, start:]}
    return model(tokens, past_key_values=cache, **more).logits


@pytest.mark.filterwarnings("ignore")  # past_key_values has a new name in transformers 5
@pytest.mark.parametrize("steps", ((7, *(1,) * 7), (1, 3, 1, 2, 5, 3)), ids=str)
@pytest.mark.parametrize("padded", (False, True))
@pytest.mark.parametrize("kind", ("dynamic", "static"))
@every_member
@every_decoder
def test_steps_over_a_cache_are_one_pass(name, member, kind, padded, steps, draw):
    """Also past the window of the sliding model, and with queries fewer than keys but more than one."""
    model, tokens = make_member(name, member), draw(2, sum(steps))
    attention_mask = torch.ones_like(tokens)
    if padded:
        attention_mask[0, :2] = 0
    with torch.no_grad():
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        expected = model(tokens, attention_mask=attention_mask, position_ids=positions).logits
        cache, start, logits = make_cache(kind, model), 0, []
        for step in steps:
            now = tokens[:, start : start + step]
            logits.append(advance(model, cache, now, start, attention_mask if padded else None))
            start += step
    counts = attention_mask == 1
    torch.testing.assert_close(torch.cat(logits, 1)[counts], expected[counts], rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_free_rows_of_a_static_cache_are_never_read(draw):
    model, tokens = make_member("llama", "lla"), draw(2, 6)
    cache = make_cache("static", model)
    with torch.no_grad():
        expected = model(tokens).logits
        advance(model, cache, tokens[:, :4], 0)
        for layer in cache.layers:
            layer.keys[:, :, 4:], layer.values[:, :, 4:] = torch.nan, torch.nan
        logits = [advance(model, cache, tokens[:, t : t + 1], t) for t in (4, 5)]
    torch.testing.assert_close(torch.cat(logits, 1), expected[:, 4:], rtol=0, atol=1e-5)


class Reads(TorchDispatchMode):
    """Counts where the adapter lets the host read a tensor, for which it would wait for a GPU."""

    adapter = str(Path(flashlla.__file__).parent / "integrations")
    package = str(Path(flashlla.__file__).parent)

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            callers = (frame.filename for frame in reversed(traceback.extract_stack()))
            ours = next((name for name in callers if name.startswith(self.package)), "")
            self.count += ours.startswith(self.adapter)
        return function(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ("dynamic", "static"))
@every_member
@every_decoder
def test_without_padding_the_host_waits_for_nothing(name, member, kind, draw):
    """Training on a batch, and every decoding step; a prefill of a static cache reads its length."""
    model, tokens = make_member(name, member), draw(2, LENGTH)
    with Reads() as reads:
        model(tokens, use_cache=True).logits.sum().backward()
    assert reads.count == 0
    with torch.no_grad():
        cache = make_cache(kind, model)
        advance(model, cache, tokens[:, :8], 0)
        with Reads() as reads:
            for t in range(8, LENGTH):
                advance(model, cache, tokens[:, t : t + 1], t)
        assert reads.count == 0
        padding = torch.ones_like(tokens)
        with Reads() as reads:
            model(tokens, attention_mask=padding)
        assert reads.count == 1  # whether there is any
        padding[0, 0] = 0
        with Reads() as reads:
            model(tokens, attention_mask=padding)
        assert 1 < reads.count < 5  # once for all layers


# ---- other kinds of models -----------------------------------------------------------------------------


def test_values_may_be_narrower_than_keys(draw, by_definition):
    model = make_model("deepseek", "lla", lla_ridge=0.5)
    tokens, attention_mask = pad([draw(n) for n in (4, 9)], "left")
    with torch.no_grad():
        ours = model(tokens, attention_mask=attention_mask).logits
        by_definition()
        expected = model(tokens, attention_mask=attention_mask).logits
    counts = attention_mask == 1
    torch.testing.assert_close(ours[counts], expected[counts], rtol=0, atol=1e-5)


@every_member
def test_encoder_decoder_with_padding_on_both_sides(member, draw, by_definition):
    """Full attention in the encoder, causal in the decoder, and from one to the other."""
    model = make_member("bart", member)
    source, source_mask = pad([draw(n) for n in (3, 8, 8)], "right")
    target, target_mask = pad([draw(n) for n in (8, 2, 5)], "right")
    inputs = {
        "input_ids": source,
        "attention_mask": source_mask,
        "decoder_input_ids": target,
        "decoder_attention_mask": target_mask,
    }
    with torch.no_grad():
        ours = model(**inputs)
        alone = model(source[:1, :3], decoder_input_ids=target[:1]).logits
        by_definition()
        expected = model(**inputs)
    for name, counts in (("encoder_last_hidden_state", source_mask == 1), ("logits", target_mask == 1)):
        torch.testing.assert_close(ours[name][counts], expected[name][counts], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.logits[:1], alone, rtol=0, atol=1e-5)


@pytest.mark.skipif(TRANSFORMERS_4, reason="BERT of transformers 4 has attention of its own")
@every_member
def test_bert_with_padding(member, draw, by_definition):
    model = make_member("bert", member)
    tokens, attention_mask = pad([draw(n) for n in (3, 8)], "right")
    with torch.no_grad():
        ours = model(tokens, attention_mask=attention_mask).logits
        by_definition()
        expected = model(tokens, attention_mask=attention_mask).logits
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)  # padding as well: it sees the tokens
