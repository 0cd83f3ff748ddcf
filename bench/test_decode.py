"""Decoding over 16384 keys: grouped heads, hard data, pages, several new queries.

PyTorch's softmax attention computes on the same tensors, on copies with the rows of a head next to each
other, and on such copies with the keys repeated for grouped heads; copying is not timed. The bar is held
against the first.
"""

from __future__ import annotations

import pytest
import torch
from _common import THREADS, in_threads, interleave, threads
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from flashlla import lla_attention_with_kvcache
from flashlla.testing.numerics import assert_within_budget
from flashlla.testing.problems import random_operands

LENGTH, PAGE_SIZE, ROUNDS = 16384, 64, 15
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])


def operands_of(n: int, heads: int, kv_heads: int, head_dim: int, **options) -> dict[str, Tensor]:
    sizes = {"q_len": 1, "kv_len": n, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    return random_operands(**{"data": "iid", "gate": False, **sizes, **options})[0]


def lla(operands: dict[str, Tensor], backend: str = "cpu", **options) -> Tensor:
    q, k, v, ridge = (operands[name] for name in ("q", "k", "v", "ridge"))
    options = {"cache_seqlens": k.shape[1], "backend": backend, **options}
    return lla_attention_with_kvcache(q, k, v, ridge=ridge, **options)


def check(operands: dict[str, Tensor], ridge: float = 1.0) -> None:
    wide = {name: t.double() for name, t in operands.items()}
    assert_within_budget(lla(operands), lla(wide, "blockwise"), operands["q"].dtype, ridge)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of one query; tensors are heads first."""
    return scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])


def rivals(operands: dict[str, Tensor]) -> dict:
    views = [operands[name].transpose(1, 2) for name in ("q", "k", "v")]
    copies = [t.contiguous() for t in views]
    repeated = [t.repeat_interleave(views[0].shape[1] // t.shape[1], 1) for t in copies]
    return {
        "sdpa": lambda: sdpa(*views),
        "heads contiguous": lambda: sdpa(*copies),
        "keys repeated": lambda: sdpa(*repeated),
    }


def report_ratios(report, topic: str, name: str, times: dict[str, float], at_most: float | None) -> None:
    subject, first, *others = times
    report(
        topic,
        name,
        times[subject] / times[first],
        "x",
        at_most=at_most,
        detail={
            **{f"over {other}": f"{times[subject] / times[other]:.2f}x" for other in others},
            **{f"{rival} ms": f"{times[rival] * 1e3:.2f}" for rival in (subject, first)},
        },
    )


@pytest.mark.parametrize("count", THREADS)
@DTYPES
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 8), (32, 8), (1, 1)], ids=["8/8", "32/8", "1/1"])
def test_one_query(benchmark, report, shrink, heads, kv_heads, head_dim, dtype, count):
    operands = operands_of(shrink(LENGTH), heads, kv_heads, head_dim, dtype=dtype)
    check(operands)
    with threads(count):
        times = interleave(benchmark, {"lla": lambda: lla(operands), **rivals(operands)}, ROUNDS)
    name = f"{heads}/{kv_heads} heads, d={head_dim}, {str(dtype)[6:]}, {in_threads(count)}"
    report_ratios(report, "Decoding, time over that of torch SDPA on the same cache", name, times, 3)


@pytest.mark.parametrize(("data", "ridge"), [("steep", 1.0), ("steep", 0.1), ("far", 0.01)])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_slow_convergence(benchmark, report, shrink, head_dim, data, ridge):
    operands = operands_of(shrink(LENGTH), 8, 8, head_dim, data=data, ridge=ridge)
    check(operands, ridge)
    times = interleave(benchmark, {"lla": lambda: lla(operands), **rivals(operands)}, ROUNDS)
    name = f"8/8 heads, d={head_dim}, float32, {data}, ridge {ridge:g}, 1 thread"
    report_ratios(report, "Decoding hard data, time over that of torch SDPA", name, times, 5)


@pytest.mark.parametrize("q_len", [2, 4, 16])
@pytest.mark.parametrize("kv_heads", [8, 2])
def test_several_queries(benchmark, report, shrink, kv_heads, q_len):
    operands = operands_of(shrink(LENGTH), 8, kv_heads, 64, q_len=q_len)
    check(operands)
    one = {name: t if name in "kv" else t[:, -1:] for name, t in operands.items()}
    times = interleave(benchmark, {"lla": lambda: lla(operands), "one": lambda: lla(one)}, ROUNDS)
    name = f"8/{kv_heads} heads, d=64, float32, {q_len} queries, 1 thread"
    report_ratios(report, "Decoding several queries, time over that of one", name, times, q_len)


@DTYPES
def test_pages(benchmark, report, shrink, dtype):
    operands = operands_of(shrink(LENGTH), 8, 8, 64, dtype=dtype)
    n = operands["k"].shape[1]
    table = torch.randperm(n // PAGE_SIZE, generator=torch.Generator().manual_seed(0))
    pages = dict(operands)
    for name in ("k", "v"):
        pages[name] = torch.empty_like(operands[name]).unflatten(1, (-1, PAGE_SIZE))[0]
        pages[name][table] = operands[name].unflatten(1, (-1, PAGE_SIZE))[0]
    options = {"block_table": table[None], "cache_seqlens": n}
    assert torch.equal(lla(pages, **options), lla(operands))
    times = interleave(
        benchmark, {"paged": lambda: lla(pages, **options), "contiguous": lambda: lla(operands)}, ROUNDS
    )
    name = f"8/8 heads, d=64, {str(dtype)[6:]}, pages of {PAGE_SIZE}, 1 thread"
    report_ratios(report, "Decoding from pages, time over that of one piece", name, times, 1.2)
