"""How much of the machine's arithmetic rate the kernels reach: needed operations a second over sgemm's.

Needed is what the formulas of docs/performance.md ask for over visible (query, key) pairs, with the
iterations that each row took. Rows in key space (those that see at most 1.25 head_dim keys) count by their
own formula, and the covariance of a row that went direct counts as nothing, as do masked pairs,
copies, packing and exponentials.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from _common import HEAD_DIM, THREADS, backward_of, check, in_threads, interleave, problem, threads
from torch import Tensor

from flashlla import lla_attention, lla_attention_with_stats
from flashlla.ops import solver

TOPIC = "Arithmetic rate, as a share of sgemm at 2048 x 2048"
RTOL = 1e-3  # errors of the solution, and so of the results, up to this size are asked for


def sgemm(n: int):
    """The yardstick as a call, and its operations."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    return lambda: a @ b, 2 * n**3


def needed_operations(iterations: Tensor, products: int, products_in_key_space: int) -> float:
    """Operations of a causal pass over ``[batch, n, heads]`` rows, value_dim = head_dim.

    Every product takes 2 d operations a visible pair, an iteration two of them. A row in key space forms and
    factors its own n x n system instead: n^2 d + n^3 / 3.
    """
    seen = torch.arange(1, iterations.shape[1] + 1, dtype=torch.float64)[None, :, None]
    in_key_space = seen <= HEAD_DIM + HEAD_DIM // 4
    iterated = 2 * HEAD_DIM * seen * (products + 2 * iterations)
    dual = 2 * HEAD_DIM * seen * products_in_key_space + seen**2 * HEAD_DIM + seen**3 / 3
    return float(torch.where(in_key_space, dual, iterated).sum())


@cache
def emulated_iterations(n: int, heads: int) -> tuple[Tensor, Tensor]:
    """Iterations of both solves, emulated in float64 on the same systems by plain matrix products.

    The backward pass does not return how many its adjoint solve takes. The forward count comes along as the
    witness: it can be compared with the returned one.
    """
    operands, do = problem(n, heads)
    tensors = [t.double() for t in (*operands.values(), do)]
    counts = [_emulated_head(*(t[0, :, head] for t in tensors)) for head in range(heads)]
    forward, backward = (torch.stack(list(count), -1)[None] for count in zip(*counts, strict=True))
    return forward, backward


def _emulated_head(q: Tensor, k: Tensor, v: Tensor, ridge: Tensor, do: Tensor) -> tuple[Tensor, Tensor]:
    n = q.shape[0]
    mask = torch.ones(n, n, dtype=torch.bool).triu(1)
    p = (q @ k.mT * HEAD_DIM**-0.5).masked_fill(mask, -torch.inf).softmax(-1)
    kbar, e = p @ k, do @ v.mT
    weighted = p * (e - (p * e).sum(-1, keepdim=True))
    h = weighted @ k - weighted.sum(-1, keepdim=True) * kbar

    def matvec(x: Tensor) -> Tensor:
        t = p * (x @ k.mT - (kbar * x).sum(-1, keepdim=True))
        return t @ k - kbar * t.sum(-1, keepdim=True) + ridge[:, None] * x

    def iterations(b: Tensor) -> Tensor:
        b = b.clone()
        b[: HEAD_DIM + HEAD_DIM // 4] = 0  # solved in key space
        limit = solver.iteration_limit("auto", HEAD_DIM, 2 * HEAD_DIM + 16)
        return solver.conjugate_gradients(matvec, b, RTOL, limit, may_give_up=True)[1]

    return iterations(q - kbar), iterations(h)


def mean_of_iterated(iterations: Tensor) -> str:
    """Mean over the rows that iterate, in words."""
    return f"{float(iterations[iterations > 0].double().mean()):.2f}"


@pytest.mark.parametrize("count", THREADS)
def test_forward(benchmark, report, shrink, count):
    n, heads = shrink(2048), 8
    operands, _ = problem(n, heads)
    error = check(lla_attention, operands, backend="cpu", rtol=RTOL, loosest=RTOL)["out"]
    iterations = lla_attention_with_stats(**operands, backend="cpu", rtol=RTOL).iterations
    needed = needed_operations(iterations, products=4, products_in_key_space=3)
    yardstick, yardstick_operations = sgemm(2048)
    with threads(count):
        times = interleave(
            benchmark,
            {"lla": lambda: lla_attention(**operands, backend="cpu", rtol=RTOL), "sgemm": yardstick},
            rounds=7,
        )
    rate, bound = needed / times["lla"], yardstick_operations / times["sgemm"]
    report(
        TOPIC,
        f"forward, {in_threads(count)}",
        rate / bound,
        at_least=0.8,
        detail={
            "GFLOP/s": f"{rate / 1e9:.1f} of {bound / 1e9:.1f}",
            "ms": f"{times['lla'] * 1e3:.0f}",
            "iterations": mean_of_iterated(iterations),
            "error": f"{error:.1e}",
        },
    )


@pytest.mark.parametrize("count", THREADS)
def test_backward(benchmark, report, shrink, count):
    n, heads = shrink(2048), 8
    operands, do = problem(n, heads)
    errors = check(lla_attention, operands, do, backend="cpu", rtol=RTOL, loosest=RTOL)
    forward, adjoint = emulated_iterations(n, heads)
    returned = lla_attention_with_stats(**operands, backend="cpu", rtol=RTOL).iterations
    needed = needed_operations(adjoint, products=10, products_in_key_space=7)
    yardstick, yardstick_operations = sgemm(2048)
    with threads(count):
        backward = backward_of(lla_attention, operands, do, backend="cpu", rtol=RTOL)
        times = interleave(benchmark, {"lla": backward, "sgemm": yardstick}, rounds=5)
    rate, bound = needed / times["lla"], yardstick_operations / times["sgemm"]
    report(
        TOPIC,
        f"backward, {in_threads(count)}",
        rate / bound,
        at_least=0.6,
        detail={
            "GFLOP/s": f"{rate / 1e9:.1f} of {bound / 1e9:.1f}",
            "ms": f"{times['lla'] * 1e3:.0f}",
            "iterations (emulated)": mean_of_iterated(adjoint),
            "emulated/returned forward iterations": f"{float(forward.sum() / returned.sum()):.3f}",
            "worst error": f"{max(errors.values()):.1e}",
        },
    )
