"""Triton kernels in the interpreter: bits that must not change, NaN that must not spread, layouts, stats,
registration.
"""

from __future__ import annotations

import pytest
import torch

from flashlla import (
    lla_attention,
    lla_attention_varlen,
    lla_attention_with_kvcache,
    lla_attention_with_stats,
    parallax_attention_varlen,
)
from flashlla.ops.types import Layout
from flashlla.testing.numerics import assert_within_budget, evaluate, exact
from flashlla.testing.problems import random_operands

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# float16 takes the same code as bfloat16 but for one conversion: it is left to the long run.
SLOW = pytest.param(torch.float16, marks=pytest.mark.slow)
dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, SLOW], ids=str)
# Where 16-bit operands take the interpreter too long for `make test`.
float32 = pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str
)
TRITON = {"backend": "triton"}


def problem(**changes):
    sizes = {"q_len": 50, "heads": 2, "kv_heads": 1, "head_dim": 16, "value_dim": 12, "ridge": 0.2}
    return random_operands("iid", **{**sizes, **changes})


def assert_same_bits(actual, expected, names=None):
    for name in names or expected:
        assert torch.equal(actual[name], expected[name]), name


@dtype
def test_packed_sequences_are_single_ones(dtype):
    q_lengths, k_lengths = (5, 0, 33, 1, 17), (5, 4, 33, 40, 0)
    operands, do = problem(q_len=sum(q_lengths), kv_len=sum(k_lengths), heads=1, dtype=dtype)
    cu_q, cu_k = (torch.tensor([0, *lengths]).cumsum(0) for lengths in (q_lengths, k_lengths))
    packed = {name: t[0] for name, t in operands.items()}
    packed = evaluate(lla_attention_varlen, packed, do[0], cu_seqlens=cu_q, cu_seqlens_k=cu_k, **TRITON)
    for rows, keys in zip(cu_q.unfold(0, 2, 1).tolist(), cu_k.unfold(0, 2, 1).tolist(), strict=True):
        part = {name: slice(*keys) if name in ("k", "v") else slice(*rows) for name in packed}
        single = evaluate(
            lla_attention, {n: t[:, part[n]] for n, t in operands.items()}, do[:, slice(*rows)], **TRITON
        )
        assert_same_bits({n: t[part[n]] for n, t in packed.items()}, {n: t[0] for n, t in single.items()})


def test_packed_sequences_without_a_mask():
    operands, do = problem(q_len=60, heads=1, dtype=torch.bfloat16)
    packed = {name: t[0] for name, t in operands.items()}
    bounds = torch.tensor([0, 15, 60])
    packed = evaluate(lla_attention_varlen, packed, do[0], cu_seqlens=bounds, causal=False, **TRITON)
    for rows in (slice(0, 15), slice(15, 60)):
        single = {name: t[:, rows] for name, t in operands.items()}
        expected = exact(lla_attention, single, do[:, rows], causal=False)
        for name, t in expected.items():
            assert_within_budget(packed[name][rows], t[0], torch.bfloat16, 0.2, name != "out", name)


def test_packed_parallax_is_single_parallax():
    operands, do = problem(q_len=50, ridge=None, probe=True)
    packed = {name: t[0] for name, t in operands.items()}
    packed = evaluate(parallax_attention_varlen, packed, do[0], cu_seqlens=torch.tensor([0, 50]), **TRITON)
    from flashlla import parallax_attention

    single = evaluate(parallax_attention, operands, do, **TRITON)
    assert_same_bits(packed, {name: t[0] for name, t in single.items()})


@float32
def test_grouped_heads_are_repeated_heads(dtype):
    operands, do = problem(dtype=dtype)
    grouped = evaluate(lla_attention, operands, do, **TRITON)
    repeated = {n: t.repeat_interleave(2, 2) if n in ("k", "v") else t for n, t in operands.items()}
    assert_same_bits(grouped, evaluate(lla_attention, repeated, do, **TRITON), ("out", "q", "ridge", "gate"))


@float32
def test_wide_window_is_no_window_and_a_batch_row_is_that_row_alone(dtype):
    operands, do = problem(batch=2, heads=1, dtype=dtype)
    together = evaluate(lla_attention, operands, do, **TRITON)
    assert_same_bits(evaluate(lla_attention, operands, do, window_size=50, **TRITON), together)
    alone = evaluate(lla_attention, {name: t[1:] for name, t in operands.items()}, do[1:], **TRITON)
    assert_same_bits({name: t[1:] for name, t in together.items()}, alone)


@dtype
@pytest.mark.parametrize("window_size", [None, 25])
def test_later_tokens_do_not_change_earlier_rows(dtype, window_size):
    operands, do = problem(heads=1, dtype=dtype)
    before = evaluate(lla_attention, operands, do, window_size=window_size, **TRITON)
    changed = {n: torch.cat([t[:, :37], 3 - t[:, 37:]], 1) if n in "qkv" else t for n, t in operands.items()}
    after = evaluate(lla_attention, changed, do, window_size=window_size, **TRITON)
    for name in ("out", "q", "ridge", "gate"):
        assert torch.equal(after[name][:, :37], before[name][:, :37]), name
    assert not torch.equal(after["out"][:, 37:], before["out"][:, 37:])


@float32
def test_strides_and_scalars_do_not_change_bits(dtype):
    operands, do = problem(batch=2, q_len=30, dtype=dtype)
    expected = evaluate(lla_attention, operands, do, **TRITON)
    views = {
        n: t.transpose(1, 2).contiguous().transpose(1, 2) if n in "qkv" else t for n, t in operands.items()
    }
    host = do.new_full((2, 60, 2, 20), torch.nan)[:, 1::2, :, 3:15]
    host.copy_(do)
    assert_same_bits(evaluate(lla_attention, views, host, **TRITON), expected)
    gates = {name: operands.pop(name)[:1, :1, :1] for name in ("ridge", "gate")}
    wide = {name: t.expand(2, 30, 2).contiguous() for name, t in gates.items()}
    expected = evaluate(lla_attention, {**operands, **wide}, do, **TRITON)
    assert_same_bits(
        evaluate(lla_attention, {**operands, **gates}, do, **TRITON), expected, ("out", "q", "k", "v")
    )


@float32
@pytest.mark.parametrize("window_size", [None, 12])
@pytest.mark.parametrize("operand", ["k", "v", "q", "gate", "do"])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf], ids=str)
def test_broken_numbers_reach_who_sees_them_and_no_one_else(dtype, window_size, operand, poison):
    at = 30
    operands, do = problem(heads=1, value_dim=16, dtype=dtype)
    options = {"window_size": window_size, **TRITON}
    clean = evaluate(lla_attention, operands, do, **options)
    tensors = {**operands, "do": do}
    tensors[operand] = tensors[operand].clone()
    tensors[operand][:, at] = poison
    actual = evaluate(lla_attention, {n: tensors[n] for n in operands}, tensors["do"], **options)
    seen_until = 50 if operand in "qkv" else at + 1
    if operand in ("k", "v"):
        broken = slice(at, 50 if window_size is None else min(50, at + window_size))
    else:
        broken = slice(at, at + 1)
    spared = [i for i in range(50) if not broken.start <= i < broken.stop]
    assert seen_until >= broken.stop or operand == "q"
    for name in ("out", "q", "ridge", "gate"):
        if name == "out" and operand == "do":
            continue
        assert torch.equal(actual[name][:, spared], clean[name][:, spared]), name
    marked = "q" if operand == "do" else "out"
    assert not actual[marked][:, broken].isfinite().any()
    behind = slice(broken.stop, None)  # keys that no broken row sees
    for name in ("k", "v"):
        assert actual[name][:, behind].isfinite().all(), name


def test_rows_that_see_nothing():
    operands, do = problem(q_len=40, kv_len=25, dtype=torch.bfloat16)
    do[:, 3] = torch.nan
    actual = evaluate(lla_attention, operands, do, **TRITON)
    for name in ("out", "q", "ridge", "gate"):
        assert not actual[name][:, :15].any(), name
    for name in ("k", "v"):
        assert actual[name].isfinite().all(), name
    stats = lla_attention_with_stats(**operands, **TRITON)
    assert (stats.lse[:, :15] == -torch.inf).all() and stats.lse[:, 15:].isfinite().all()


@dtype
def test_stats(dtype):
    operands, _ = problem(dtype=dtype)
    stats = lla_attention_with_stats(**operands, solver="cg", rtol=1e-3, **TRITON)
    q, k = operands["q"].double(), operands["k"].double().repeat_interleave(2, 2)
    logits = torch.einsum("bthd,bshd->bths", q, k) * 16**-0.5
    future = torch.ones(50, 50, dtype=torch.bool).triu(1)[:, None]
    expected = logits.masked_fill(future, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(stats.lse.double(), expected, rtol=2e-6, atol=2e-6)
    assert float(stats.residual.max()) <= 1.05e-3
    assert 1 <= int(stats.iterations[:, 1:].min()) <= int(stats.iterations.max()) <= 48


@pytest.mark.parametrize("q_len", [1, 5])
def test_a_cache_is_the_full_sequence(q_len):
    operands, _ = problem(batch=2, dtype=torch.bfloat16, gate=False)
    lengths = torch.tensor([50, 33])
    k, v = (operands[name].clone() for name in "kv")
    for cache in (k, v):
        cache[1, 33:] = torch.nan
    q = torch.stack([operands["q"][0, 50 - q_len : 50], operands["q"][1, 33 - q_len : 33]])
    with torch.no_grad():
        out = lla_attention_with_kvcache(q, k, v, cache_seqlens=lengths, ridge=0.2, **TRITON)
    full = exact(lla_attention, {name: operands[name] for name in "qkv"}, ridge=0.2)["out"]
    for b, n in enumerate(lengths.tolist()):
        part = {
            "q": operands["q"][b : b + 1, :n],
            "k": operands["k"][b : b + 1, :n],
            "v": operands["v"][b : b + 1, :n],
        }
        expected = exact(lla_attention, part, ridge=0.2)["out"][:, n - q_len :]
        assert_within_budget(out[b : b + 1], expected, torch.bfloat16, 0.2)
    assert full.shape[1] == 50


@dtype
@pytest.mark.parametrize("member", ["lla", "parallax", "softmax"])
def test_fakes_and_opcheck(dtype, member):
    from flashlla.functional import DEFAULT_RTOL

    operands, do = problem(
        q_len=9, dtype=dtype, ridge=0.2 if member == "lla" else None, probe=member == "parallax"
    )
    probe, ridge = (operands.get(name) for name in ("r", "ridge"))
    tensors = (operands["q"], operands["k"], operands["v"], probe, ridge, operands["gate"])
    options = (0.25, True, 0, "cg", DEFAULT_RTOL[dtype], 48, "triton")
    forward = (*tensors, *Layout(), *options, True)
    torch.library.opcheck(torch.ops.flashlla.forward.default, forward)
    out = torch.ops.flashlla.forward(*forward)
    torch.library.opcheck(
        torch.ops.flashlla.backward.default, (do, *tensors, out[2], out[3], *Layout(), *options)
    )


def test_compiles_as_one_graph():
    operands, _ = problem(q_len=20)
    compiled = torch.compile(lla_attention, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (20, 13):
        part = {name: t[:, :n] for name, t in operands.items()}
        assert torch.equal(compiled(**part, **TRITON), lla_attention(**part, **TRITON))


def test_repeats_are_equal():
    operands, do = problem(dtype=torch.bfloat16)
    first = evaluate(lla_attention, operands, do, **TRITON)
    assert_same_bits(evaluate(lla_attention, operands, do, **TRITON), first)
