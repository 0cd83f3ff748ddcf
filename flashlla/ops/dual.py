"""Rows that see few keys, solved in key space.

Where a row sees no more keys than there are dimensions, its covariance has a null space, and the probe
``g = (C + ridge I)^-1 b`` has a part of size ``|b| / ridge`` in it. That part meets no key, so it does not
count, but in float32 the products ``k . g`` have to cancel it and lose the digits that do. With
``X = diag(sqrt p) (K - kbar)`` the same weights come from a system over the keys that has no such part::

    M = X X^T + ridge I,    z = M^-1 X b,    t = M^-1 (gate sqrt(p) e)
    c = z / sqrt p,    g = (b - X^T z) / ridge
    f = X^T t,    u = gate e - ridge t / sqrt p,    f . g = t . z
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class KeySpace(NamedTuple):
    """The systems of the rows ``rows`` of a tile over its keys ``keys``.

    x ``[..., rows, keys, d]``; root (sqrt p) ``[..., rows, keys]``; factor (Cholesky of M)
    ``[..., rows, keys, keys]``; ridge ``[..., rows, 1]``.
    """

    rows: Tensor
    keys: slice
    x: Tensor
    root: Tensor
    factor: Tensor
    ridge: Tensor


def key_space(p: Tensor, k: Tensor, kbar: Tensor, ridge: Tensor, lo: Tensor, hi: Tensor) -> KeySpace | None:
    """The rows that see at most 1.25 head_dim keys (square systems are barely regular), or None."""
    d = k.shape[-1]
    seen = hi - lo
    rows = ((seen > 0) & (seen <= d + d // 4)).nonzero()[:, 0]
    if not rows.numel():
        return None
    keys = slice(int(lo[rows].min()), int(hi[rows].max()))
    root = p[..., rows, keys].sqrt()
    x = root[..., None] * (k[..., None, keys, :] - kbar[..., rows, None, :])
    ridge = ridge[..., rows, None]
    system = x @ x.mT + torch.diag_embed(ridge.expand_as(root))
    return KeySpace(rows, keys, x, root, torch.linalg.cholesky(system), ridge)


def _solve(system: KeySpace, b: Tensor) -> Tensor:
    """``M^-1 b`` for b orthogonal to sqrt p, as every right-hand side here is.

    M maps sqrt p to ridge sqrt p, so the solution is orthogonal as well, and what rounding leaves in that
    direction would grow by 1 / ridge.
    """

    def project(t: Tensor) -> Tensor:
        return t - system.root * (system.root * t).sum(-1, keepdim=True)

    return project(torch.cholesky_solve(project(b)[..., None], system.factor)[..., 0])


def solve_probe(system: KeySpace, b: Tensor) -> Tensor:
    """z for right-hand sides ``[..., all rows, d]``."""
    return _solve(system, (system.x @ b[..., system.rows, :, None])[..., 0])


def _to_dimensions(system: KeySpace, z: Tensor) -> Tensor:
    """``X^T z``."""
    return (system.x.mT @ z[..., None])[..., 0]


def insert_products(system: KeySpace, z: Tensor, c: Tensor) -> Tensor:
    """c ``[..., all rows, all keys]`` with ``z / sqrt p`` in rows in key space; 0 where a weight vanishes."""
    c = c.index_fill(-2, system.rows, 0.0)
    c[..., system.rows, system.keys] = torch.where(system.root > 0, z / system.root, 0.0)
    return c


def insert_probe(system: KeySpace, z: Tensor, b: Tensor, g: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """g and c with the rows in key space filled in."""
    g = g.index_copy(-2, system.rows, (b[..., system.rows, :] - _to_dimensions(system, z)) / system.ridge)
    return g, insert_products(system, z, c)


def insert_adjoint(
    system: KeySpace, z: Tensor, gated_e: Tensor, f: Tensor, u: Tensor, f_dot_g: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """f, u, f . g with rows in key space filled in; gated_e is ``gate e``, ``[..., all rows, all keys]``."""
    rhs = system.root * gated_e[..., system.rows, system.keys]
    t = _solve(system, rhs)
    f = f.index_copy(-2, system.rows, _to_dimensions(system, t))
    f_dot_g = f_dot_g.index_copy(-1, system.rows, (t * z).sum(-1))
    return f, insert_products(system, rhs - system.ridge * t, u), f_dot_g
