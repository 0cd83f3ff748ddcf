"""Memory beyond operands and results, and whether a very long sequence runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flashlla import lla_attention
from flashlla.testing.numerics import error_norm_ratio
from gpu.calls import Contender, call_of, member, operands, rivals
from gpu.counts import operations
from gpu.speed import BOTH, FORWARD, last_tuned

LAST_ROWS = 16  # of the long sequence, which are held against the definition
HARMLESS = 0.02  # error of such a row; the budgets are for whole tensors


def sizes(session) -> tuple[int, int, int, int]:
    """Head dimension, length and heads of the comparison, and the long length, which has one head."""
    if session.interpreted:
        return 16, 32, 1, 64
    return (64, 2048, 16, 16384) if session.quick else (64, 8192, 16, 131072)


def peak_beyond(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes at the peak beyond what was there before the call and beyond its results; None on a CPU."""
    if device.type != "cuda":
        call()
        return None
    result = call()  # compiles, and allocates what stays
    del result
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = call()
    torch.cuda.synchronize(device)
    results = [result] if isinstance(result, Tensor) else result
    own = sum(t.untyped_storage().nbytes() for t in results)
    return torch.cuda.max_memory_allocated(device) - before - own


def measure(session) -> None:
    """Ours, the published algorithm's, and PyTorch's flash kernel's, which keeps one number a row."""
    dim, n, heads, _ = sizes(session)
    x = operands(n, dim, 1, heads, session.device)
    flash = [rival for rival in rivals(quick=True)[0] if rival.name == "sdpa flash"]
    ours = [member("softmax"), member("parallax"), member("lla", 1.0)]
    for contender in [*flash, *ours, last_tuned(session, dim)]:
        for direction in (FORWARD, BOTH):
            with session.attempt(
                "memory", contender=contender.name, d=dim, n=n, heads=heads, direction=direction
            ) as row:
                if contender.ours:
                    session.require_trusted(contender.kind, dim, contender.ridge)
                elif contender.kind == "published":
                    session.require_trusted("published", dim)
                row["bytes"] = peak_beyond(call_of(contender, x, direction == BOTH), session.device)
                row["times_q"] = None if row["bytes"] is None else row["bytes"] / x["q"].nbytes


def run_long(session) -> None:
    """A sequence whose n x n weights fit no memory: time, memory, and its last rows against float64."""
    dim, _, _, n = sizes(session)
    contender = member("lla", 1.0)
    x = operands(n, dim, 1, 1, session.device)
    with session.attempt("long", contender=contender.name, d=dim, n=n) as row:
        session.require_trusted("lla", dim, 1.0)
        session.require_time_for(operations(contender.products[1], n, dim, 1))
        row["error_of_last_rows"] = _error_of_last_rows(contender, x)
        if not row["error_of_last_rows"] <= HARMLESS:
            raise ArithmeticError("the last rows are wrong")
        row["ms"] = session.timer.measure(call_of(contender, x, backward=True)).ms
        row["bytes"] = peak_beyond(call_of(contender, x, backward=True), session.device)


def _error_of_last_rows(contender: Contender, x: dict[str, Tensor]) -> float:
    """The mask is aligned to the bottom right, so the last rows are a call of their own."""
    out = call_of(contender, x, backward=False)()[:, -LAST_ROWS:]
    q, k, v = (t.double() for t in (x["q"][:, -LAST_ROWS:], x["k"], x["v"]))
    exact = lla_attention(q, k, v, ridge=contender.ridge, backend="blockwise", rtol=1e-9)
    return error_norm_ratio(out, exact)
