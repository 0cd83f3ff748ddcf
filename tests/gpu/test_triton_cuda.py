"""The compiled Triton kernels on a real GPU: what the interpreter and small sizes cannot show.

tests/ops runs its budgets, equalities and non-finite values on this backend as well (``pytest -m gpu``).
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch

from flashlla import (
    lla_attention,
    lla_attention_varlen,
    lla_attention_with_kvcache,
    lla_attention_with_stats,
    parallax_attention,
    softmax_attention,
)
from flashlla.testing.numerics import assert_within_budget, evaluate
from flashlla.testing.problems import random_operands

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

HALVES = (torch.bfloat16, torch.float16)
TRITON = {"backend": "triton"}


def problem(data: str = "iid", **changes):
    sizes = {"q_len": 700, "heads": 4, "kv_heads": 2, "head_dim": 64, "dtype": torch.bfloat16, "ridge": 0.1}
    operands, do = random_operands(data, **{**sizes, **changes})
    return {name: t.cuda() for name, t in operands.items()}, do.cuda()


def hold_to_budget(function, operands, do, ridge, **options) -> None:
    """Output and gradients against the tiled PyTorch backend in float64, which runs on the same device."""
    actual = evaluate(function, operands, do, **TRITON, **options)
    wide = {name: t.double() for name, t in operands.items()}
    expected = evaluate(function, wide, do.double(), backend="blockwise", **options)
    for name, t in expected.items():
        assert_within_budget(actual[name], t, operands["q"].dtype, ridge, gradient=name != "out", name=name)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
@pytest.mark.parametrize("data", ["iid", "steep"])
@pytest.mark.parametrize("ridge", [1.0, 0.1, 0.01])
def test_usual_head_dimensions(dtype, head_dim, data, ridge):
    operands, do = problem(data, head_dim=head_dim, dtype=dtype, ridge=ridge, heads=2, kv_heads=1)
    hold_to_budget(lla_attention, operands, do, ridge)


@pytest.mark.parametrize("mask", [{"causal": False}, {"window_size": 200}, {"window_size": 50}], ids=str)
@pytest.mark.parametrize("kv_len", [700, 1000, 500])
def test_masks(mask, kv_len):
    operands, do = problem(kv_len=kv_len)
    hold_to_budget(lla_attention, operands, do, 0.1, **mask)


def test_parallax_and_softmax():
    operands, do = problem(ridge=None, probe=True)
    hold_to_budget(parallax_attention, operands, do, None)
    operands, do = problem(ridge=None, gate=False)
    hold_to_budget(softmax_attention, operands, do, None)


def test_packed_sequences():
    lengths = [300, 1, 0, 77, 322]
    operands, do = problem(heads=2, kv_heads=2)
    packed = {name: t[0] for name, t in operands.items()}
    bounds = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
    actual = evaluate(lla_attention_varlen, packed, do[0], cu_seqlens=bounds, **TRITON)
    for start, stop in bounds.unfold(0, 2, 1).tolist():
        rows = slice(start, stop)
        single = {name: t[:, rows] for name, t in operands.items()}
        single = evaluate(lla_attention, single, do[:, rows], **TRITON)
        for name, t in single.items():
            assert torch.equal(actual[name][rows], t[0]), name


def test_chunks_over_a_cache():
    operands, _ = problem(ridge=None, gate=False)
    q, k, v = (operands[name] for name in "qkv")
    with torch.no_grad():
        full = lla_attention(q, k, v, ridge=0.1, **TRITON)
        chunk = lla_attention_with_kvcache(q[:, 600:], k, v, cache_seqlens=700, ridge=0.1, **TRITON)
    assert_within_budget(chunk, full[:, 600:].double(), torch.bfloat16, 0.1)


def test_stats():
    operands, _ = problem()
    stats = lla_attention_with_stats(**operands, rtol=1e-3, **TRITON)
    expected = lla_attention_with_stats(
        **{name: t.double() for name, t in operands.items()}, backend="blockwise"
    )
    torch.testing.assert_close(stats.lse.double(), expected.lse, rtol=2e-6, atol=1e-5)
    assert float(stats.residual.max()) <= 1.1e-3
    assert 1 <= int(stats.iterations[:, 1:].min()) <= int(stats.iterations.max()) <= 144


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_fifty_repeats_have_the_same_bits(dtype):
    operands, do = problem(dtype=dtype)
    first = evaluate(lla_attention, operands, do, **TRITON)
    for _ in range(50):
        for name, t in evaluate(lla_attention, operands, do, **TRITON).items():
            assert torch.equal(t, first[name]), name


def test_inductor():
    operands, do = problem()
    compiled = torch.compile(lla_attention, fullgraph=True)
    expected = evaluate(lla_attention, operands, do, **TRITON)
    for name, t in evaluate(compiled, operands, do, **TRITON).items():
        assert torch.equal(t, expected[name]), name


@pytest.mark.parametrize("packed", [False, True])
def test_a_cuda_graph_replays(packed):
    operands, do = problem(heads=2, kv_heads=1)
    bounds = torch.tensor([0, 300, 700], device="cuda", dtype=torch.int32)
    leaves = {name: t[0] if packed else t for name, t in operands.items()}
    leaves = {name: t.clone().requires_grad_() for name, t in leaves.items()}
    do = do[0] if packed else do
    function, options = (lla_attention_varlen, {"cu_seqlens": bounds}) if packed else (lla_attention, {})

    def step():
        out = function(**leaves, **options, **TRITON)
        return out, *torch.autograd.grad(out, list(leaves.values()), do)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        leaves["q"].mul_(0.5)
    graph.replay()
    for got, expected in zip(captured, step(), strict=True):
        assert torch.equal(got, expected)


def test_offsets_beyond_32_bits():
    """Rows of the second batch entry lie more than 2^31 elements behind those of the first."""
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GiB of GPU memory")
    operands, do = problem(batch=2, q_len=200, heads=1, kv_heads=1)
    expected = evaluate(lla_attention, operands, do, **TRITON)
    far = {}
    for name in "qkv":
        host = torch.empty(2**31 + 200 * 64, dtype=torch.bfloat16, device="cuda")
        far[name] = host.as_strided((2, 200, 1, 64), (2**31, 64, 64, 1)).copy_(operands[name])
    actual = evaluate(lla_attention, {**operands, **far}, do, **TRITON)
    for name, t in expected.items():
        assert torch.equal(actual[name], t), name


def test_a_long_sequence_in_linear_memory():
    n = 131072
    q, k, v = (
        torch.randn(1, n, 1, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True) for _ in range(3)
    )
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = lla_attention(q, k, v, ridge=10.0, rtol=1e-2, **TRITON)
    out.backward(out)
    assert torch.cuda.max_memory_allocated() - before < 40 * n * 64  # bytes; the weights alone would take n^2
    assert out.isfinite().all() and q.grad.isfinite().all()


SANITIZED = """
import torch
from flashlla import lla_attention
for dtype in (torch.bfloat16, torch.float32):
    q, k, v = (torch.randn(1, 70, 1, 16, dtype=dtype, device="cuda", requires_grad=True) for _ in range(3))
    for options in ({}, {"window_size": 30}):
        lla_attention(q, k, v, ridge=0.1, backend="triton", **options).sum().backward()
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(tool):
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed here")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "7", sys.executable, "-c", SANITIZED]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
