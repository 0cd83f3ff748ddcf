"""Attention over a cache: the same numbers as over the sequence that the cache holds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flashlla import (
    lla_attention,
    lla_attention_with_kvcache,
    parallax_attention,
    parallax_attention_with_kvcache,
    softmax_attention,
    softmax_attention_with_kvcache,
)
from flashlla.ops import cpu
from flashlla.ops.types import Layout, Options
from flashlla.testing.numerics import assert_within_budget, exact
from flashlla.testing.problems import random_operands

pytestmark = pytest.mark.usefixtures("poisoned_memory")

MEMBERS = {
    "lla": (lla_attention, lla_attention_with_kvcache),
    "parallax": (parallax_attention, parallax_attention_with_kvcache),
    "softmax": (softmax_attention, softmax_attention_with_kvcache),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
member = pytest.mark.parametrize("member", MEMBERS)
dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
CHUNKS = {
    "one_by_one": [1] * 40,
    "chunks": [7, 1, 2, 17, 1, 12],
    "at_once": [40],
    "prompt_then_steps": [35, *[1] * 5],
}


def problem(member: str = "lla", data: str = "iid", **changes) -> dict[str, Tensor]:
    sizes = {
        "batch": 2,
        "q_len": 40,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 24,
        "value_dim": 20,
        "ridge": 0.2,
    }
    if member != "lla":
        sizes |= {"ridge": None, "probe": member == "parallax", "gate": member != "softmax"}
    return random_operands(data, **{**sizes, **changes})[0]


def empty_caches(operands: dict[str, Tensor], capacity: int) -> tuple[Tensor, Tensor]:
    k, v = operands["k"], operands["v"]
    return tuple(t.new_full((t.shape[0], capacity, *t.shape[2:]), torch.nan) for t in (k, v))


def lowest_ridge(operands: dict[str, Tensor]) -> float | None:
    return float(operands["ridge"].min()) if "ridge" in operands else None


@member
@dtype
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("window_size", [None, 9])
def test_steps_are_the_full_sequence(backend, member, dtype, chunks, window_size):
    dense, cached = MEMBERS[member]
    operands = problem(member, dtype=dtype)
    expected = exact(dense, operands, window_size=window_size)["out"]
    k_cache, v_cache = empty_caches(operands, 41)
    pieces, used = [], 0
    for chunk in chunks:
        new = {name: t[:, used : used + chunk] for name, t in operands.items()}
        out = cached(
            k_cache=k_cache,
            v_cache=v_cache,
            cache_seqlens=used,
            window_size=window_size,
            backend=backend,
            **new,
        )
        pieces.append(out)
        used += chunk
    out = torch.cat(pieces, 1)
    assert out.dtype == dtype
    assert_within_budget(out, expected, dtype, lowest_ridge(operands))
    assert torch.equal(k_cache[:, :40], operands["k"])
    assert torch.equal(v_cache[:, :40], operands["v"])
    assert k_cache[:, 40:].isnan().all()


@dtype
@pytest.mark.parametrize("data", ["iid", "steep"])
@pytest.mark.parametrize("head_dim", [1, 33, 64, 128])
@pytest.mark.parametrize("ridge", [1.0, 0.1, 0.01])
def test_one_query_over_a_long_cache(backend, dtype, data, head_dim, ridge):
    operands = problem(
        data=data,
        q_len=1,
        kv_len=700,
        heads=2,
        kv_heads=1,
        head_dim=head_dim,
        value_dim=None,
        dtype=dtype,
        ridge=ridge,
    )
    expected = exact(lla_attention, operands)["out"]
    rest = {name: operands[name] for name in ("q", "ridge", "gate")}
    out = lla_attention_with_kvcache(
        k_cache=operands["k"], v_cache=operands["v"], cache_seqlens=700, backend=backend, **rest
    )
    assert_within_budget(out, expected, dtype, ridge)


@member
@pytest.mark.parametrize("q_len", [1, 3])
@pytest.mark.parametrize("append", [False, True], ids=["read", "append"])
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_rows_of_different_lengths(backend, member, q_len, append, index):
    dense, cached = MEMBERS[member]
    lengths = [0, 5, 30, 1]
    operands = problem(member, batch=4, q_len=q_len, kv_len=40)
    k_cache, v_cache = empty_caches(operands, 40)
    for b, length in enumerate(lengths):
        k_cache[b, :length], v_cache[b, :length] = operands["k"][b, :length], operands["v"][b, :length]
    k_before, v_before = k_cache.clone(), v_cache.clone()
    new = problem(member, batch=4, q_len=q_len, kv_len=q_len, **{}) if append else {}
    rest = {name: t for name, t in operands.items() if name not in ("k", "v")}
    cache_seqlens = torch.tensor(lengths, dtype=index)
    out = cached(
        k_cache=k_cache,
        v_cache=v_cache,
        k=new.get("k"),
        v=new.get("v"),
        cache_seqlens=cache_seqlens,
        backend=backend,
        **rest,
    )
    assert cache_seqlens.tolist() == lengths
    for b, length in enumerate(lengths):
        row = {name: t[b : b + 1] for name, t in rest.items()}
        for name in ("k", "v"):
            parts = [operands[name][b : b + 1, :length]] + ([new[name][b : b + 1]] if append else [])
            row[name] = torch.cat(parts, 1)
        if row["k"].shape[1] == 0:
            assert not out[b].any()
        else:
            expected = exact(dense, row)["out"]
            assert_within_budget(out[b : b + 1], expected, torch.float32, lowest_ridge(operands))
        for cache, before, name in ((k_cache, k_before, "k"), (v_cache, v_before, "v")):
            end = length + q_len * append
            if append:
                assert torch.equal(cache[b, length:end], new[name][b])
            assert torch.equal(cache[b, :length], before[b, :length])
            assert cache[b, end:].isnan().all()


def test_strided_cache(backend):
    operands = problem(q_len=2, kv_len=40)
    rest = {name: operands[name] for name in ("q", "ridge", "gate")}
    caches = [operands["k"], operands["v"]]
    views = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in caches]
    outs = [
        lla_attention_with_kvcache(k_cache=k, v_cache=v, cache_seqlens=33, backend=backend, **rest)
        for k, v in (caches, views)
    ]
    assert torch.equal(*outs)


def test_appended_rows_may_have_any_strides(backend):
    operands = problem()
    q, k, v, ridge = (operands[name][:, :3] for name in ("q", "k", "v", "ridge"))
    cut = [t.repeat_interleave(3, -1)[..., ::3] for t in (k, v)]
    assert [t.stride(-1) for t in cut] == [3, 3]
    over = [
        lla_attention_with_kvcache(
            q, *empty_caches(operands, 3), *rows, cache_seqlens=0, ridge=ridge, backend=backend
        )
        for rows in ((k, v), cut)
    ]
    assert torch.equal(*over)


@pytest.mark.parametrize("q_len", [1, 5])
def test_cache_row_is_that_row_alone(q_len):
    operands = problem(batch=3, q_len=q_len, kv_len=300)
    rest = {name: operands[name] for name in ("q", "ridge", "gate")}
    lengths = torch.tensor([300, 20, 177])
    together = lla_attention_with_kvcache(
        k_cache=operands["k"], v_cache=operands["v"], cache_seqlens=lengths, backend="cpu", **rest
    )
    for b in range(3):
        row = {name: t[b : b + 1] for name, t in operands.items()}
        alone = lla_attention_with_kvcache(
            row["q"], row["k"], row["v"], cache_seqlens=lengths[b : b + 1],
            ridge=row["ridge"], gate=row["gate"], backend="cpu",
        )  # fmt: skip
        assert torch.equal(together[b], alone[0])


@pytest.mark.parametrize("q_len", [1, 5])
def test_threads_do_not_change_bits(q_len):
    operands = problem(batch=1, q_len=q_len, kv_len=5000, heads=2)
    rest = {name: operands[name] for name in ("q", "ridge", "gate")}
    outs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            outs.append(
                lla_attention_with_kvcache(
                    k_cache=operands["k"], v_cache=operands["v"], cache_seqlens=5000, backend="cpu", **rest
                )
            )
        finally:
            torch.set_num_threads(1)
    assert torch.equal(*outs)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("q_len", [1, 4])
@pytest.mark.parametrize("name", ["k", "v"])
def test_broken_used_slot_shows(backend, poison, q_len, name):
    operands = problem(q_len=q_len, kv_len=40)
    operands[name][0, 3] = poison
    rest = {n: operands[n] for n in ("q", "ridge", "gate")}
    out = lla_attention_with_kvcache(
        k_cache=operands["k"], v_cache=operands["v"], cache_seqlens=30, backend=backend, **rest
    )
    assert not out[0].isfinite().any()
    assert out[1].isfinite().all()


@pytest.mark.parametrize("poison", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("q_len", [1, 4])
@pytest.mark.parametrize("name", ["k", "v"])
def test_slot_outside_the_window_does_not_leak(backend, poison, q_len, name):
    operands = problem(q_len=q_len, kv_len=40)
    rest = {n: operands[n] for n in ("q", "ridge", "gate")}

    def call():
        return lla_attention_with_kvcache(
            k_cache=operands["k"],
            v_cache=operands["v"],
            cache_seqlens=30,
            window_size=8,
            backend=backend,
            **rest,
        )

    clean = call()
    operands[name][:, : 30 - 8 - q_len + 1] = poison
    assert torch.equal(call(), clean)


@pytest.mark.parametrize("name", ["q", "k_cache", "v_cache", "ridge", "gate"])
def test_gradient_is_refused(backend, name):
    operands = problem(q_len=1, kv_len=40)
    operands = {{"k": "k_cache", "v": "v_cache"}.get(n, n): t for n, t in operands.items()}
    operands[name].requires_grad_()
    with pytest.raises(NotImplementedError, match="no_grad"):
        lla_attention_with_kvcache(cache_seqlens=30, backend=backend, **operands)
    with torch.no_grad():
        lla_attention_with_kvcache(cache_seqlens=30, backend=backend, **operands)


def paged(
    operands: dict[str, Tensor], lengths: list[int], page_size: int, index: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The caches in shuffled pages, NaN where nothing is stored, and a table that is wild behind them."""
    capacity = -(-operands["k"].shape[1] // page_size)
    generator = torch.Generator().manual_seed(page_size)
    free = torch.randperm(len(lengths) * capacity, generator=generator).tolist()
    table = torch.full((len(lengths), capacity), -(2**30), dtype=index)
    pools = [
        t.new_full((len(free), page_size, *t.shape[2:]), torch.nan) for t in (operands["k"], operands["v"])
    ]
    for b, length in enumerate(lengths):
        for start in range(0, length, page_size):
            table[b, start // page_size] = page = free.pop()
            rows = slice(start, min(start + page_size, length))
            for pool, t in zip(pools, (operands["k"], operands["v"]), strict=True):
                pool[page, : rows.stop - rows.start] = t[b, rows]
    return *pools, table


PAGE_LENGTHS = {
    1: [0, 1, 2, 300],
    16: [0, 1, 15, 16, 17, 333],
    100: [99, 100, 101, 2048, 2049],
    4096: [4095, 4096, 4097],
}


@member
@dtype
@pytest.mark.parametrize("page_size", PAGE_LENGTHS)
@pytest.mark.parametrize("q_len", [1, 3, 20])
def test_pages_do_not_change_bits(member, dtype, page_size, q_len):
    lengths = PAGE_LENGTHS[page_size]
    operands = problem(member, batch=len(lengths), q_len=q_len, kv_len=max(lengths), dtype=dtype)
    rest = {name: t for name, t in operands.items() if name not in ("k", "v")}
    for index, window_size in ((torch.int32, None), (torch.int64, 40)):
        options = {
            "cache_seqlens": torch.tensor(lengths),
            "window_size": window_size,
            "backend": "cpu",
        }
        expected = MEMBERS[member][1](k_cache=operands["k"], v_cache=operands["v"], **options, **rest)
        k_pages, v_pages, table = paged(operands, lengths, page_size, index)
        views = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (k_pages, v_pages)]
        for k, v in ((k_pages, v_pages), views):
            out = MEMBERS[member][1](k_cache=k, v_cache=v, block_table=table, **options, **rest)
            assert torch.equal(out, expected)


@pytest.mark.parametrize("isa", cpu.describe()["available"])
@pytest.mark.parametrize("length", [2047, 2049, 4095, 4097])
@pytest.mark.parametrize("data", ["iid", "steep", "far"])
@pytest.mark.parametrize("q_len", [1, 4])
def test_long_caches_on_every_instruction_set(monkeypatch, isa, length, data, q_len):
    monkeypatch.setenv("FLASHLLA_ISA", isa)
    sizes = {"batch": 1, "q_len": q_len, "kv_len": length, "head_dim": 64, "value_dim": 20}
    for ridge in (1.0, 0.1, 0.01):
        operands = problem(data=data, ridge=ridge, **sizes)
        expected = exact(lla_attention, operands)["out"]
        rest = {name: operands[name] for name in ("q", "ridge", "gate")}
        out = lla_attention_with_kvcache(
            k_cache=operands["k"], v_cache=operands["v"], cache_seqlens=length, backend="cpu", **rest
        )
        assert_within_budget(out, expected, torch.float32, ridge)


@member
@pytest.mark.parametrize("heads", [4, 34])
@pytest.mark.parametrize("name", ["k", "v"])
def test_queries_do_not_see_later_slots(member, heads, name):
    operands = problem(member, q_len=4, kv_len=300, heads=heads)

    def call():
        rest = {n: t for n, t in operands.items() if n not in ("k", "v")}
        return MEMBERS[member][1](
            k_cache=operands["k"], v_cache=operands["v"], cache_seqlens=300, backend="cpu", **rest
        )

    clean = call()
    operands[name][:, 298:] = torch.nan
    out = call()
    assert torch.equal(out[:, :2], clean[:, :2])
    assert out[:, 2:].isnan().all()


@pytest.mark.parametrize("solver", ["auto", "cg", "direct"])
@pytest.mark.parametrize("q_len", [1, 3])
def test_state_is_that_of_the_forward_pass(solver, q_len):
    operands = problem(q_len=q_len, kv_len=2500)
    args = [operands[name] for name in ("q", "k", "v")]
    args += [None, operands["ridge"], operands["gate"]]
    options = Options(24**-0.5, True, 0, solver, 5e-7, 64)
    expected = cpu.forward(*args, Layout(), options, False)
    actual = cpu.forward(*args, Layout(seqlens_k=torch.tensor([2500, 2500])), options, False)
    assert (actual.iterations > 0).all() == (solver != "direct")
    for name in ("o", "lse"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=1e-5, atol=1e-6)
