"""Batched solvers for ``(Cov + ridge I) x = b``, one small symmetric system a query, in PyTorch.

Rows are independent: a row stops changing when its own residual is small enough, so its result does not
depend on which rows are computed beside it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# "auto": forming a covariance costs about as much as 0.4 * head_dim iterations (measured with the compiled
# kernels); a row goes direct when its first iterations promise that it would need more.
DIRECT_COST = 0.4
TRIAL = 8
DIRECT_BELOW_HEAD_DIM = 16


def iteration_limit(solver: str, head_dim: int, max_iters: int) -> int:
    """Conjugate-gradient iterations that the solver may use before it gives up or goes direct."""
    if solver == "cg":
        return max_iters
    if solver == "direct" or head_dim <= DIRECT_BELOW_HEAD_DIM:
        return 0
    return min(max_iters, max(TRIAL, int(DIRECT_COST * head_dim)))


def conjugate_gradients(
    matvec: Callable[[Tensor], Tensor], b: Tensor, rtol: float, max_iters: int, may_give_up: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve ``A x = b`` for every row of b from the start vector 0.

    Args:
        matvec: ``A`` applied to ``[..., rows, d]``, a symmetric positive definite system a row.
        b: right-hand sides, ``[..., rows, d]``.
        rtol: a row is done when ``|r| <= rtol |b|``.
        may_give_up: stop a row after ``TRIAL`` iterations if at their rate it would not converge in time.

    Returns:
        x like b, the iterations of every row (int32) and whether it converged (bool), ``[..., rows]``.
    """
    x, r, p = torch.zeros_like(b), b, b
    rr = first = (b * b).sum(-1)
    goal = first * rtol**2
    active = rr > goal
    iterations = torch.zeros_like(rr, dtype=torch.int32)
    for iteration in range(1, max_iters + 1):
        if not active.any():
            break
        ap = matvec(p)
        curvature = (p * ap).sum(-1)
        alpha = torch.where(active & (curvature > 0), rr / curvature, 0.0)[..., None]
        x = x + alpha * p
        r = r - alpha * ap
        rr_new = (r * r).sum(-1)
        beta = torch.where(active, rr_new / rr, 0.0)[..., None]
        p = r + beta * p
        rr = torch.where(active, rr_new, rr)
        iterations += active
        active = active & (rr > goal)
        if may_give_up and iteration == TRIAL:
            active = active & ((first / rr).log() * max_iters > (first / goal).log() * TRIAL)
    return x, iterations, rr <= goal


def covariance(weights: Tensor, k: Tensor, chunk: int = 256) -> Tensor:
    """``sum_j w_ij (k_j - kbar_i)(k_j - kbar_i)^T`` for every row, ``[..., rows, d, d]``, in float64.

    All covariances of a tile come from one product of the weights with the distinct entries of
    ``k_j k_j^T``, a chunk of keys at a time. The mean is subtracted afterwards, which in float32 would lose
    the digits that count wherever the weights sit on a few keys far from the others.
    """
    d = k.shape[-1]
    weights, k = weights.double(), k.double()
    total = weights @ k
    scaled = total / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    row, col = torch.triu_indices(d, d, device=k.device)
    packed = -total[..., row] * scaled[..., col]
    for start in range(0, k.shape[-2], chunk):
        part = k[..., start : start + chunk, :]
        packed = packed + weights[..., start : start + chunk] @ (part[..., row] * part[..., col])
    full = packed.new_empty(*packed.shape[:-1], d, d)
    full[..., row, col] = packed
    full[..., col, row] = packed
    return full


def direct(cov: Tensor, ridge: Tensor, b: Tensor) -> Tensor:
    """Solve ``(cov + ridge I) x = b`` by Cholesky in the dtype of cov; ridge is ``[..., rows]``."""
    system = cov + torch.diag_embed(ridge[..., None].expand_as(b).to(cov.dtype))
    factor = torch.linalg.cholesky(system)
    return torch.cholesky_solve(b[..., None].to(cov.dtype), factor)[..., 0].to(b.dtype)
