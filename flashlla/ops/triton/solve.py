"""Moments of the keys, and the probe by conjugate gradients: ``g = (Cov + ridge I)^-1 (q - kbar)``.

An iteration sweeps the keys once: ``t_j = p_j (k_j - kbar) . x`` from the logits and one more product, then
``sum_j t_j k_j - (sum_j t_j) kbar``. The direction x is rounded to the dtype of the keys first and *is*
then the direction; t is split in two terms unless the tolerance is looser than its rounding. With exact
keys the products are therefore those of exact arithmetic to about float32, whatever the dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from flashlla.ops.triton._common import (
    LOG2_E,
    UNSPECIALIZED,
    Keys,
    Sequences,
    accumulate,
    all_finite,
    bounds,
    combine,
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
    own_rows,
    product,
    row_offsets,
    scalar_rows,
    sees_broken,
    split,
    split_product,
    state_rows,
    sweep,
    whole_scale,
)

# ---- moments ---------------------------------------------------------------------------------------------


class MomentsContext(NamedTuple):
    q: tl.tensor
    scale: tl.tensor
    lo: tl.tensor
    hi: tl.tensor
    keys: Keys
    columns: tl.tensor
    dims: tl.tensor


class Moments(NamedTuple):
    top: tl.tensor  # running maximum of the logits, in powers of two
    total: tl.tensor  # sum of weights
    k: tl.tensor  # weighted sum of keys


@triton.jit
def online_weights(s, top, lo, hi, columns, MASKED: tl.constexpr):
    """Weights relative to a new running maximum, that maximum, and the factor for sums so far."""
    if MASKED:
        s = tl.where((columns >= lo[:, None]) & (columns < hi[:, None]), s, -float("inf"))
    new = tl.maximum(top, tl.max(s, 1))
    safe = tl.where(new == -float("inf"), 0.0, new)
    return tl.exp2(s - safe[:, None]), new, tl.exp2(top - safe)


@triton.jit
def moments_block(
    state,
    context,
    start,
    MASKED: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    TERMS: tl.constexpr,
    PROBE_TERMS: tl.constexpr,
):
    columns, _, k = load_keys(
        context.keys, start, context.columns, context.dims, context.q.dtype, DIM, MASKED
    )
    s = product(context.q, tl.trans(k), state.k.dtype) * context.scale
    w, top, shrink = online_weights(s, state.top, context.lo, context.hi, columns[None, :], MASKED)
    hi, lo, w = split(w, k.dtype, TERMS)
    total = state.total * shrink + tl.sum(w, 1)
    return Moments(top, total, accumulate(state.k * shrink[:, None], hi, lo, k, TERMS))


# ---- products with the covariance ------------------------------------------------------------------------


class CovarianceContext(NamedTuple):
    q: tl.tensor
    scale: tl.tensor
    lse: tl.tensor  # log2 of the sum of exponentials; rows that see nothing hold 0
    lo: tl.tensor
    hi: tl.tensor
    keys: Keys
    columns: tl.tensor
    dims: tl.tensor
    x: tl.tensor  # hi and lo of the vectors that are multiplied
    x_lo: tl.tensor
    x_mean: tl.tensor  # kbar . x


class CovarianceSums(NamedTuple):
    k: tl.tensor  # sum of t k
    total: tl.tensor  # sum of t


@triton.jit
def weights(q, k, scale, lse, lo, hi, columns, ACC: tl.constexpr, MASKED: tl.constexpr):
    """Softmax weights of a block, of which lse is known; 0 under the mask."""
    p = tl.exp2(product(q, tl.trans(k), ACC) * scale - lse[:, None])
    if MASKED:
        p = tl.where((columns >= lo[:, None]) & (columns < hi[:, None]), p, 0.0)
    return p


@triton.jit
def covariance_block(
    state,
    context,
    start,
    MASKED: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    TERMS: tl.constexpr,
    PROBE_TERMS: tl.constexpr,
):
    columns, _, k = load_keys(
        context.keys, start, context.columns, context.dims, context.q.dtype, DIM, MASKED
    )
    ACC: tl.constexpr = state.k.dtype
    p = weights(
        context.q, k, context.scale, context.lse, context.lo, context.hi, columns[None, :], ACC, MASKED
    )
    c = split_product(context.x, context.x_lo, tl.trans(k), ACC, PROBE_TERMS)
    hi, lo, t = split(p * (c - context.x_mean[:, None]), k.dtype, TERMS)
    return CovarianceSums(accumulate(state.k, hi, lo, k, TERMS), state.total + tl.sum(t, 1))


@triton.jit
def covariance_times(
    x,
    q,
    scale,
    lse,
    lo,
    hi,
    keys,
    columns,
    dims,
    kbar,
    ridge,
    span,
    DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    TERMS: tl.constexpr,
    X_TERMS: tl.constexpr,
):
    """``(Cov + ridge I) x`` for every row; centred before the keys are weighted and once more after."""
    x_hi, x_lo, used = split(x, q.dtype, X_TERMS)
    context = CovarianceContext(
        q, scale, lse, lo, hi, keys, columns, dims, x_hi, x_lo, tl.sum(kbar * used, 1)
    )
    zero = CovarianceSums(tl.zeros_like(x), tl.zeros_like(lse))
    sums = sweep(covariance_block, zero, context, span, columns.shape[0], WINDOW, DIM, DIM, TERMS, X_TERMS)
    return sums.k - sums.total[:, None] * kbar + ridge[:, None] * used


@triton.jit
def conjugate_gradients(
    b,
    q,
    scale,
    lse,
    lo,
    hi,
    keys,
    columns,
    dims,
    kbar,
    ridge,
    span,
    rtol,
    max_iters,
    DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    TERMS: tl.constexpr,
):
    """Solve ``(Cov + ridge I) x = b`` for the rows of a tile, until the last of them has ``|r| <= rtol |b|``.

    A row stops changing when its own residual is small enough, so its bits do not depend on its neighbours.
    Directions are kept at about unit norm, where float16 has its digits. Returns x and the iterations of
    rows.
    """
    x, r = tl.zeros_like(b), b
    rr = tl.sum(r * r, 1)
    goal = rr * rtol * rtol
    norm = tl.sqrt(rr)
    d = r / tl.where(norm > 0, norm, 1.0)[:, None]
    active = rr > goal
    iterations = tl.zeros_like(lse).to(tl.int32)
    iteration = 0
    while (iteration < max_iters) & (tl.max(active.to(tl.int32), 0) > 0):
        d = narrow(d, q.dtype).to(b.dtype)
        ad = covariance_times(
            d, q, scale, lse, lo, hi, keys, columns, dims, kbar, ridge, span, DIM, WINDOW, TERMS, 1
        )
        curvature = tl.sum(d * ad, 1)
        moving = active & (curvature > 0)
        step = tl.where(moving, tl.sum(r * d, 1) / tl.where(moving, curvature, 1.0), 0.0)[:, None]
        x += step * d
        r -= step * ad
        rr = tl.sum(r * r, 1)
        new = tl.sqrt(rr)
        moved = r / tl.where(new > 0, new, 1.0)[:, None] + (new / tl.where(norm > 0, norm, 1.0))[:, None] * d
        d = tl.where(active[:, None], moved, d)
        iterations += active.to(tl.int32)
        active = active & (rr > goal)
        norm = new
        iteration += 1
    return x, iterations


# ---- kernels ---------------------------------------------------------------------------------------------


@triton.jit
def store_split(
    p, offsets, x, unit, exists, dims, DIM: tl.constexpr, OPERAND: tl.constexpr, TERMS: tl.constexpr
):
    """Store ``x / unit`` as rows of TERMS times DIM numbers of dtype OPERAND: all hi, then all lo."""
    hi, lo, _ = split(x / unit[:, None], OPERAND, TERMS)
    pointers = p + offsets[:, None] * (TERMS * DIM) + dims[None, :]
    mask = exists[:, None] & (dims < DIM)[None, :]
    tl.store(pointers, hi, mask=mask)
    if TERMS == 2:
        tl.store(pointers + DIM, lo, mask=mask)


@triton.jit
def load_probe(p_g, offsets, stride_lo, exists, dims, DIM: tl.constexpr, PROBE_TERMS: tl.constexpr):
    """hi and lo of probes stored by ``solve.store_split``, or a given probe twice."""
    pointers = p_g + offsets[:, None] + dims[None, :]
    mask = exists[:, None] & (dims < DIM)[None, :]
    g = tl.load(pointers, mask=mask, other=0.0)
    g_lo = g
    if PROBE_TERMS == 2:
        g_lo = tl.load(pointers + stride_lo, mask=mask, other=0.0)
    return g, g_lo


@triton.jit(do_not_specialize=UNSPECIALIZED)
def probe_fwd_kernel(
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
    p_ridge,
    s_rb,
    s_rt,
    s_rh,
    p_gate,
    s_gb,
    s_gt,
    s_gh,
    p_broken,
    p_lse,
    p_kbar,
    p_g,
    p_iterations,
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
    rtol,
    max_iters,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
    TERMS: tl.constexpr,
    PROBE_TERMS: tl.constexpr,
    LAYOUT: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
):
    """kbar ``[rows, DIM]`` and lse ``[rows]`` (log2 of the sum of exponentials) in ACC, and the probe in
    units of 1 / ridge, split.
    """
    sequences = Sequences(q_len, k_len, p_cu_q, p_cu_k, p_lengths, p_tiles)
    place = locate(sequences, tl.program_id(0), tiles, heads, few, BLOCK_M, LAYOUT)
    if has_members(place, window, BLOCK_M, CAUSAL, WINDOW, ROWS) == 0:
        return
    keys = find_keys(place, heads, kv_heads, k_len, p_k, s_kb, s_kt, s_kh, p_v, s_vb, s_vt, s_vh, p_broken)
    span = key_span(place, window, BLOCK_M, BLOCK_N, CAUSAL, WINDOW)
    rows, dims, columns = place.first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    lo, hi = bounds(rows, place, window, CAUSAL, WINDOW)
    exists = members(place, rows, hi, ROWS)
    scale = whole_scale(scale_hi, scale_lo, ACC) * LOG2_E

    ridge = tl.load(p_ridge + row_offsets(place, rows, s_rb, s_rt, s_rh), mask=exists, other=1.0).to(ACC)
    gate = tl.load(p_gate + row_offsets(place, rows, s_gb, s_gt, s_gh), mask=exists, other=1.0)
    q = load_rows(first_row(p_q, place, s_qb, s_qt, s_qh), s_qt, rows, exists, dims, OPERAND, DIM, True)
    fine = all_finite(q.to(ACC)) & is_finite(gate) & is_finite(ridge) & (ridge > 0)
    fine = fine & (sees_broken(keys, lo, hi) == 0)
    q = tl.where(fine[:, None], q, 0.0).to(OPERAND)
    ridge = tl.where(fine, ridge, 1.0)

    zero = tl.zeros((BLOCK_M,), ACC)
    context = MomentsContext(q, scale, lo, hi, keys, columns, dims)
    state = Moments(zero - float("inf"), zero, tl.zeros((BLOCK_M, BLOCK_D), ACC))
    state = sweep(moments_block, state, context, span, BLOCK_N, WINDOW, DIM, DIM, TERMS, PROBE_TERMS)
    seen = fine & (lo < hi)
    weight = tl.where(seen, state.total, 1.0)
    lse = tl.where(seen, state.top + tl.log2(weight), 0.0)
    kbar = tl.where(seen[:, None], state.k / weight[:, None], 0.0)

    b = tl.where(seen[:, None], q.to(ACC) - kbar, 0.0)
    g, iterations = conjugate_gradients(
        b,
        q,
        scale,
        lse,
        lo,
        hi,
        keys,
        columns,
        dims,
        kbar,
        ridge,
        span,
        rtol,
        max_iters,
        DIM,
        WINDOW,
        TERMS,
    )

    offsets = own_rows(place, rows, total, heads)
    tl.store(p_iterations + offsets, iterations, mask=exists)
    tl.store(p_lse + scalar_rows(place, rows, total, heads, CAUSAL, ROWS), lse, mask=exists)
    offsets = state_rows(place, rows, total, heads, CAUSAL, ROWS)
    mask = exists[:, None] & (dims < DIM)[None, :]
    tl.store(p_kbar + offsets[:, None] * DIM + dims[None, :], kbar, mask=mask)
    store_split(p_g, offsets, g, 1.0 / ridge, exists, dims, DIM, OPERAND, PROBE_TERMS)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def residual_kernel(
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
    p_ridge,
    s_rb,
    s_rt,
    s_rh,
    p_broken,
    p_lse,
    p_kbar,
    p_g,
    p_residual,
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
    PROBE_TERMS: tl.constexpr,
    LAYOUT: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Relative residual ``|b - (Cov + ridge I) g| / |b|`` of every row, ``b = q - kbar``: one more sweep."""
    sequences = Sequences(q_len, k_len, p_cu_q, p_cu_k, p_lengths, p_tiles)
    place = locate(sequences, tl.program_id(0), tiles, heads, few, BLOCK_M, LAYOUT)
    if has_members(place, window, BLOCK_M, CAUSAL, WINDOW, ROWS) == 0:
        return
    keys = find_keys(place, heads, kv_heads, k_len, p_k, s_kb, s_kt, s_kh, p_v, s_vb, s_vt, s_vh, p_broken)
    span = key_span(place, window, BLOCK_M, BLOCK_N, CAUSAL, WINDOW)
    rows, dims, columns = place.first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    lo, hi = bounds(rows, place, window, CAUSAL, WINDOW)
    exists = members(place, rows, hi, ROWS)
    scale = whole_scale(scale_hi, scale_lo, ACC) * LOG2_E
    offsets = state_rows(place, rows, total, heads, CAUSAL, ROWS)
    mask = exists[:, None] & (dims < DIM)[None, :]

    ridge = tl.load(p_ridge + row_offsets(place, rows, s_rb, s_rt, s_rh), mask=exists, other=1.0).to(ACC)
    q = load_rows(first_row(p_q, place, s_qb, s_qt, s_qh), s_qt, rows, exists, dims, OPERAND, DIM, True)
    lse = tl.load(p_lse + scalar_rows(place, rows, total, heads, CAUSAL, ROWS), mask=exists, other=0.0)
    kbar = tl.load(p_kbar + offsets[:, None] * DIM + dims[None, :], mask=mask, other=0.0)
    g, g_lo = load_probe(p_g, offsets * (PROBE_TERMS * DIM), DIM, exists, dims, DIM, PROBE_TERMS)
    g = combine(g, g_lo, ACC, PROBE_TERMS) / ridge[:, None]
    ag = covariance_times(
        g, q, scale, lse, lo, hi, keys, columns, dims, kbar, ridge, span, DIM, WINDOW, TERMS, PROBE_TERMS
    )
    b = tl.where((lo < hi)[:, None], q.to(ACC) - kbar, 0.0)
    size = tl.sqrt(tl.sum(b * b, 1))
    residual = tl.sqrt(tl.sum((b - ag) * (b - ag), 1)) / tl.where(size > 0, size, 1.0)
    offsets = own_rows(place, rows, total, heads)
    tl.store(p_residual + offsets, tl.where(lo < hi, residual, 0.0), mask=exists)
