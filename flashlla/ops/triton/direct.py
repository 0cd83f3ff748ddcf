"""The direct solver: explicit covariances by matrix products, then one small dense system a row.

All covariances of a tile come from one product of its weights with the entries of ``(k_j - s)(k_j - s)^T``,
where s is a key that every row of the tile sees (0 in float64, which does not need it); ``(kbar - s)(kbar -
s)^T`` is subtracted afterwards. A row takes DIM^2 numbers, so rows go through scratch memory of fixed size,
a chunk of tiles at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashlla.ops.triton import _configs
from flashlla.ops.triton._common import (
    LOG2_E,
    UNSPECIALIZED,
    Keys,
    Sequences,
    bounds,
    find_keys,
    first_row,
    has_members,
    is_finite,
    key_span,
    load_keys,
    load_rows,
    locate,
    members,
    narrow,
    row_offsets,
    scalar_rows,
    state_rows,
    sweep,
    whole_scale,
)
from flashlla.ops.triton._launch import Problem, strides
from flashlla.ops.triton.solve import weights

SCRATCH_BYTES = 64 * 2**20
WIDTH = 256  # columns of one product: so many entries of k k^T at a time


# ---- covariances -----------------------------------------------------------------------------------------


class CovarianceContext(NamedTuple):
    q: tl.tensor
    scale: tl.tensor
    lse: tl.tensor
    lo: tl.tensor
    hi: tl.tensor
    keys: Keys
    columns: tl.tensor
    dims: tl.tensor
    some: tl.tensor  # the dimensions that this program multiplies with all others
    shift: tl.tensor
    some_shift: tl.tensor


@triton.jit
def outer_block(
    total,
    context,
    start,
    MASKED: tl.constexpr,
    DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    TERMS: tl.constexpr,
    PROBE_TERMS: tl.constexpr,
):
    ACC: tl.constexpr = total.dtype
    columns, exists, k = load_keys(
        context.keys, start, context.columns, context.dims, context.q.dtype, DIM, MASKED
    )
    some = load_rows(context.keys.p_k, context.keys.s_k, columns, exists, context.some, ACC, DIM, True)
    p = weights(
        context.q, k, context.scale, context.lse, context.lo, context.hi, columns[None, :], ACC, MASKED
    )
    centred = k.to(ACC) - context.shift[None, :]
    some = some - context.some_shift[None, :]
    entries = tl.reshape(some[:, :, None] * centred[:, None, :], (k.shape[0], total.shape[1]))
    if ACC == tl.float64:
        return tl.dot(p, entries, total, out_dtype=ACC)
    else:
        return tl.dot(p, entries, total, input_precision=PRECISION)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def covariance_kernel(
    p_q,
    s_qb,
    s_qt,
    s_qh,
    p_k,
    s_kb,
    s_kt,
    s_kh,
    p_v,
    s_vb,
    s_vt,
    s_vh,
    p_broken,
    p_lse,
    p_kbar,
    p_scratch,
    first_tile,
    exact_rows,
    q_len,
    k_len,
    p_cu_q,
    p_cu_k,
    p_lengths,
    p_tiles,
    tiles,
    total,
    heads,
    kv_heads,
    window,
    few,
    scale_hi,
    scale_lo,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
    SOME: tl.constexpr,
    FULL_PRECISION: tl.constexpr,
    LAYOUT: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
):
    """SOME rows of the covariance of every row of a tile, ``[BLOCK_M, SOME, BLOCK_D]`` of its scratch.

    Rows that see fewer than exact_rows keys have singular covariances and get products of full precision.
    """
    part, chunk_tile = tl.program_id(0) % (BLOCK_D // SOME), tl.program_id(0) // (BLOCK_D // SOME)
    sequences = Sequences(q_len, k_len, p_cu_q, p_cu_k, p_lengths, p_tiles)
    place = locate(sequences, first_tile + chunk_tile, tiles, heads, few, BLOCK_M, LAYOUT)
    if has_members(place, window, BLOCK_M, CAUSAL, WINDOW, ROWS) == 0:
        return
    keys = find_keys(place, heads, kv_heads, k_len, p_k, s_kb, s_kt, s_kh, p_v, s_vb, s_vt, s_vh, p_broken)
    span = key_span(place, window, BLOCK_M, BLOCK_N, CAUSAL, WINDOW)
    rows, dims, columns = place.first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    some = part * SOME + tl.arange(0, SOME)
    lo, hi = bounds(rows, place, window, CAUSAL, WINDOW)
    exists = members(place, rows, hi, ROWS)
    scale = whole_scale(scale_hi, scale_lo, ACC) * LOG2_E

    q = load_rows(first_row(p_q, place, s_qb, s_qt, s_qh), s_qt, rows, exists, dims, ACC, DIM, True)
    q = tl.where(is_finite(q), q, 0.0).to(OPERAND)
    at = state_rows(place, rows, total, heads, CAUSAL, ROWS)
    lse = tl.load(p_lse + scalar_rows(place, rows, total, heads, CAUSAL, ROWS), mask=exists, other=0.0)
    _, first_hi = bounds(place.first, place, window, CAUSAL, WINDOW)
    shift, some_shift = tl.zeros((BLOCK_D,), ACC), tl.zeros((SOME,), ACC)
    if tl.float64 != ACC:
        last_lo, _ = bounds(tl.minimum(place.first + BLOCK_M, place.q_len) - 1, place, window, CAUSAL, WINDOW)
        shared_key = tl.maximum(first_hi - 1, 0)
        unbroken = tl.load(keys.p_broken + shared_key + 1) == tl.load(keys.p_broken + shared_key)
        known = tl.where((first_hi > last_lo) & unbroken, DIM, 0)  # no key that all rows see: no shift
        p_shift = keys.p_k + shared_key.to(tl.int64) * keys.s_k
        shift = tl.load(p_shift + dims, mask=dims < known, other=0.0).to(ACC)
        some_shift = tl.load(p_shift + some, mask=some < known, other=0.0).to(ACC)

    context = CovarianceContext(q, scale, lse, lo, hi, keys, columns, dims, some, shift, some_shift)
    cov = tl.zeros((BLOCK_M, SOME * BLOCK_D), ACC)
    if first_hi < exact_rows:
        cov = sweep(outer_block, cov, context, span, BLOCK_N, WINDOW, DIM, FULL_PRECISION, 1, 0)
    else:
        cov = sweep(outer_block, cov, context, span, BLOCK_N, WINDOW, DIM, "tf32", 1, 0)

    p_row = p_kbar + at[:, None] * DIM
    mean = (
        tl.load(p_row + dims[None, :], mask=exists[:, None] & (dims < DIM)[None, :], other=0.0)
        - shift[None, :]
    )
    some_mean = tl.load(p_row + some[None, :], mask=exists[:, None] & (some < DIM)[None, :], other=0.0)
    some_mean -= some_shift[None, :]
    cov -= tl.reshape(some_mean[:, :, None] * mean[:, None, :], (BLOCK_M, SOME * BLOCK_D))
    slots = (chunk_tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    entries = part * SOME * BLOCK_D + tl.arange(0, SOME * BLOCK_D)
    tl.store(p_scratch + slots[:, None] * (BLOCK_D * BLOCK_D) + entries[None, :], cov)


# ---- systems ---------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=UNSPECIALIZED)
def system_kernel(
    p_x,
    p_ridge,
    s_rb,
    s_rt,
    s_rh,
    p_scratch,
    first_tile,
    rtol,
    q_len,
    k_len,
    p_cu_q,
    p_cu_k,
    p_lengths,
    p_tiles,
    tiles,
    total,
    heads,
    kv_heads,
    window,
    few,
    scale_hi,
    scale_lo,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
    TERMS: tl.constexpr,
    MAX_ITERS: tl.constexpr,
    LAYOUT: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Solve ``(Cov + ridge I) x = b`` for one row, in place of b, by conjugate gradients on the explicit
    matrix.
    """
    slot = tl.program_id(0)
    sequences = Sequences(q_len, k_len, p_cu_q, p_cu_k, p_lengths, p_tiles)
    place = locate(sequences, first_tile + slot // BLOCK_M, tiles, heads, few, BLOCK_M, LAYOUT)
    row = place.first + slot % BLOCK_M
    _, hi = bounds(row, place, window, CAUSAL, WINDOW)
    if members(place, row, hi, ROWS) == 0:
        return
    dims = tl.arange(0, BLOCK_D)
    at = state_rows(place, row, total, heads, CAUSAL, ROWS)
    ridge = tl.load(p_ridge + row_offsets(place, row, s_rb, s_rt, s_rh)).to(ACC)
    p_row = p_x + at * (TERMS * DIM) + dims
    b = tl.load(p_row, mask=dims < DIM, other=0.0).to(ACC)
    if TERMS == 2:
        b += tl.load(p_row + DIM, mask=dims < DIM, other=0.0).to(ACC)
    b = b / ridge
    if tl.sum(b * b, 0) > 0:  # not an empty or a broken row
        p_cov = p_scratch + slot.to(tl.int64) * (BLOCK_D * BLOCK_D)
        system = tl.load(p_cov + dims[:, None] * BLOCK_D + dims[None, :])
        x, r, d = tl.zeros_like(b), b, b
        rr = tl.sum(r * r, 0)
        goal = rr * rtol * rtol
        iteration = 0
        while (iteration < MAX_ITERS) & (rr > goal):
            ad = tl.sum(system * d[None, :], 1) + ridge * d
            curvature = tl.sum(d * ad, 0)
            step = tl.where(curvature > 0, rr / curvature, 0.0)
            x += step * d
            r -= step * ad
            new = tl.where(
                curvature > 0, tl.sum(r * r, 0), 0.0
            )  # nothing more to gain from a singular matrix
            d = r + (new / rr) * d
            rr = new
            iteration += 1
        x = x * ridge
        x_hi = narrow(x, OPERAND)
        tl.store(p_row, x_hi, mask=dims < DIM)
        if TERMS == 2:
            tl.store(p_row + DIM, narrow(x - x_hi.to(ACC), OPERAND), mask=dims < DIM)


# ---- launches --------------------------------------------------------------------------------------------


def solve(problem: Problem, x: Tensor, lse: Tensor, kbar: Tensor, ridge: Tensor) -> None:
    """Replace right-hand sides by solutions, both split and in units of 1 / ridge.

    Args:
        x: ``[batch, q_len, heads, terms * DIM]``, as ``solve.store_split`` writes it.
        lse: log2 of the sum of exponentials of every row, 0 where nothing is visible.
        kbar: weighted means of the keys.
    """
    block, item = problem.block_d, torch.finfo(problem.dtype).bits // 8
    rows = problem.config("covariance").BLOCK_M
    some = max(1, min(block, WIDTH // block))
    chunk = max(1, SCRATCH_BYTES // (rows * block * block * item))
    total = problem.tiles(rows, over_keys=False)[0] * problem.q.shape[0] * problem.q.shape[2]
    if total == 0:
        return
    chunk = min(chunk, total)
    scratch = torch.empty(chunk * rows, block, block, dtype=problem.dtype, device=x.device)
    # float16 results are judged by a budget that single tf32 products do not leave room for.
    exact = 2 * problem.q.shape[-1] if problem.q.dtype == torch.bfloat16 else problem.k.shape[1] + 1
    for first in range(0, total, chunk):
        tiles = min(chunk, total - first)
        problem.launch(
            covariance_kernel,
            "covariance",
            *(*problem.tensors, problem.broken, lse, kbar, scratch, first, exact),
            grid=tiles * (block // some),
            SOME=some,
            FULL_PRECISION=_configs.full_precision(problem.q.device),
        )
        problem.launch(
            system_kernel,
            "system",
            *(x, ridge, *strides(ridge), scratch, first, 4 * torch.finfo(problem.dtype).eps),
            grid=tiles * rows,
            TERMS=problem.probe_terms,
            MAX_ITERS=8 * block,
        )
