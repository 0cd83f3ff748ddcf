"""The drop-in: torch's module, its weights, its calls, and its outputs where the ridge is large."""

import copy

import pytest
import torch
from torch import nn

from flashlla.nn import MultiheadAttention

LARGE = 1e8
DIM, HEADS = 16, 4


def pair(**options):
    """torch's module and ours at a large ridge, from the same seed."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(DIM, HEADS, dtype=torch.float64, **options)
    torch.manual_seed(0)
    ours = MultiheadAttention(DIM, HEADS, dtype=torch.float64, ridge=LARGE, **options)
    for module in (theirs, ours):
        if module.in_proj_bias is not None:
            torch.manual_seed(1)
            nn.init.normal_(module.in_proj_bias)
            nn.init.normal_(module.out_proj.bias)
    return theirs, ours


def causal_mask(q_len, kv_len, dtype=torch.bool):
    hidden = torch.ones(q_len, kv_len, dtype=torch.bool).triu(1)
    return (
        hidden
        if dtype == torch.bool
        else torch.zeros(q_len, kv_len, dtype=dtype).masked_fill(hidden, -torch.inf)
    )


@pytest.fixture
def draw(generator):
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def assert_equal(ours, theirs):
    assert ours[1] is None
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-7)


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("batch_first", (True, False))
def test_self_attention(batch_first, bias, draw):
    theirs, ours = pair(batch_first=batch_first, bias=bias)
    x = draw(3, 7, DIM)
    assert_equal(ours(x, x, x), theirs(x, x, x))
    assert_equal(ours(x[0], x[0], x[0]), theirs(x[0], x[0], x[0]))


@pytest.mark.parametrize("batch_first", (True, False))
@pytest.mark.parametrize("widths", ({}, {"kdim": 10, "vdim": 12}))
def test_cross_attention(batch_first, widths, draw):
    theirs, ours = pair(batch_first=batch_first, **widths)
    query, key, value = (
        draw(3, 5, DIM),
        draw(3, 8, widths.get("kdim", DIM)),
        draw(3, 8, widths.get("vdim", DIM)),
    )
    if not batch_first:
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    assert_equal(ours(query, key, value, need_weights=False), theirs(query, key, value))


@pytest.mark.parametrize("dtype", (torch.bool, torch.float64))
@pytest.mark.parametrize("rows", ("right", "left", "scattered"))
def test_key_padding(rows, dtype, draw):
    theirs, ours = pair(batch_first=True)
    query, key = draw(3, 5, DIM), draw(3, 6, DIM)
    padding = {
        "right": [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1, 1]],
        "left": [[0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]],
        "scattered": [[0, 1, 0, 1, 0, 1], [1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]],
    }[rows]
    mask = torch.tensor(padding, dtype=torch.bool)
    mask = mask if dtype == torch.bool else torch.zeros(3, 6, dtype=dtype).masked_fill(mask, -torch.inf)
    assert_equal(ours(query, key, key, mask), theirs(query, key, key, mask))
    assert_equal(ours(query[1], key[1], key[1], mask[1]), theirs(query[1], key[1], key[1], mask[1]))


def test_a_row_of_padding_only_attends_to_nothing(draw):
    _, ours = pair(batch_first=True)
    x = draw(2, 4, DIM)
    out, _ = ours(x, x, x, torch.tensor([[True] * 4, [False] * 4]))
    torch.testing.assert_close(out[0], ours.out_proj.bias.expand(4, DIM))
    torch.testing.assert_close(out[1], ours(x[1], x[1], x[1])[0])
    out, _ = ours(x, x, x, torch.ones(2, 4, dtype=torch.bool))
    torch.testing.assert_close(out, ours.out_proj.bias.expand(2, 4, DIM))


@pytest.mark.parametrize("is_causal", (True, False))
@pytest.mark.parametrize("dtype", (torch.bool, torch.float64))
@pytest.mark.parametrize("kv_len", (6, 9))
def test_causal_masks_are_aligned_as_torch_aligns_them(kv_len, dtype, is_causal, draw):
    theirs, ours = pair(batch_first=True)
    query, key, mask = draw(2, 6, DIM), draw(2, kv_len, DIM), causal_mask(6, kv_len, dtype)
    expected = theirs(query, key, key, attn_mask=mask, is_causal=is_causal, need_weights=False)
    assert_equal(ours(query, key, key, attn_mask=mask, is_causal=is_causal), expected)
    assert_equal(ours(query, key, key, attn_mask=mask.expand(8, -1, -1), is_causal=is_causal), expected)
    assert_equal(ours(query, key, key, is_causal=True), expected)


def test_other_alignments(draw):
    theirs, ours = pair(batch_first=True)
    query, key = draw(2, 3, DIM), draw(2, 5, DIM)
    bottom_right = torch.ones(3, 5, dtype=torch.bool).triu(3)
    nothing_hidden = torch.zeros(3, 5, dtype=torch.bool)
    for mask in (bottom_right, nothing_hidden):
        assert_equal(ours(query, key, key, attn_mask=mask), theirs(query, key, key, attn_mask=mask))


def test_causal_with_padding_agrees_where_there_is_no_padding(draw):
    theirs, ours = pair(batch_first=True)
    x, mask = draw(2, 6, DIM), causal_mask(6, 6)
    padding = torch.tensor([[0, 0, 0, 0, 1, 1], [1, 0, 0, 1, 0, 0]], dtype=torch.bool)
    out, _ = ours(x, x, x, padding, attn_mask=mask)
    expected, _ = theirs(x, x, x, padding, attn_mask=mask)
    torch.testing.assert_close(out[~padding], expected[~padding], rtol=0, atol=1e-7)
    torch.testing.assert_close(out[padding], ours.out_proj.bias.expand(4, DIM))


@pytest.mark.parametrize("widths", ({}, {"kdim": 10, "vdim": 12}))
@pytest.mark.parametrize("bias", (True, False))
def test_state_dicts_are_interchangeable(widths, bias):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(DIM, HEADS, bias=bias, **widths)
    torch.manual_seed(0)
    ours = MultiheadAttention(DIM, HEADS, bias=bias, **widths)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), f"{name} starts elsewhere"
    nn.init.normal_(theirs.out_proj.weight)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(ours.out_proj.weight, theirs.out_proj.weight)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours._reset_parameters()
    copy.deepcopy(ours)


def test_learned_ridge_and_gate_have_gradients(draw):
    module = MultiheadAttention(
        DIM, HEADS, dtype=torch.float64, ridge="learned", ridge_init=0.3, gate="learned"
    )
    assert {"ridge.raw", "gate.raw"} <= set(module.state_dict())
    x = draw(3, 7, DIM)
    nn.init.normal_(module.in_proj_bias)
    (module(x, x, x)[0] ** 2).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())


def test_it_is_not_softmax_at_a_moderate_ridge(draw):
    theirs, _ = pair()
    module = MultiheadAttention(DIM, HEADS, dtype=torch.float64, ridge=0.1)
    module.load_state_dict(theirs.state_dict())
    x = draw(3, 7, DIM)
    assert (module(x, x, x)[0] - theirs(x, x, x)[0]).abs().max() > 1e-3


def test_an_encoder_layer_in_evaluation_calls_the_module(draw):
    """torch's fused encoder would take the weights and compute softmax attention instead."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 32, dropout=0.0, batch_first=True, dtype=torch.float64)
    expected = layer.eval()(x := draw(2, 6, DIM))
    state = layer.self_attn.state_dict()
    outputs = []
    for ridge in (LARGE, 0.1):
        layer.self_attn = MultiheadAttention(DIM, HEADS, batch_first=True, dtype=torch.float64, ridge=ridge)
        layer.self_attn.load_state_dict(state)
        with torch.no_grad():
            outputs.append(layer.eval()(x))
    torch.testing.assert_close(outputs[0], expected, rtol=0, atol=1e-7)
    assert (outputs[1] - expected).abs().max() > 1e-4
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    with torch.no_grad():
        out = encoder(x, mask=causal_mask(6, 6), src_key_padding_mask=padding)
        short = encoder(x[1:, :4], mask=causal_mask(4, 4))
    torch.testing.assert_close(out[1, :4], short[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    (
        ({"dropout": 0.1}, NotImplementedError, "dropout=0.1"),
        ({"add_bias_kv": True}, NotImplementedError, "add_bias_kv=True"),
        ({"add_zero_attn": True}, NotImplementedError, "add_zero_attn=True"),
        ({"num_heads": 3}, ValueError, "embed_dim=16 is no multiple of num_heads=3"),
        ({"ridge": -1.0}, ValueError, "ridge=-1.0"),
        ({"solver": "magic"}, ValueError, "solver='magic'"),
        ({"backend": "fast"}, ValueError, "backend='fast'"),
    ),
)
def test_wrong_constructor_arguments(options, error, message):
    with pytest.raises(error, match=message):
        MultiheadAttention(**{"embed_dim": DIM, "num_heads": HEADS, **options})


def test_wrong_calls(draw):
    _, ours = pair(batch_first=True)
    x, longer = draw(2, 5, DIM), draw(2, 7, DIM)
    some = torch.zeros(5, 5, dtype=torch.bool)
    some[2, 1] = True
    for error, message, args, options in (
        (TypeError, "key must be a torch.Tensor", (x, None, x), {}),
        (ValueError, r"value has shape \(2, 5, 15\)", (x, x, x[..., 1:]), {}),
        (ValueError, "key has shape", (x, x, longer), {}),
        (ValueError, "query has batch 1 and key 2", (x[:1], x, x), {}),
        (ValueError, "key_padding_mask has shape", (x, x, x, torch.zeros(2, 4, dtype=torch.bool)), {}),
        (TypeError, "key_padding_mask has dtype torch.int64", (x, x, x, torch.zeros(2, 5).long()), {}),
        (NotImplementedError, "key_padding_mask adds", (x, x, x, torch.ones(2, 5)), {}),
        (ValueError, "attn_mask has shape", (x, x, x), {"attn_mask": causal_mask(4, 4)}),
        (NotImplementedError, "neither None nor causal", (x, x, x), {"attn_mask": some}),
        (NotImplementedError, "L=7 and S=5", (longer, x, x), {"is_causal": True}),
        (
            NotImplementedError,
            "L=5 and S=7",
            (x, longer, longer, torch.zeros(2, 7) == 1),
            {"is_causal": True},
        ),
    ):
        with pytest.raises(error, match=message):
            ours(*args, **options)
