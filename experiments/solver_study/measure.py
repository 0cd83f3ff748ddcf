"""What the solver does in a model: its iterations, and what it costs to stop it early."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flashlla import lla_attention, lla_attention_with_stats
from flashlla.models import LanguageModel
from flashlla.testing.numerics import error_norm_ratio

from .model import Operands, attention_layers

CAPS = (2, 4, 8, 16, 32)  # fixed numbers of iterations; the last is the default of the published code
TOLERANCES = {"": 1e-4, "_loose": 1e-2}  # suffixes of columns, and the relative residuals they stand for
QUANTILES = {"median": 0.5, "q95": 0.95, "max": 1.0}
MOST = 1024  # iterations that a row may use; one that has used all of them did not converge
UNREACHED = 1e-7  # a tolerance for calls that are to use all of their iterations


def lengths_up_to(longest: int, head_dim: int) -> list[int]:
    """Twice the head dimension, and its doubles."""
    lengths = [2 * head_dim]
    while 2 * lengths[-1] <= longest:
        lengths.append(2 * lengths[-1])
    return lengths


@torch.no_grad()
def solver_rows(operands: Operands, longest: int) -> Iterator[dict[str, Any]]:
    """A row of the table for every length and every cap.

    The row of a length is about the queries that see more than half as many keys, up to the length itself.
    Those that see at most 1.25 head_dim keys are left out: flashlla solves them without iterations.
    """
    q, k, v, ridge = operands
    head_dim = q.shape[-1]
    exact = lla_attention(q, k, v, ridge=ridge, solver="direct")
    stopped = {
        cap: lla_attention(q, k, v, ridge=ridge, solver="cg", rtol=UNREACHED, max_iters=cap) for cap in CAPS
    }
    iterations = {
        suffix: lla_attention_with_stats(
            q, k, v, ridge=ridge, solver="cg", rtol=rtol, max_iters=MOST
        ).iterations
        for suffix, rtol in TOLERANCES.items()
    }
    for length in lengths_up_to(longest, head_dim):
        seen = slice(max(length // 2, head_dim + head_dim // 4), length)
        quantiles = {
            name + suffix: torch.quantile(found[:, seen].double(), level).item()
            for suffix, found in iterations.items()
            for name, level in QUANTILES.items()
        }
        for cap, out in stopped.items():
            error = error_norm_ratio(out[:, seen], exact[:, seen])
            yield {"length": length, "cap": cap, "error": float(f"{error:.3g}"), **quantiles}


@torch.no_grad()
def losses(
    model: LanguageModel, tokens: Tensor, targets: Tensor, caps: Sequence[int]
) -> dict[int | None, float]:
    """Nats a byte with the solvers of all layers stopped after each cap; under None, with exact solutions."""

    def loss(**solver) -> float:
        for layer in attention_layers(model):
            vars(layer).update(solver)
        return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten()).item()

    stopped = {cap: loss(solver="cg", rtol=UNREACHED, max_iters=cap) for cap in caps}
    return stopped | {None: loss(solver="auto", rtol=None, max_iters=None)}
