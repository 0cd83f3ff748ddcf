"""How many products of a query with a key a pass takes, for shares of the arithmetic rate.

Two counts for every pass. *Executed*: what the kernels do, a second term of an operand being a product of its
own. *Useful*: what the formulas of docs/performance.md ask for, with three products an iteration, since a
kernel without memory for weights has to redo the logits. In both an iteration counts for all rows of a tile
until the last one has converged. A product takes ``2 d`` operations a visible pair; masked pairs,
exponentials and sums count as nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

USEFUL = {"softmax": (2, 5), "parallax": (4, 8), "lla": (4, 10)}  # forward and backward, without iterations
USEFUL_ITERATION = 3


class Products(NamedTuple):
    """Products a visible pair: some in any case, and some for every iteration."""

    fixed: float
    iteration: float = 0.0

    def total(self, iterations: float) -> float:
        return self.fixed + self.iteration * iterations


def executed(name: str, constants: dict) -> Products | None:
    """Products of one launch, None for a kernel that sweeps nothing or that is not known here."""
    terms, probe, f = (constants.get(c, 0) for c in ("TERMS", "PROBE_TERMS", "F_TERMS"))
    solved = constants.get("SOLVED", False) or f > 0
    iterations = 2 + terms
    kbar = 0 if solved else terms
    return {
        "probe_fwd": Products(1 + terms, iterations),
        "apply_fwd": Products(1 + terms + (probe + terms if probe else 0)),
        "adjoint_bwd": Products(2 + terms + kbar, iterations if solved else 0),
        "rows_bwd": Products(3 + probe + f + (1 if probe else 0)),  # with a probe, p y in two terms
        "keys_bwd": Products(4 + probe + f + (1 if probe else 0) + (1 if f else 0)),
    }.get(name)


def executed_products(launches: list[tuple[str, dict]]) -> tuple[Products, Products]:
    """Products of the forward and the backward pass of a call."""
    forward, backward = Products(0), Products(0)
    for name, constants in launches:
        found = executed(name, constants)
        if found is None:
            continue
        if name.endswith("_fwd"):
            forward = Products(forward.fixed + found.fixed, forward.iteration + found.iteration)
        else:
            backward = Products(backward.fixed + found.fixed, backward.iteration + found.iteration)
    return forward, backward


def useful_products(kind: str) -> tuple[Products, Products]:
    """The same of what the formulas ask for."""
    iteration = USEFUL_ITERATION if kind == "lla" else 0
    forward, backward = USEFUL[kind]
    return Products(forward, iteration), Products(backward, iteration)


# ---- iterations ------------------------------------------------------------------------------------------


def tile_rows(launches: list[tuple[str, dict]]) -> int:
    """Rows of a tile of the solver."""
    return max((constants["BLOCK_M"] for name, constants in launches if name == "probe_fwd"), default=64)


class Iterations(NamedTuple):
    """Of rows (mean), and of tiles: mean weighted by visible pairs, and most."""

    rows: float
    tiles: float
    most: int


def summarise(iterations: Tensor, tile: int, few: int) -> Iterations:
    """Summary of ``[batch, seq, heads]`` iterations of a causal call, without the rows that see few keys.

    Those are a launch of their own, in float64, and a vanishing part of the pairs.
    """
    n = iterations.shape[1]
    many = torch.arange(1, n + 1, device=iterations.device) > few
    iterations = torch.where(many[:, None], iterations, 0)
    padded = torch.nn.functional.pad(iterations.movedim(1, -1), (0, -n % tile))
    of_tiles = padded.unflatten(-1, (-1, tile)).amax(-1).double().flatten(0, -2).mean(0)
    seen = many * torch.arange(1, n + 1, dtype=torch.float64, device=iterations.device)
    pairs = torch.nn.functional.pad(seen, (0, -n % tile)).unflatten(0, (-1, tile)).sum(-1)
    mean = float((of_tiles * pairs).sum() / pairs.sum())
    rows = float(iterations.double().sum(1).mean() / many.sum())
    return Iterations(rows, mean, int(iterations.max()))


def emulated(
    x: dict[str, Tensor], ridge: float, rtol: float, tile: int, few: int
) -> tuple[Iterations, Iterations]:
    """Iterations of both solves of the first head, by the kernel's recurrence in float64 on the same systems.

    The backward pass does not return how many its adjoint solve takes. Those of the forward pass come along
    as the witness: they can be compared with the returned ones.
    """
    q, k, v, do = (x[name][0, :, 0].double() for name in ("q", "k", "v", "do"))
    n, d = q.shape
    mask = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
    p = (q @ k.mT * d**-0.5).masked_fill_(mask, -torch.inf).softmax(-1)
    kbar, e = p @ k, do @ v.mT
    e = p * (e - (p * e).sum(-1, keepdim=True))
    h = e @ k - e.sum(-1, keepdim=True) * kbar

    def times(y: Tensor) -> Tensor:
        t = p * (y @ k.mT - (kbar * y).sum(-1, keepdim=True))
        return t @ k - kbar * t.sum(-1, keepdim=True) + ridge * y

    def solve(b: Tensor) -> Iterations:
        found = _iterations(times, b, rtol, 2 * d + 16, x["q"].dtype)
        return summarise(found[None, :, None], tile, few)

    return solve(q - kbar), solve(h)


def _iterations(
    times: Callable[[Tensor], Tensor], b: Tensor, rtol: float, limit: int, dtype: torch.dtype
) -> Tensor:
    """Iterations of every row of ``[rows, d]``, directions rounded to the operands' dtype as in kernels."""
    r, rr = b, (b * b).sum(-1)
    goal, norm = rr * rtol**2, rr.sqrt()
    direction = r / norm.clamp(min=1e-300)[:, None]
    active, taken = rr > goal, torch.zeros(b.shape[0], dtype=torch.int32, device=b.device)
    for _ in range(limit):
        if not active.any():
            break
        direction = direction.to(dtype).double()
        ad = times(direction)
        curvature = (direction * ad).sum(-1)
        step = torch.where(active & (curvature > 0), (r * direction).sum(-1) / curvature, 0.0)
        r = r - step[:, None] * ad
        rr = (r * r).sum(-1)
        new = rr.sqrt()
        moved = r / new.clamp(min=1e-300)[:, None] + (new / norm.clamp(min=1e-300))[:, None] * direction
        direction = torch.where(active[:, None], moved, direction)
        taken += active
        active, norm = active & (rr > goal), new
    return taken


def operations(products: float, n: int, dim: int, batch_heads: int) -> float:
    """Operations of a causal pass."""
    return products * 2 * dim * n * (n + 1) / 2 * batch_heads
