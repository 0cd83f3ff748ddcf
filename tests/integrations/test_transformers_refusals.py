"""What is not supported is refused, by models as they are and by the functions that they call."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")

from tiny_transformers import VOCABULARY, make_config, make_model  # noqa: E402
from transformers import AutoModelForCausalLM, masking_utils  # noqa: E402

from flashlla import lla_attention, parallax_attention  # noqa: E402
from flashlla.integrations.transformers import attention, masks, register  # noqa: E402

register()
TRANSFORMERS_4 = transformers.__version__.startswith("4.")


@pytest.fixture
def draw(generator):
    return lambda *shape: torch.randn(*shape, generator=generator)


@pytest.fixture
def tokens(generator):
    return torch.randint(3, VOCABULARY, (2, 6), generator=generator)


def mask_of(mask_function, attention_mask=None, q_len=6, kv_len=6, **more):
    """What the mask function makes, called as this release of transformers calls it."""
    if TRANSFORMERS_4:
        more["cache_position"] = torch.arange(q_len) + more.pop("q_offset", 0)
    else:
        more["q_length"] = q_len
    return masks.make_mask(
        batch_size=2, kv_length=kv_len, mask_function=mask_function, attention_mask=attention_mask, **more
    )


# ---- whole models --------------------------------------------------------------------------------------


def test_parallax_without_a_probe_says_how_to_get_one(tokens):
    with pytest.raises(ValueError, match=r"flashlla.integrations.convert\(model, to='parallax'\)"):
        make_model("llama", "parallax")(tokens)


@pytest.mark.parametrize(
    ("name", "option"),
    (("llama", "attention_dropout"), ("gpt2", "attn_pdrop")),
)
def test_dropout_in_training(name, option, tokens):
    model = make_model(name, "lla", **{option: 0.1})
    model(tokens)
    with pytest.raises(NotImplementedError, match=r"dropout=0.1 .*attn_pdrop"):
        model.train()(tokens)


@pytest.mark.parametrize(
    ("config", "message"),
    (
        ({"model_type": "gemma2", "num_hidden_layers": 2}, "softcap"),
        ({"model_type": "gpt_oss", "num_hidden_layers": 2, "num_local_experts": 2}, "s_aux"),
    ),
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_models_with_soft_caps_or_sinks(config, message, tokens):
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 32, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(**config, **sizes, **heads)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="lla").eval()
    with pytest.raises(NotImplementedError, match=message):
        model(tokens)


def test_matrices_of_their_own(tokens):
    model = make_model("llama", "lla")
    causal = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    prefix = causal.clone()
    prefix[..., :3] = True
    bias = torch.randn(2, 1, 6, 6)
    torch.testing.assert_close(model(tokens, attention_mask=causal).logits, model(tokens).logits)
    for matrix, message in ((prefix, "neither causal nor the same"), (bias, "adds values to the logits")):
        with pytest.raises(NotImplementedError, match=message):
            model(tokens, attention_mask=matrix)


def test_padding_inside_a_row_under_a_window(tokens):
    """Without a window it is no matter: the tokens in it are not there."""
    attention_mask = torch.ones_like(tokens)
    attention_mask[1, 2] = 0
    with pytest.raises(NotImplementedError, match="padding between tokens that count"):
        make_model("mistral", "lla")(tokens, attention_mask=attention_mask)
    model, kept = make_model("gpt2", "lla"), [0, 1, 3, 4, 5]
    positions = torch.tensor(kept)[None]
    alone = model(tokens[1:, kept], position_ids=positions, use_cache=True).logits
    logits = model(tokens, attention_mask=attention_mask).logits
    torch.testing.assert_close(logits[1:, kept], alone, rtol=0, atol=1e-5)


def test_attention_weights(tokens):
    model = make_model("bart", "lla")
    with pytest.raises(NotImplementedError, match="output_attentions=True"):
        layer = model.model.encoder.layers[0].self_attn
        attention.lla_attention_forward(layer, *[torch.zeros(1, 4, 3, 8)] * 3, None, output_attentions=True)


# ---- the mask function ---------------------------------------------------------------------------------

CAUSAL = masking_utils.causal_mask_function
WINDOW = masking_utils.sliding_window_causal_mask_function


def test_masks_that_are_understood():
    assert mask_of(CAUSAL).causal and mask_of(CAUSAL).packing is None
    assert mask_of(WINDOW(4)).window_size == 4
    everything = torch.ones(2, 6, dtype=torch.bool)
    assert mask_of(CAUSAL, everything).padding is None
    assert mask_of(CAUSAL, everything & (torch.arange(6) > 1)).padding is not None


def prefix_mask_function(batch_idx, head_idx, q_idx, kv_idx):
    return kv_idx < 3


def causal_mask_function(batch_idx, head_idx, q_idx, kv_idx):
    """Not the one of transformers, though it has its name."""
    return kv_idx < q_idx


@pytest.mark.parametrize(
    ("mask_function", "message"),
    (
        (masking_utils.or_masks(CAUSAL, prefix_mask_function), "or_masks"),
        (masking_utils.and_masks(CAUSAL, prefix_mask_function), "prefix_mask_function"),
        (causal_mask_function, "causal_mask_function"),
        (masking_utils.sliding_window_overlay(4), "without a causal mask"),
        (
            masking_utils.chunked_causal_mask_function(4, torch.zeros(2, dtype=torch.int64)),
            r"chunked_overlay\(chunk_size=4\)",
        ),
    ),
    ids=("prefix", "a condition more", "somebody's own", "a window alone", "chunks"),
)
def test_masks_that_are_not(mask_function, message):
    with pytest.raises(NotImplementedError, match=message):
        mask_of(mask_function)


def test_chunks_and_windows_that_hide_nothing():
    assert mask_of(masking_utils.chunked_causal_mask_function(6, torch.zeros(2, dtype=torch.int64))).causal
    if TRANSFORMERS_4:
        return
    both_sides = masking_utils.sliding_window_bidirectional_mask_function
    assert not mask_of(both_sides(5)).causal
    with pytest.raises(NotImplementedError, match=r"bidirectional_overlay\(sliding_window=4\) over 6 rows"):
        mask_of(both_sides(4))


def test_a_mask_is_handed_on_only_for_what_it_was_made_for():
    made = mask_of(CAUSAL)
    assert mask_of(CAUSAL, made) is made
    with pytest.raises(NotImplementedError, match="window_size=4; pass the two-dimensional"):
        mask_of(WINDOW(4), made)


def test_wrong_padding_and_positions():
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 1, 6\)"):
        mask_of(CAUSAL, torch.ones(2, 1, 6))
    with pytest.raises(ValueError, match=r"expected \[2, positions\]"):
        mask_of(CAUSAL, torch.ones(1, 6))
    with pytest.raises(ValueError, match="6 queries from position 5 on do not fit 8 keys"):
        mask_of(CAUSAL, kv_len=8, q_offset=5)


# ---- the attention functions ---------------------------------------------------------------------------


def call(
    draw, mask, q_len=6, kv_len=6, heads=4, module=None, function=attention.lla_attention_forward, **more
):
    module = torch.nn.Module() if module is None else module
    module.config = SimpleNamespace(lla_ridge=0.5)
    q, k, v = draw(2, heads, q_len, 8), draw(2, 2, kv_len, 8), draw(2, 2, kv_len, 5)
    return function(module, q, k, v, mask, **more)[0], [t.transpose(1, 2) for t in (q, k, v)]


def test_a_layer_without_a_mask(draw):
    """Its own is_causal and window decide; modules without that attribute are causal, as for theirs."""
    module = torch.nn.Module()
    for is_causal in (None, True, False):
        if is_causal is not None:
            module.is_causal = is_causal
        out, operands = call(draw, None, module=module)
        torch.testing.assert_close(out, lla_attention(*operands, ridge=0.5, causal=is_causal is not False))
    out, operands = call(draw, None, module=module, is_causal=True, sliding_window=3, scaling=0.2)
    expected = lla_attention(*operands, ridge=0.5, window_size=3, scale=0.2)
    torch.testing.assert_close(out, expected)
    out, operands = call(draw, None, q_len=1)
    torch.testing.assert_close(out, lla_attention(*operands, ridge=0.5), atol=1e-6, rtol=0)


def test_a_probe_is_taken_as_it_is(draw):
    r = draw(2, 4, 6, 8)
    more = {"function": attention.parallax_attention_forward, attention.PROBE: r}
    out, (q, k, v) = call(draw, None, **more)
    torch.testing.assert_close(out, parallax_attention(q, r.transpose(1, 2), k, v))


def test_padded_rows_are_zero(draw):
    padding = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    out, _ = call(draw, mask_of(CAUSAL, padding))
    assert out[0, :2].eq(0).all() and out[1].eq(0).all() and out[0, 2:].ne(0).all()


@pytest.mark.parametrize("name", ("softcap", "s_aux", "sinks", "head_mask", "position_bias", "indices"))
def test_arguments_that_would_change_the_result(name, draw):
    call(draw, None, **{name: None})
    with pytest.raises(NotImplementedError, match=f"{name}: .* use attn_implementation='eager'"):
        call(draw, None, **{name: torch.ones(1)})


def test_calls_that_leave_something_open(draw):
    bidirectional = mask_of(masking_utils.bidirectional_mask_function) if not TRANSFORMERS_4 else None
    bounds = torch.tensor([0, 6])
    for error, message, arguments in (
        (NotImplementedError, "no attention_mask for 2 queries and 6 keys", {"mask": None, "q_len": 2}),
        (
            NotImplementedError,
            "sliding_window=3 without",
            {"mask": None, "is_causal": False, "sliding_window": 3},
        ),
        (ValueError, "made for 6 queries and 6 keys", {"mask": mask_of(CAUSAL), "kv_len": 9}),
        (ValueError, "got a batch of 2", {"mask": None, "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}),
        (ValueError, r"expected \[batch, positions\]", {"mask": torch.ones(2, 6)}),
        (TypeError, "dtype torch.int64", {"mask": torch.ones(2, 1, 6, 6, dtype=torch.int64)}),
    ):
        with pytest.raises(error, match=message):
            call(draw, **arguments)
    if bidirectional is not None:
        out, operands = call(draw, bidirectional)
        torch.testing.assert_close(out, lla_attention(*operands, ridge=0.5, causal=False))


def test_registering_again_changes_nothing():
    before = dict(masking_utils.AttentionMaskInterface._global_mapping)
    register()
    assert dict(masking_utils.AttentionMaskInterface._global_mapping) == before
    assert make_config("llama").model_type == "llama"


def test_without_transformers_importing_works_and_registering_says_what_to_install():
    code = """
import sys
sys.modules["transformers"] = None  # what import then raises is an ImportError
from flashlla.integrations.transformers import register
try:
    register()
except ImportError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'flashlla[hf]'" in ran.stdout, ran.stderr
