"""Parallax behind torch's interface: torch's outputs at the start, the reference's behind it."""

import copy

import pytest
import torch
from torch import nn

from flashlla import parallax_attention
from flashlla.nn import ParallaxMultiheadAttention

DIM, HEADS = 16, 4


def pair(**options):
    """torch's module and ours, from the same seed."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(DIM, HEADS, dtype=torch.float64, **options)
    torch.manual_seed(0)
    ours = ParallaxMultiheadAttention(DIM, HEADS, dtype=torch.float64, **options)
    return theirs, ours


@pytest.fixture
def draw(generator):
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("batch_first", (True, False))
@pytest.mark.parametrize("widths", ({}, {"kdim": 10, "vdim": 12}))
def test_it_starts_as_torch_s_module(widths, batch_first, bias, draw):
    theirs, ours = pair(batch_first=batch_first, bias=bias, **widths)
    query = draw(3, 5, DIM)
    key, value = draw(3, 7, widths.get("kdim", DIM)), draw(3, 7, widths.get("vdim", DIM))
    if not batch_first:
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    out, weights = ours(query, key, value)
    torch.testing.assert_close(out, theirs(query, key, value)[0], rtol=0, atol=1e-12)
    assert weights is None


def test_it_projects_a_probe_from_the_query(draw):
    _, ours = pair(batch_first=True)
    nn.init.normal_(ours.r_scale)
    x, y = draw(2, 5, DIM), draw(2, 7, DIM)
    q, k, v = (
        (t @ w.mT).unflatten(-1, (HEADS, -1))
        for t, w in zip((x, y, y), ours.in_proj_weight.chunk(3), strict=True)
    )
    r = ours.r_proj(x).unflatten(-1, (HEADS, -1)) * ours.r_scale[:, None]
    expected = ours.out_proj(parallax_attention(q, r, k, v, causal=False, backend="reference").flatten(-2))
    torch.testing.assert_close(ours(x, y, y)[0], expected, rtol=0, atol=1e-12)


def test_padding_is_not_seen(draw):
    _, ours = pair(batch_first=True)
    nn.init.normal_(ours.r_scale)
    x = draw(2, 6, DIM)
    padding = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]], dtype=torch.bool)
    for causal in (False, True):
        out, _ = ours(x, x, x, padding, is_causal=causal)
        short, _ = ours(x[1:, :4], x[1:, :4], x[1:, :4], is_causal=causal)
        torch.testing.assert_close(out[1, :4], short[0], rtol=0, atol=1e-12)


def test_the_scale_has_a_gradient_at_the_start_and_then_the_projection_too(draw):
    ours = ParallaxMultiheadAttention(DIM, HEADS, dtype=torch.float64, gate="learned")
    x = draw(3, 7, DIM)
    ours(x, x, x)[0].square().sum().backward()
    assert bool((ours.r_scale.grad != 0).all())
    nn.init.normal_(ours.r_scale)
    ours(x, x, x)[0].square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in ours.parameters())
    copy.deepcopy(ours)


def test_autocast_gives_one_dtype_to_all_operands():
    module = ParallaxMultiheadAttention(DIM, HEADS)
    x = torch.randn(2, 5, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x, x, x)[0].dtype == torch.bfloat16


def test_wrong_constructor_arguments():
    for options, error, message in (
        ({"dropout": 0.1}, NotImplementedError, "dropout=0.1"),
        ({"backend": "fast"}, ValueError, "backend='fast'"),
        ({"embed_dim": 1028}, ValueError, "embed_dim / num_heads = 257 is above the limit of 256"),
        ({"ridge": 1.0}, TypeError, "ridge"),
    ):
        with pytest.raises(error, match=message):
            ParallaxMultiheadAttention(**{"embed_dim": DIM, "num_heads": HEADS, **options})
