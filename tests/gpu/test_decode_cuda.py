"""Decoding on a real GPU, by Triton and by CUDA C++: usual sizes, long caches, graphs, repeats."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from flashlla import (
    lla_attention_with_kvcache,
    parallax_attention_with_kvcache,
    softmax_attention_with_kvcache,
)
from flashlla.testing.numerics import assert_within_budget
from flashlla.testing.problems import random_operands

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

FUNCTIONS = {
    "lla": lla_attention_with_kvcache,
    "parallax": parallax_attention_with_kvcache,
    "softmax": softmax_attention_with_kvcache,
}
member = pytest.mark.parametrize("member", FUNCTIONS)
WITH_CUPY = pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="needs CuPy")
backend = pytest.mark.parametrize("backend", ["triton", pytest.param("cuda", marks=WITH_CUPY)])
REPEATS = 50


def problem(member: str = "lla", data: str = "iid", **changes) -> dict[str, Tensor]:
    sizes = {"q_len": 1, "kv_len": 4200, "heads": 8, "kv_heads": 2, "head_dim": 128, "ridge": 0.1}
    sizes |= {"dtype": torch.bfloat16} | changes
    if member != "lla":
        sizes |= {"ridge": None, "probe": member == "parallax", "gate": member != "softmax"}
    operands = random_operands(data, **sizes)[0]
    return {f"{n}_cache" if n in ("k", "v") else n: t.cuda() for n, t in operands.items()}


def call(member: str, operands: dict[str, Tensor], lengths: list[int], backend: str, **options) -> Tensor:
    lengths = torch.tensor(lengths, device="cuda")
    return FUNCTIONS[member](**operands, cache_seqlens=lengths, backend=backend, **options)


def check(member: str, operands: dict[str, Tensor], lengths: list[int], backend: str, **options) -> Tensor:
    """Hold a call to its budget against the tiled PyTorch backend in float64, on the same device."""
    out = call(member, operands, lengths, backend, **options)
    wide = {name: t.double() for name, t in operands.items()}
    expected = call(member, wide, lengths, "blockwise", **options)
    ridge = round(float(operands["ridge"].min()), 6) if member == "lla" else None
    assert_within_budget(out, expected, operands["q"].dtype, ridge)
    return out


@backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
@pytest.mark.parametrize("data", ["iid", "steep", "far"])
@pytest.mark.parametrize("ridge", [1.0, 0.1, 0.01])
def test_usual_head_dimensions(backend, dtype, head_dim, data, ridge):
    operands = problem(data=data, head_dim=head_dim, dtype=dtype, ridge=ridge, batch=2)
    check("lla", operands, [4200, head_dim], backend)


@backend
@member
@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 1024, 1025, 4095, 4096, 4097, 40000])
def test_lengths(backend, member, length):
    check(member, problem(member, kv_len=max(length, 1)), [length], backend)


@backend
@member
@pytest.mark.parametrize("q_len", [1, 4, 16])
@pytest.mark.parametrize("options", [{}, {"window_size": 1500}, {"causal": False}], ids=str)
def test_masks_and_tokens(backend, member, q_len, options):
    check(member, problem(member, "steep", q_len=q_len, batch=2), [4200, 1100], backend, **options)


@backend
@member
@pytest.mark.parametrize(("head_dim", "value_dim"), [(57, 40), (80, 96)])
def test_odd_dimensions(backend, member, head_dim, value_dim):
    check(member, problem(member, head_dim=head_dim, value_dim=value_dim), [4200], backend)


@backend
@member
def test_other_streams(backend, member):
    operands = problem(member, batch=2)
    expected = call(member, operands, [4200, 1500], backend)
    torch.cuda.synchronize()
    outs = []
    for _ in range(4):
        with torch.cuda.stream(torch.cuda.Stream()):
            outs.append(call(member, operands, [4200, 1500], backend))
    torch.cuda.synchronize()
    assert all(torch.equal(out, expected) for out in outs)


@backend
@member
@pytest.mark.parametrize("page_size", [16, 64, 256])
def test_pages_change_no_bit(backend, member, page_size):
    operands = problem(member, q_len=2, batch=3, kv_len=4096)
    lengths = [4096, 17, 3000]
    expected = call(member, operands, lengths, backend)
    pages = 4096 // page_size
    table = torch.randperm(3 * pages, generator=torch.Generator().manual_seed(0)).view(3, pages).int().cuda()
    for name in ("k_cache", "v_cache"):
        t = operands[name]
        pool = torch.empty(3 * pages, page_size, *t.shape[2:], dtype=t.dtype, device="cuda")
        pool[table.long()] = t.unflatten(1, (pages, page_size))
        operands[name] = pool
    assert torch.equal(call(member, operands, lengths, backend, block_table=table), expected)


@backend
@member
def test_alone_and_in_a_batch(backend, member):
    operands = problem(member, q_len=2, batch=3)
    lengths = [4200, 31, 2500]
    together = call(member, operands, lengths, backend)
    for b, length in enumerate(lengths):
        alone = {name: t[b : b + 1] for name, t in operands.items()}
        assert torch.equal(call(member, alone, [length], backend), together[b : b + 1])


@backend
@member
def test_what_is_not_seen_may_be_anything(backend, member):
    operands = problem(member, q_len=3)
    clean = call(member, operands, [4100], backend)
    for name in ("k_cache", "v_cache"):
        operands[name][:, 4099:] = torch.nan
    out = call(member, operands, [4100], backend)
    assert torch.equal(out[:, :2], clean[:, :2])
    assert not out[:, 2].isfinite().any()


@backend
@member
def test_repeats_give_the_same_bits(backend, member):
    operands = problem(member, batch=4)
    lengths = [4200, 4097, 100, 2050]
    first = call(member, operands, lengths, backend)
    for _ in range(REPEATS):
        assert torch.equal(call(member, operands, lengths, backend), first)


@backend
@member
def test_a_graph_replays_with_new_lengths(backend, member):
    """One captured step serves a cache that grows: lengths and queries change in place."""
    operands = problem(member, batch=2)
    lengths = torch.tensor([1000, 50], device="cuda")

    def step():
        return FUNCTIONS[member](**operands, cache_seqlens=lengths, backend=backend)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for new in ([1000, 50], [1001, 51], [4200, 2049]):
        lengths.copy_(torch.tensor(new))
        operands["q"].normal_()
        graph.replay()
        assert torch.equal(out, step())


def test_beyond_32_bits():
    """A cache of more than 2^31 numbers."""
    operands = problem(q_len=1, kv_len=64, batch=1)
    long = 2**31 // (2 * 128) + 1000
    caches = {
        n: torch.zeros(1, long, 2, 128, dtype=torch.bfloat16, device="cuda") for n in ("k_cache", "v_cache")
    }
    for name, cache in caches.items():
        cache[:, -64:] = operands[name]
    out = call("lla", operands | caches, [long], "triton", window_size=64)
    assert torch.equal(out, call("lla", operands, [64], "triton"))
