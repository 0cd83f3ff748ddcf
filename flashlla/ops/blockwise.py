"""Tiled PyTorch: any device and dtype, memory linear in the length, forward and backward.

Work is cut into tiles of query rows. A tile holds its weights over all visible keys (rows x keys), solves
for its probes by matrix products with these weights, and is done; all batch rows and heads go through
the products together. Grouped heads ride along as extra rows of the tile, so keys are never repeated.

All moments are taken of shifted keys. The shift is a mean of keys that every row of the tile sees, so that
nothing invisible, not even a NaN, reaches a row; tiles are therefore low at the start of a sequence and no
taller than half a window. Rows that see few keys are solved in key space, see ``ops.dual``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from flashlla.ops import dual, solver
from flashlla.ops.types import (
    Forward,
    Gradients,
    Layout,
    Options,
    Sequence,
    accumulation_dtype,
    contiguous_cache,
    sequences,
    visible_range,
)

TILE_ROWS = 64
FIRST_TILE_ROWS = 16
SHIFT_KEYS = 256  # a mean of so many keys is as good as one of all


class _Operands(NamedTuple):
    """The operands of one piece, ``[batch, rows, heads, ...]``."""

    q: Tensor
    k: Tensor
    v: Tensor
    probe: Tensor | None
    ridge: Tensor | None
    gate: Tensor


class _Tile(NamedTuple):
    """A tile of rows with the keys that it sees; ``m`` counts the rows of all heads of a group.

    q, probe ``[b, kv_heads, m, d]``; shifted k, v ``[b, kv_heads, keys, ...]``; p ``[b, kv_heads, m, keys]``;
    ridge, gate, lse ``[b, kv_heads, m]``; lo, hi ``[m]``. bad marks rows that read something which is not
    finite; what they read is zero here.
    """

    rows: slice
    keys: slice
    q: Tensor
    shift: Tensor
    k: Tensor
    v: Tensor
    probe: Tensor | None
    ridge: Tensor | None
    gate: Tensor
    p: Tensor
    lse: Tensor
    lo: Tensor
    hi: Tensor
    bad: Tensor


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    probe: Tensor | None,
    ridge: Tensor | None,
    gate: Tensor,
    layout: Layout,
    options: Options,
    stats: bool,
) -> Forward:
    """See ``flashlla.ops.types``."""
    k, v, layout = contiguous_cache(k, v, layout)
    out = _allocate(q, v)
    for piece in sequences(layout, q, k):
        operands = _piece(piece, _Operands(q, k, v, probe, ridge, gate))
        views = Forward(*(t[piece.batch, piece.q_rows] for t in out))
        for tile in _tiles(operands, options):
            _forward_tile(tile, views, options, stats)
    return out


def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    probe: Tensor | None,
    ridge: Tensor | None,
    gate: Tensor,
    kbar: Tensor,
    g: Tensor,
    layout: Layout,
    options: Options,
) -> Gradients:
    """See ``flashlla.ops.types``."""
    dtype = accumulation_dtype(q.dtype)

    def zeros(t: Tensor) -> Tensor:
        return torch.zeros(t.shape, dtype=dtype, device=q.device)

    grads = Gradients(
        dq=zeros(q),
        dk=zeros(k),
        dv=zeros(v),
        dprobe=None if probe is None else zeros(q),
        dridge=None if ridge is None else zeros(gate),
        dgate=zeros(gate),
    )
    for piece in sequences(layout, q, k):
        operands = _piece(piece, _Operands(q, k, v, probe, ridge, gate))
        rows, keys = (piece.batch, piece.q_rows), (piece.batch, piece.k_rows)
        views = Gradients(
            dq=grads.dq[rows],
            dk=grads.dk[keys],
            dv=grads.dv[keys],
            dprobe=_at(grads.dprobe, rows),
            dridge=_at(grads.dridge, rows),
            dgate=_at(grads.dgate, rows),
        )
        for tile in _tiles(operands, options):
            _backward_tile(tile, do[rows], kbar[rows], g[rows], views, options)
    casts = {"dq": q, "dk": k, "dv": v, "dprobe": q}
    return grads._replace(
        **{
            name: t.to(casts[name].dtype)
            for name, t in grads._asdict().items()
            if name in casts and t is not None
        }
    )


def _allocate(q: Tensor, v: Tensor) -> Forward:
    dtype = accumulation_dtype(q.dtype)
    rows = q.shape[:3]

    def zeros(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=q.device)

    return Forward(
        o=zeros(*rows, v.shape[-1], dtype=q.dtype),
        lse=zeros(*rows) - torch.inf,
        kbar=zeros(*q.shape),
        g=zeros(*q.shape),
        residual=zeros(*rows),
        iterations=zeros(*rows, dtype=torch.int32),
    )


def _piece(piece: Sequence, operands: _Operands) -> _Operands:
    rows, keys = (piece.batch, piece.q_rows), (piece.batch, piece.k_rows)
    q, k, v, probe, ridge, gate = operands
    return _Operands(
        q=q[rows],
        k=k[keys],
        v=v[keys],
        probe=_at(probe, rows),
        ridge=_at(ridge, rows),
        gate=gate[rows],
    )


def _at(t: Tensor | None, index: tuple[slice, slice]) -> Tensor | None:
    return None if t is None else t[index]


def _rows_first(t: Tensor, kv_heads: int) -> Tensor:
    """``[b, rows, heads, ...]`` to ``[b, kv_heads, group * rows, ...]``."""
    return rearrange(t, "b t (h g) ... -> b h (g t) ...", h=kv_heads)


def _rows_back(t: Tensor, rows: slice) -> Tensor:
    """The inverse of ``_rows_first``."""
    return rearrange(t, "b h (g t) ... -> b t (h g) ...", t=rows.stop - rows.start)


def _tiles(operands: _Operands, options: Options) -> Iterator[_Tile]:
    q = operands.q
    q_len, kv_len, window = q.shape[1], operands.k.shape[1], options.window_size
    lo, hi = visible_range(q_len, kv_len, options.causal, window, q.device)
    bounds = list(zip(lo.tolist(), hi.tolist(), strict=True))
    stop = 0
    while (start := stop) < q_len:
        height = min(TILE_ROWS, max(FIRST_TILE_ROWS, bounds[start][1] - bounds[start][0]))
        if 0 < window < kv_len:
            height = min(height, max(1, window // 2))
        stop = min(start + height, q_len)
        rows, keys = slice(start, stop), slice(bounds[start][0], bounds[stop - 1][1])
        if keys.start < keys.stop and q.shape[0]:
            first_seen = next(i for i in range(start, stop) if bounds[i][1] > bounds[i][0])
            common = slice(bounds[stop - 1][0], bounds[first_seen][1])
            yield _load_tile(operands, options.scale, rows, keys, common, lo[rows], hi[rows])


def _load_tile(
    operands: _Operands, scale: float, rows: slice, keys: slice, common: slice, lo: Tensor, hi: Tensor
) -> _Tile:
    dtype, kv_heads = accumulation_dtype(operands.q.dtype), operands.k.shape[2]
    group = operands.q.shape[2] // kv_heads

    def own_rows(t: Tensor) -> Tensor:
        return _rows_first(t[:, rows], kv_heads).to(dtype)

    lo, hi = ((t - keys.start).repeat(group) for t in (lo, hi))
    q, gate = own_rows(operands.q), own_rows(operands.gate)
    probe = None if operands.probe is None else own_rows(operands.probe)
    ridge = None if operands.ridge is None else own_rows(operands.ridge)
    k, v = (rearrange(t[:, keys], "b s h d -> b h s d").to(dtype) for t in (operands.k, operands.v))
    k, v, bad = _sanitise(k, v, lo, hi)
    for t in (q, probe, gate[..., None]):
        if t is not None:
            bad = bad | ~t.isfinite().all(-1)
    bad = bad & (lo < hi)  # a row that sees nothing has output 0, whatever it asks
    q, gate = q.masked_fill(bad[..., None], 0.0), gate.masked_fill(bad, 0.0)
    probe = None if probe is None else probe.masked_fill(bad[..., None], 0.0)
    last = slice(max(common.start, common.stop - SHIFT_KEYS) - keys.start, common.stop - keys.start)
    shift = k[..., last, :].mean(-2, keepdim=True)
    k = k - shift
    p, lse = _weights(q, k, shift, scale, lo, hi)
    return _Tile(rows, keys, q, shift, k, v, probe, ridge, gate, p, lse, lo, hi, bad)


def _sanitise(k: Tensor, v: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values with non-finite ones zeroed, and the rows that see one of these.

    A masked entry still meets a weight of 0 in a matrix product, and 0 times NaN is NaN.
    """
    broken = ~(k.isfinite().all(-1) & v.isfinite().all(-1))
    before = torch.nn.functional.pad(broken.cumsum(-1), (1, 0))
    bad = before[..., hi] > before[..., lo]
    k, v = (t.masked_fill(broken[..., None], 0.0) for t in (k, v))
    return k, v, bad


def _weights(
    q: Tensor, k: Tensor, shift: Tensor, scale: float, lo: Tensor, hi: Tensor
) -> tuple[Tensor, Tensor]:
    """Softmax weights and lse of a tile; weights of rows that see nothing are 0."""
    key = torch.arange(k.shape[-2], device=k.device)
    visible = (key >= lo[:, None]) & (key < hi[:, None])
    s = (scale * (q @ k.mT)).masked_fill(~visible, -torch.inf)
    top = s.amax(-1, keepdim=True).masked_fill((lo == hi)[:, None], 0.0)
    w = (s - top).exp()
    total = w.sum(-1, keepdim=True)
    lse = (top + total.log() + scale * (q @ shift.mT))[..., 0]
    return w / total.clamp(min=torch.finfo(w.dtype).tiny), lse


def _matvec(tile: _Tile, ridge: Tensor, kbar: Tensor, x: Tensor) -> Tensor:
    """``(Cov + ridge I) x`` for every row, with no covariance formed; centred before and after weighting."""
    t = tile.p * (x @ tile.k.mT - (kbar * x).sum(-1, keepdim=True))
    return t @ tile.k - kbar * t.sum(-1, keepdim=True) + ridge[..., None] * x


def _solve(tile: _Tile, ridge: Tensor, kbar: Tensor, b: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Probe (or its adjoint) of every row, and the iterations that it took."""
    limit = solver.iteration_limit(options.solver, b.shape[-1], options.max_iters)
    x, iterations, converged = solver.conjugate_gradients(
        lambda y: _matvec(tile, ridge, kbar, y), b, options.rtol, limit, may_give_up=options.solver == "auto"
    )
    if options.solver != "cg" and not converged.all():
        x = torch.where(converged[..., None], x, solver.direct(solver.covariance(tile.p, tile.k), ridge, b))
    return x, iterations


def _right_hand_side(tile: _Tile, kbar: Tensor) -> Tensor:
    b = tile.q - tile.shift - kbar
    return b.masked_fill((tile.bad | (tile.lo == tile.hi))[..., None], 0.0)


def _without(b: Tensor, system: dual.KeySpace | None) -> Tensor:
    """Right-hand sides with those of the rows in key space zeroed: they cost the other solvers nothing."""
    return b if system is None else b.index_fill(-2, system.rows, 0.0)


def _centred(tile: _Tile, kbar: Tensor, x: Tensor) -> Tensor:
    """``(k_j - kbar_i) . x_i``, ``[..., rows, keys]``; their mean, 0 up to rounding, is taken out as well."""
    c = x @ tile.k.mT - (x * kbar).sum(-1, keepdim=True)
    return c - (tile.p * c).sum(-1, keepdim=True)


def _forward_tile(tile: _Tile, out: Forward, options: Options, stats: bool) -> None:
    rows = tile.rows
    # Rounded weights sum to 1 only nearly; the rest would count times the distance of kbar from the shift.
    kbar = tile.p @ tile.k / tile.p.sum(-1, keepdim=True).clamp(min=torch.finfo(tile.p.dtype).tiny)
    weights = tile.p
    g, ridge = tile.probe, tile.ridge
    if ridge is not None:
        system = dual.key_space(tile.p, tile.k, kbar, ridge, tile.lo, tile.hi)
        b = _right_hand_side(tile, kbar)
        g, iterations = _solve(tile, ridge, kbar, _without(b, system), options)
        c = _centred(tile, kbar, g)
        if system is not None:
            g, c = dual.insert_probe(system, dual.solve_probe(system, b), b, g, c)
        out.iterations[:, rows] = _rows_back(iterations, rows)
        if stats:
            norm = b.norm(dim=-1)
            residual = (b - _matvec(tile, ridge, kbar, g)).norm(dim=-1) / norm.clamp(
                min=torch.finfo(norm.dtype).tiny
            )
            out.residual[:, rows] = _rows_back(residual, rows)
    elif g is not None:
        c = _centred(tile, kbar, g)
    if g is not None:
        weights = tile.p * (1 + tile.gate[..., None] * c)
        out.g[:, rows] = _rows_back(g, rows)
    o = (weights @ tile.v).masked_fill(tile.bad[..., None], torch.nan)
    out.o[:, rows] = _rows_back(o, rows).to(out.o.dtype)
    out.lse[:, rows] = _rows_back(tile.lse.masked_fill(tile.bad, torch.nan), rows)
    out.kbar[:, rows] = _rows_back(kbar, rows)


def _backward_tile(
    tile: _Tile, do: Tensor, kbar: Tensor, g: Tensor, grads: Gradients, options: Options
) -> None:
    """The formulas of ``reference.attention_backward`` on one tile."""
    rows, kv_heads = tile.rows, tile.k.shape[1]
    do, kbar, g = (_rows_first(t[:, rows], kv_heads).to(tile.q.dtype) for t in (do, kbar, g))
    bad = tile.bad | (~do.isfinite().all(-1) & (tile.lo < tile.hi))
    # Bad rows must not reach the keys that they do not see; what they do see is marked at the end.
    tile = tile._replace(p=tile.p.masked_fill(bad[..., None], 0.0))
    do, p, gate = do.masked_fill(bad[..., None], 0.0), tile.p, tile.gate[..., None]

    e = do @ tile.v.mT
    e = e - (p * e).sum(-1, keepdim=True)
    weighted = p * e
    h = weighted @ tile.k - weighted.sum(-1, keepdim=True) * kbar
    c = _centred(tile, kbar, g)
    results = {}
    f, u = torch.zeros_like(g), torch.zeros_like(c)
    if tile.ridge is not None:
        f, u, c, f_dot_g = _adjoint(tile, tile.ridge, kbar, gate * e, gate * h, c, options)
        results["dridge"] = -f_dot_g
    y = e * (1 + gate * c) - u * (1 + c)
    ds = options.scale * p * (y - (p * y).sum(-1, keepdim=True))

    dk = ds.mT @ tile.q + (p * (gate * e - u)).mT @ g - (p * (1 + c)).mT @ f
    dv = (p * (1 + gate * c)).mT @ do
    results |= {"dq": ds @ tile.k + f, "dgate": (weighted * c).sum(-1)}
    if tile.probe is not None:
        results["dprobe"] = gate * h
    for name, value in results.items():
        mask = bad if value.dim() == bad.dim() else bad[..., None]
        getattr(grads, name)[:, rows] = _rows_back(value.masked_fill(mask, torch.nan), rows)
    for target, part in ((grads.dk, dk), (grads.dv, dv)):
        part = part.masked_fill(_seen_by(bad, tile)[..., None], torch.nan)
        target[:, tile.keys] += rearrange(part, "b h s d -> b s h d")


def _adjoint(
    tile: _Tile, ridge: Tensor, kbar: Tensor, gated_e: Tensor, rhs: Tensor, c: Tensor, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """f, its centred products u, the products c of g, and f . g, rows in key space included."""
    system = dual.key_space(tile.p, tile.k, kbar, ridge, tile.lo, tile.hi)
    f, _ = _solve(tile, ridge, kbar, _without(rhs, system), options)
    u = _centred(tile, kbar, f)
    # f . g from the keys: the products with g and f are known better than g and f themselves.
    f_dot_g = (tile.p * c * (gated_e - u)).sum(-1) / ridge
    if system is not None:
        z = dual.solve_probe(system, _right_hand_side(tile, kbar))
        f, u, f_dot_g = dual.insert_adjoint(system, z, gated_e, f, u, f_dot_g)
        c = dual.insert_products(system, z, c)
    return f, u, c, f_dot_g


def _seen_by(bad: Tensor, tile: _Tile) -> Tensor:
    """Keys of the tile that a bad row sees, ``[b, kv_heads, keys]``."""
    key = torch.arange(tile.k.shape[-2], device=bad.device)
    visible = (key >= tile.lo[:, None]) & (key < tile.hi[:, None])
    return (bad[..., None] & visible).any(-2) if bad.any() else torch.zeros_like(visible[0])
