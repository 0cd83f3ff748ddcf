"""Errors against float64, ours and the published algorithm's, and what the two solvers cost."""

from __future__ import annotations

import torch
from baselines.published import published_attention
from torch import Tensor

from flashlla import lla_attention
from flashlla.testing.numerics import error_norm_ratio, evaluate
from gpu.calls import arguments, call_of, member, operands
from gpu.counts import operations
from gpu.speed import BOTH, FORWARD, LOOSE

RIDGES = (1.0, 0.1, 0.01)
HARD = (0.1, 0.01)
HEADS = 4


def sizes(session) -> tuple[tuple[int, ...], int, int]:
    """Head dimensions, the length at which errors are measured, and that at which solvers are timed."""
    if session.interpreted:
        return (16,), 64, 32
    return ((64,), 1024, 2048) if session.quick else ((64, 128), 1024, 4096)


def exact(x: dict[str, Tensor], ridge: float) -> dict[str, Tensor]:
    """Output and gradients in float64."""
    qkv, do = _operands(x)
    wide = {name: t.double() for name, t in qkv.items()}
    return evaluate(lla_attention, wide, do.double(), ridge=ridge, backend="blockwise", rtol=1e-10)


def _operands(x: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    return {name: x[name] for name in ("q", "k", "v")}, x["do"]


def errors(truth: dict[str, Tensor], result: dict[str, Tensor]) -> dict[str, float]:
    """Error norm ratios of the output and the gradients."""
    return {name: error_norm_ratio(result[name], truth[name]) for name in truth}


def measure(session) -> None:
    """Ours to the default and to a loose tolerance, and the published algorithm, at three ridges."""
    dims, n, _ = sizes(session)
    heads, ridges = (1, HARD[:1]) if session.interpreted else (HEADS, RIDGES)
    for dim in dims:
        x = operands(n, dim, 1, heads, session.device)
        qkv, do = _operands(x)
        for ridge in ridges:
            truth = exact(x, ridge)
            ways = {
                "lla": (lla_attention, {"backend": "triton"}),
                f"lla, rtol {LOOSE:g}": (lla_attention, {"backend": "triton", "rtol": LOOSE}),
                "published": (published_attention, {"configs": session.published.get(dim)}),
            }
            for name, (function, options) in ways.items():
                with session.attempt("accuracy", way=name, ridge=ridge, d=dim, n=n) as row:
                    session.require_no_crash("published" if name == "published" else "lla", dim)
                    row |= errors(truth, evaluate(function, qkv, do, ridge=ridge, **options))


def compare_solvers(session) -> None:
    """Time and error of conjugate gradients and of the direct solver, where systems are hard."""
    dims, short, long = sizes(session)
    for dim in dims:
        small = operands(short, dim, 1, 1 if session.interpreted else HEADS, session.device)
        large = operands(long, dim, session.batch, session.heads, session.device)
        for ridge in HARD[:1] if session.interpreted else HARD:
            truth = exact(small, ridge)["out"]
            for solver in ("cg", "direct"):
                contender = member("lla", ridge, solver=solver)
                with session.attempt(
                    "solvers", solver=solver, ridge=ridge, d=dim, n=long, error_at=short
                ) as row:
                    needed = operations(contender.products[1], long, dim, session.batch * session.heads)
                    variations = ("plain", "timed") if solver == "cg" else ("direct", "direct timed")
                    session.require_trusted("lla", dim, ridge, variations=variations)
                    session.require_time_for(needed)
                    with torch.no_grad():
                        out = contender.function(*arguments(contender, small))
                    row["error"] = error_norm_ratio(out, truth)
                    for direction in (FORWARD, BOTH):
                        timing = session.timer.measure(call_of(contender, large, direction == BOTH))
                        row[f"{direction} ms"] = timing.ms
