"""The reference against the definition, written a second time in other words."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from flashlla import (
    lla_attention,
    lla_attention_varlen,
    lla_attention_with_kvcache,
    lla_attention_with_stats,
    parallax_attention,
    softmax_attention,
)
from flashlla.testing.numerics import error_norm_ratio
from flashlla.testing.problems import random_operands

# name: (q_len, kv_len, options)
MASKS = {
    "causal": (5, 5, {}),
    "window": (6, 6, {"window_size": 3}),
    "everything": (4, 6, {"causal": False}),
    "q_shorter": (3, 6, {}),
    "q_longer": (6, 4, {}),
    "q_longer_window": (7, 4, {"window_size": 2}),
}
mask = pytest.mark.parametrize("mask", MASKS)


def problem(mask: str = "causal", **changes) -> tuple[dict[str, Tensor], Tensor, dict]:
    q_len, kv_len, options = MASKS[mask]
    sizes = {"batch": 2, "heads": 2, "head_dim": 3, "value_dim": 2, "dtype": torch.float64, "ridge": 0.3}
    operands, do = random_operands("iid", q_len=q_len, kv_len=kv_len, **{**sizes, **changes})
    return operands, do, {**options, "backend": "reference"}


def visible(q_len: int, kv_len: int, causal: bool = True, window_size: int | None = None, **_) -> list[range]:
    """The keys that each query sees, from the words of the documentation."""
    if not causal:
        return [range(kv_len)] * q_len
    ends = [max(0, min(kv_len, i + kv_len - q_len + 1)) for i in range(q_len)]
    return [range(max(0, end - (window_size or end)), end) for end in ends]


@mask
def test_equals_least_squares_of_each_query(mask):
    operands, _, options = problem(mask)
    out = lla_attention(**operands, **options)
    q, k, v, ridge, gate = (operands[name] for name in ("q", "k", "v", "ridge", "gate"))
    d, scale = q.shape[-1], q.shape[-1] ** -0.5
    expected = torch.zeros_like(out)
    for i, keys in enumerate(visible(q.shape[1], k.shape[1], **options)):
        for b in range(q.shape[0]):
            for h in range(q.shape[2]):
                if not keys:
                    continue
                z = k[b, keys, h] - q[b, i, h]
                p = (scale * k[b, keys, h] @ q[b, i, h]).softmax(0)
                rows = p.sqrt()[:, None] * torch.cat([torch.ones_like(z[:, :1]), z], 1)
                penalty = ridge[b, i, h].sqrt() * torch.eye(d + 1, dtype=q.dtype)[1:]
                targets = torch.cat([p.sqrt()[:, None] * v[b, keys, h], v.new_zeros(d, v.shape[-1])])
                fit = torch.linalg.lstsq(torch.cat([rows, penalty]), targets, driver="gelsd").solution[0]
                average = p @ v[b, keys, h]
                expected[b, i, h] = average + gate[b, i, h] * (fit - average)
    assert error_norm_ratio(out, expected) < 1e-11


@mask
def test_lse_is_the_logsumexp_of_visible_logits(mask):
    operands, _, options = problem(mask)
    lse = lla_attention_with_stats(**operands, **options).lse
    q, k = operands["q"], operands["k"]
    for i, keys in enumerate(visible(q.shape[1], k.shape[1], **options)):
        logits = torch.einsum("bhd,bshd->bhs", q[:, i], k[:, list(keys)]) * q.shape[-1] ** -0.5
        torch.testing.assert_close(lse[:, i], logits.logsumexp(-1), rtol=1e-12, atol=1e-12)


def sdpa(operands: dict[str, Tensor], mask: str) -> Tensor:
    q, k, v = (operands[name].transpose(1, 2) for name in ("q", "k", "v"))
    rows = visible(q.shape[2], k.shape[2], **MASKS[mask][2])
    allowed = torch.tensor([[j in keys for j in range(k.shape[2])] for keys in rows])
    out = scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=True)
    return out.transpose(1, 2).masked_fill(~allowed.any(-1)[:, None, None], 0.0)


@mask
def test_large_ridge_is_softmax_attention(mask):
    operands, _, options = problem(mask, ridge=1e14)
    assert error_norm_ratio(lla_attention(**operands, **options), sdpa(operands, mask)) < 1e-12


@mask
def test_softmax_member_is_softmax_attention(mask):
    operands, _, options = problem(mask, ridge=None, gate=False)
    assert error_norm_ratio(softmax_attention(**operands, **options), sdpa(operands, mask)) < 1e-13


@mask
def test_zero_gate_is_softmax_attention_bit_for_bit(mask):
    operands, _, options = problem(mask)
    operands["gate"] = torch.zeros_like(operands["gate"])
    expected = softmax_attention(operands["q"], operands["k"], operands["v"], **options)
    assert torch.equal(lla_attention(**operands, **options), expected)


@mask
def test_zero_scale_is_ridge_regression_with_intercept(mask):
    operands, _, options = problem(mask, gate=False)
    out = lla_attention(**operands, scale=0.0, **options)
    q, k, v, ridge = (operands[name] for name in ("q", "k", "v", "ridge"))
    for i, keys in enumerate(visible(q.shape[1], k.shape[1], **options)):
        if not keys:
            assert not out[:, i].any()
            continue
        x, y = k[:, list(keys)].transpose(1, 2), v[:, list(keys)].transpose(1, 2)  # [batch, heads, keys, dim]
        x0, y0 = x.mean(2, keepdim=True), y.mean(2, keepdim=True)
        gram = (x - x0).mT @ (x - x0) / len(keys) + torch.diag_embed(
            ridge[:, i, :, None].expand(*x.shape[:2], x.shape[-1])
        )
        slope = torch.linalg.solve(gram, (x - x0).mT @ (y - y0) / len(keys))
        expected = (y0 + (q[:, i][:, :, None] - x0) @ slope)[:, :, 0]
        assert error_norm_ratio(out[:, i], expected) < 1e-12


def test_first_row_is_the_first_value():
    operands, _, options = problem("causal")
    torch.testing.assert_close(
        lla_attention(**operands, **options)[:, 0], operands["v"][:, 0], rtol=1e-13, atol=0
    )


@mask
@pytest.mark.parametrize("member", ["lla", "parallax", "softmax"])
def test_weights_sum_to_one(mask, member):
    operands, _, options = problem(mask, ridge=0.3 if member == "lla" else None, probe=member == "parallax")
    if member == "softmax":
        del operands["gate"]
    operands["v"] = torch.full_like(operands["v"], 1.7)
    function = {"lla": lla_attention, "parallax": parallax_attention, "softmax": softmax_attention}[member]
    out = function(**operands, **options)
    seen = torch.tensor([len(keys) > 0 for keys in visible(out.shape[1], operands["k"].shape[1], **options)])
    torch.testing.assert_close(out[:, seen], torch.full_like(out[:, seen], 1.7), rtol=1e-12, atol=0)
    assert not out[:, ~seen].any()


@mask
def test_parallax_is_the_given_probe(mask):
    operands, _, options = problem(mask, ridge=None, probe=True)
    out = parallax_attention(**operands, **options)
    q, k, v, r, gate = (operands[name] for name in ("q", "k", "v", "r", "gate"))
    for i, keys in enumerate(visible(q.shape[1], k.shape[1], **options)):
        x, y = k[:, list(keys)], v[:, list(keys)]
        p = (torch.einsum("bhd,bshd->bhs", q[:, i], x) * q.shape[-1] ** -0.5).softmax(-1)
        average = torch.einsum("bhs,bshe->bhe", p, y)
        covariance = torch.einsum("bhs,bshe,bshd->bhed", p, y, x) - torch.einsum(
            "bhe,bhs,bshd->bhed", average, p, x
        )
        expected = average - gate[:, i, :, None] * torch.einsum("bhed,bhd->bhe", covariance, r[:, i])
        torch.testing.assert_close(out[:, i], expected, rtol=1e-11, atol=1e-13)


def test_grouped_heads_are_repeated_heads():
    operands, _, options = problem("causal", heads=6, kv_heads=2)
    repeated = {
        **operands,
        "k": operands["k"].repeat_interleave(3, 2),
        "v": operands["v"].repeat_interleave(3, 2),
    }
    assert torch.equal(lla_attention(**operands, **options), lla_attention(**repeated, **options))


def test_packed_sequences_are_single_ones():
    operands, _, options = problem("causal", batch=1)
    cu_q, cu_k = torch.tensor([0, 2, 2, 5]), torch.tensor([0, 3, 4, 5])
    packed = lla_attention_varlen(
        **{n: t[0] for n, t in operands.items()}, cu_seqlens=cu_q, cu_seqlens_k=cu_k, **options
    )
    for (a, b), (c, d) in zip(cu_q.unfold(0, 2, 1).tolist(), cu_k.unfold(0, 2, 1).tolist(), strict=True):
        single = {n: t[:, c:d] if n in "kv" else t[:, a:b] for n, t in operands.items()}
        torch.testing.assert_close(packed[a:b], lla_attention(**single, **options)[0], rtol=1e-12, atol=1e-14)


def test_cache_rows_are_single_sequences():
    operands, _, options = problem("q_shorter", batch=3)
    lengths = torch.tensor([4, 0, 6])
    with torch.no_grad():
        out = lla_attention_with_kvcache(
            operands["q"], operands["k"], operands["v"],
            cache_seqlens=lengths, ridge=operands["ridge"], gate=operands["gate"], **options,
        )  # fmt: skip
    for b, length in enumerate(lengths.tolist()):
        single = {n: t[b : b + 1, :length] if n in "kv" else t[b : b + 1] for n, t in operands.items()}
        torch.testing.assert_close(out[b], lla_attention(**single, **options)[0], rtol=1e-12, atol=1e-14)


def test_half_operands_are_computed_in_single_precision():
    operands, _, options = problem("causal", dtype=torch.bfloat16)
    out = lla_attention(**operands, **options)
    exact = lla_attention(**{n: t.double() for n, t in operands.items()}, **options)
    assert out.dtype == torch.bfloat16
    assert error_norm_ratio(out, exact) < 5e-3
