"""Decoding, solved probes: the states of all splits of a row become one, and the row's system is solved.

With the mean ``kbar`` of all keys, ``t = x0 - kbar`` and the sums of ``moments.py``, the keys of a split have
about kbar the second moment ``A + t a^T + a t^T + l t t^T``: only numbers of the size of the spread are ever
added up. The same goes for values.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashlla.ops.triton._common import LN_2, narrow
from flashlla.ops.triton.cached import UNSPECIALIZED, split_size, visible

SLICE = tl.constexpr(32)  # rows of a matrix that does not fit into the registers
TOGETHER = tl.constexpr(16)  # splits whose sums are read at once


@triton.jit
def factors_of(p_stats, first, count, top):
    """Of the ``TOGETHER`` splits from ``first`` on, those below ``count``: factors that make their weights
    relative to ``top``, and the sums of their weights so scaled. Of the others, zeros.
    """
    splits = tl.arange(0, TOGETHER)
    p_stats += 2 * (first + splits)
    factors = tl.exp2(tl.load(p_stats, mask=splits < count, other=-float("inf")) - top)
    return factors, factors * tl.load(p_stats + 1, mask=splits < count, other=0.0)


@triton.jit
def top_and_total(p_stats, first, count):
    """Largest logit and sum of weights of all splits."""
    splits = tl.arange(0, TOGETHER)
    top, total = -float("inf"), 0.0
    for done in range(0, count, TOGETHER):
        p_tops = p_stats + 2 * (first + done + splits)
        top = tl.maximum(top, tl.max(tl.load(p_tops, mask=splits < count - done, other=-float("inf")), 0))
    for done in range(0, count, TOGETHER):
        total += tl.sum(factors_of(p_stats, first + done, count - done, top)[1], 0)
    return top, total


@triton.jit
def mean_of_splits(p_stats, p_sums, first, count, top, total, dims, DIM: tl.constexpr):
    """Mean of all keys, or values, under their weights."""
    splits = tl.arange(0, TOGETHER)
    mean = tl.zeros((dims.shape[0],), tl.float32)
    for done in range(0, count, TOGETHER):
        factors, weights = factors_of(p_stats, first + done, count - done, top)
        offsets = 2 * (first + done + splits)[:, None] * DIM + dims[None, :]
        inside = (splits < count - done)[:, None] & (dims < DIM)[None, :]
        shifts = tl.load(p_sums + offsets, mask=inside, other=0.0)
        centred = tl.load(p_sums + offsets + DIM, mask=inside, other=0.0)
        mean += tl.sum(factors[:, None] * centred + weights[:, None] * shifts, 0)
    return mean / total


@triton.jit
def sums_of(p_sums, state, dims, DIM: tl.constexpr):
    """Shift and centred sum of a split."""
    shift = tl.load(p_sums + 2 * state * DIM + dims, mask=dims < DIM, other=0.0)
    return shift, tl.load(p_sums + (2 * state + 1) * DIM + dims, mask=dims < DIM, other=0.0)


@triton.jit
def splits_of(p_lengths, row, q_len, heads, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """How many splits a row ``[batch, token, head]`` has."""
    token = (row // heads % q_len).to(tl.int32)
    lo, hi = visible(p_lengths, row // (heads * q_len), token, q_len, window, CAUSAL, WINDOW)
    return tl.cdiv(hi - lo, split_size(hi - lo))


@triton.jit(do_not_specialize=UNSPECIALIZED)
def merge_kernel(
    p_stats,
    p_key_sums,
    p_value_sums,
    p_a,
    p_b,
    p_kbar,
    p_vbar,
    p_lse,
    p_lengths,
    q_len,
    heads,
    splits,
    window,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILES: tl.constexpr,
    ROWS_D: tl.constexpr,
    ROWS_V: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Means, and rows ``tile * ROWS_D`` on of the covariance of the keys and ``tile * ROWS_V`` on of that of
    values and keys. The covariances take the place of the row's first A and B.
    """
    tile, row = tl.program_id(0) % TILES, (tl.program_id(0) // TILES).to(tl.int64)
    first, count = row * splits, splits_of(p_lengths, row, q_len, heads, window, CAUSAL, WINDOW)
    if count == 0:
        if tile == 0:
            tl.store(p_lse + row, -float("inf"))
        return
    dims, dim_rows = tl.arange(0, BLOCK_D), tile * ROWS_D + tl.arange(0, ROWS_D)
    value_dims = tile * ROWS_V + tl.arange(0, ROWS_V)
    top, total = top_and_total(p_stats, first, count)
    kbar = mean_of_splits(p_stats, p_key_sums, first, count, top, total, dims, DIM)
    own_kbar = mean_of_splits(p_stats, p_key_sums, first, count, top, total, dim_rows, DIM)
    vbar = mean_of_splits(p_stats, p_value_sums, first, count, top, total, value_dims, VALUE_DIM)
    if tile == 0:
        tl.store(p_lse + row, (top + tl.log2(total)) * LN_2)
        tl.store(p_kbar + row * DIM + dims, kbar, mask=dims < DIM)
    tl.store(p_vbar + row * VALUE_DIM + value_dims, vbar, mask=value_dims < VALUE_DIM)

    p_a += dim_rows[:, None] * DIM + dims[None, :]
    p_b += value_dims[:, None] * DIM + dims[None, :]
    in_a = (dim_rows < DIM)[:, None] & (dims < DIM)[None, :]
    in_b = (value_dims < VALUE_DIM)[:, None] & (dims < DIM)[None, :]
    c, c_v = tl.zeros((ROWS_D, BLOCK_D), tl.float32), tl.zeros((ROWS_V, BLOCK_D), tl.float32)
    # Unrolled, so that the next states are on their way while one is added.
    for state in tl.range(first, first + count, loop_unroll_factor=4):
        factor = tl.exp2(tl.load(p_stats + 2 * state) - top)
        weight = factor * tl.load(p_stats + 2 * state + 1)
        shift, k_sum = sums_of(p_key_sums, state, dims, DIM)
        own_shift, own_sum = sums_of(p_key_sums, state, dim_rows, DIM)
        v_shift, v_sum = sums_of(p_value_sums, state, value_dims, VALUE_DIM)
        step, own_step, v_step = shift - kbar, own_shift - own_kbar, v_shift - vbar
        right = (factor * k_sum + weight * step)[None, :]
        c += factor * (
            tl.load(p_a + state * (DIM * DIM), mask=in_a, other=0.0) + own_sum[:, None] * step[None, :]
        )
        c += own_step[:, None] * right
        c_v += factor * (
            tl.load(p_b + state * (VALUE_DIM * DIM), mask=in_b, other=0.0) + v_sum[:, None] * step[None, :]
        )
        c_v += v_step[:, None] * right
    tl.store(p_a + first * (DIM * DIM), c / total, mask=in_a)
    tl.store(p_b + first * (VALUE_DIM * DIM), c_v / total, mask=in_b)


@triton.jit
def covariance_times(c, p_c, x, DIM: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr):
    """``C x`` of a symmetric matrix, which is c, or read from memory a slice of rows after the other."""
    if WHOLE:
        return tl.sum(c * x[None, :], 1)
    else:
        dims, rows = tl.arange(0, BLOCK_D), tl.arange(0, SLICE)
        sliced, number = tl.reshape(x, (BLOCK_D // SLICE, SLICE)), tl.arange(0, BLOCK_D // SLICE)
        y = tl.zeros((BLOCK_D,), tl.float32)
        for i in range(BLOCK_D // SLICE):
            own = tl.sum(tl.where(number[:, None] == i, sliced, 0.0), 0)
            at = rows + i * SLICE
            inside = (at < DIM)[:, None] & (dims < DIM)[None, :]
            part = tl.load(p_c + at[:, None] * DIM + dims[None, :], mask=inside, other=0.0)
            y += tl.sum(part * own[:, None], 0)
        return y


@triton.jit(do_not_specialize=UNSPECIALIZED)
def solve_kernel(
    p_q,
    s_qb,
    s_qt,
    s_qh,
    p_ridge,
    s_rb,
    s_rt,
    s_rh,
    p_gate,
    s_gb,
    s_gt,
    s_gh,
    p_a,
    p_b,
    p_kbar,
    p_vbar,
    p_lengths,
    p_o,
    p_iterations,
    q_len,
    heads,
    splits,
    window,
    rtol,
    max_iters,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    ROWS_V: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """``(C + ridge I) g = q - kbar`` by conjugate gradients in float32, and ``o = vbar + gate C_vk g``."""
    row = tl.program_id(0).to(tl.int64)
    batch, token, head = row // (heads * q_len), row // heads % q_len, row % heads
    dims = tl.arange(0, BLOCK_D)
    if splits_of(p_lengths, row, q_len, heads, window, CAUSAL, WINDOW) == 0:
        value_dims = tl.arange(0, BLOCK_V)
        tl.store(
            p_o + row * VALUE_DIM + value_dims, tl.zeros((BLOCK_V,), tl.float32), mask=value_dims < VALUE_DIM
        )
        return
    p_a += row * splits * (DIM * DIM)
    p_b += row * splits * (VALUE_DIM * DIM)
    ridge = tl.load(p_ridge + batch * s_rb + token * s_rt + head * s_rh)
    gate = tl.load(p_gate + batch * s_gb + token * s_gt + head * s_gh)
    q = tl.load(p_q + batch * s_qb + token * s_qt + head * s_qh + dims, mask=dims < DIM, other=0.0)
    c = 0.0
    if WHOLE:
        square = (dims < DIM)[:, None] & (dims < DIM)[None, :]
        c = tl.load(p_a + dims[:, None] * DIM + dims[None, :], mask=square, other=0.0)

    r = q.to(tl.float32) - tl.load(p_kbar + row * DIM + dims, mask=dims < DIM, other=0.0)
    # As in a prefill, a ridge that is not positive shows.
    g, p, norm = tl.where(ridge > 0, r * 0.0, float("nan")), r, tl.sum(r * r, 0)
    limit, i = rtol * rtol * norm, 0
    while (norm > limit) & (i < max_iters):
        y = covariance_times(c, p_a, p, DIM, BLOCK_D, WHOLE) + ridge * p
        step = norm / tl.sum(p * y, 0)
        g += step * p
        r -= step * y
        new = tl.sum(r * r, 0)
        p = r + (new / norm) * p
        norm = new
        i += 1
    tl.store(p_iterations + row, i)

    for start in range(0, VALUE_DIM, ROWS_V):
        value_dims = start + tl.arange(0, ROWS_V)
        inside = (value_dims < VALUE_DIM)[:, None] & (dims < DIM)[None, :]
        c_v = tl.load(p_b + value_dims[:, None] * DIM + dims[None, :], mask=inside, other=0.0)
        o = tl.load(p_vbar + row * VALUE_DIM + value_dims, mask=value_dims < VALUE_DIM, other=0.0)
        o += gate * tl.sum(c_v * g[None, :], 1)
        tl.store(
            p_o + row * VALUE_DIM + value_dims, narrow(o, p_o.dtype.element_ty), mask=value_dims < VALUE_DIM
        )
