"""Errors against float64, ours and the published algorithm's."""

from __future__ import annotations

from baselines.published import published_attention
from torch import Tensor

from flashlla import lla_attention
from flashlla.testing.numerics import error_norm_ratio, evaluate
from gpu.calls import operands
from gpu.speed import LOOSE

RIDGES = (1.0, 0.1, 0.01)
HEADS = 4


def sizes(session) -> tuple[tuple[int, ...], int]:
    """Head dimensions and the length."""
    if session.interpreted:
        return (16,), 64
    return ((64,), 1024) if session.quick else ((64, 128), 1024)


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
    dims, n = sizes(session)
    heads, ridges = (1, RIDGES[1:2]) if session.interpreted else (HEADS, RIDGES)
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
