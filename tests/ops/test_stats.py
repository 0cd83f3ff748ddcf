"""Log-sum-exp, residual and iterations, and what an unconverged probe still guarantees."""

from __future__ import annotations

import pytest
import torch

from flashlla import (
    lla_attention,
    lla_attention_varlen_with_stats,
    lla_attention_with_stats,
    parallax_attention_with_stats,
    softmax_attention,
)
from flashlla.testing.numerics import assert_within_budget
from flashlla.testing.problems import random_operands

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def problem(data: str = "iid", ridge: float | None = 0.1, **changes):
    sizes = {"q_len": 100, "heads": 4, "kv_heads": 2, "head_dim": 32}
    return random_operands(data, ridge=ridge, **{**sizes, **changes})[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("data", ["iid", "steep", "far"])
def test_lse(backend, data, dtype):
    operands = problem(data, dtype=dtype)
    stats = lla_attention_with_stats(**operands, backend=backend)
    q, k = operands["q"].double(), operands["k"].double().repeat_interleave(2, 2)
    logits = torch.einsum("bthd,bshd->bths", q, k) * 32**-0.5
    future = torch.ones(100, 100, dtype=torch.bool).triu(1)[:, None]
    expected = logits.masked_fill(future, -torch.inf).logsumexp(-1)
    assert stats.lse.dtype == torch.float32
    torch.testing.assert_close(stats.lse.double(), expected, rtol=2e-6, atol=2e-6)
    assert torch.equal(stats.out, lla_attention(**operands, backend=backend))


def test_rows_that_see_nothing(backend):
    operands = problem(kv_len=60)
    stats = lla_attention_with_stats(**operands, backend=backend)
    assert (stats.lse[:, :40] == -torch.inf).all()
    assert stats.lse[:, 40:].isfinite().all()
    for name in ("out", "residual", "iterations"):
        assert not getattr(stats, name)[:, :40].any(), name


@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("data", ["iid", "steep"])
def test_residual_of_conjugate_gradients(backend, data, rtol):
    operands = problem(data)
    stats = lla_attention_with_stats(**operands, solver="cg", rtol=rtol, max_iters=500, backend=backend)
    # The iterations follow their residual by recursion: it drifts from the true one by a rounding or two.
    assert float(stats.residual.max()) <= 1.05 * rtol


@pytest.mark.parametrize("solver", ["auto", "direct"])
@pytest.mark.parametrize("data", ["iid", "steep", "far"])
def test_residual_of_other_solvers(backend, data, solver):
    ridge = 0.1
    stats = lla_attention_with_stats(**problem(data, ridge=ridge), solver=solver, backend=backend)
    # A stable solver leaves some roundings of |Cov| |g| / |b| <= |Cov| / ridge; |Cov| is about 4.
    assert float(stats.residual.max()) <= 20 * torch.finfo(torch.float32).eps * 4 / ridge


def test_iterations(backend):
    limit = 2 * 32 + 16
    means = []
    for ridge in (10.0, 1.0, 0.1, 0.01):
        stats = lla_attention_with_stats(**problem(ridge=ridge), solver="cg", rtol=1e-4, backend=backend)
        assert stats.iterations.dtype == torch.int32
        assert 0 <= int(stats.iterations.min()) <= int(stats.iterations.max()) <= limit
        means.append(float(stats.iterations.double().mean()))
    assert means == sorted(means)
    assert means[0] < means[-1]
    direct = lla_attention_with_stats(**problem(), solver="direct", backend=backend)
    assert not direct.iterations.any()


def test_iterations_follow_the_tolerance_and_the_limit(backend):
    loose, tight = (
        lla_attention_with_stats(**problem(), solver="cg", rtol=rtol, backend=backend).iterations
        for rtol in (1e-1, 1e-5)
    )
    assert (loose <= tight).all()
    limited = lla_attention_with_stats(**problem(), solver="cg", max_iters=3, backend=backend)
    assert int(limited.iterations.max()) == 3
    assert float(limited.residual.max()) > 1e-3


@pytest.mark.parametrize("max_iters", [1, 3])
def test_weights_sum_to_one_without_convergence(backend, max_iters):
    operands = problem("steep", ridge=0.01)
    operands["v"] = torch.full_like(operands["v"], 1.7)
    out = lla_attention(**operands, solver="cg", max_iters=max_iters, backend=backend)
    assert_within_budget(out, torch.full_like(out, 1.7).double(), torch.float32, 0.01)


def test_first_row_is_the_first_value(backend):
    operands = problem(ridge=0.01)
    out = lla_attention(**operands, backend=backend)
    torch.testing.assert_close(out[:, 0], operands["v"][:, 0].repeat_interleave(2, 1), rtol=1e-6, atol=0)


def test_zero_gate_is_softmax_attention(backend):
    operands = problem()
    operands["gate"] = torch.zeros_like(operands["gate"])
    out = lla_attention(**operands, backend=backend)
    expected = softmax_attention(*(operands[name].double() for name in ("q", "k", "v")), backend="reference")
    assert_within_budget(out, expected, torch.float32, None)


def test_stats_of_parallax(backend):
    operands = problem(ridge=None, probe=True)
    stats = parallax_attention_with_stats(**operands, backend=backend)
    assert stats.lse.isfinite().all()
    assert not stats.residual.any()
    assert not stats.iterations.any()


def test_stats_of_packed_sequences(backend):
    operands = problem(batch=1)
    dense = lla_attention_with_stats(**operands, backend=backend)
    packed = {name: t[0] for name, t in operands.items()}
    packed = lla_attention_varlen_with_stats(**packed, cu_seqlens=torch.tensor([0, 100]), backend=backend)
    for name, t in packed._asdict().items():
        assert torch.equal(t, getattr(dense, name)[0]), name


def test_only_the_output_carries_a_gradient(backend):
    operands = problem()
    operands["q"].requires_grad_()
    stats = lla_attention_with_stats(**operands, backend=backend)
    assert stats.out.requires_grad
    assert not any(t.requires_grad for t in stats[1:])
