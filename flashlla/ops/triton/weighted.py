"""Decoding, given probes (Parallax) and none (softmax): weighted sums of the values, no moments of the keys.

The rows of a key head, all its query heads and new tokens, are one tile, so that a key is loaded once. With
``c_j = k_j . g - c0`` for a number c0 of about that size, a split yields ``sum w``, ``sum w v``,
``sum w c`` and ``sum w c v``; the splits merge exactly.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashlla.ops.triton._common import LN_2, LOG2_E, accumulate, all_finite, narrow, product, split
from flashlla.ops.triton.cached import UNSPECIALIZED, Cache, load_cached, split_size, visible


@triton.jit
def tile_range(p_lengths, batch, q_len, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Keys that any of the tokens sees."""
    lo, _ = visible(p_lengths, batch, q_len * 0, q_len, window, CAUSAL, WINDOW)
    _, hi = visible(p_lengths, batch, q_len - 1, q_len, window, CAUSAL, WINDOW)
    return lo, hi


@triton.jit
def load_whole(cache, rows, exists, dims, DIM: tl.constexpr, PAGED: tl.constexpr):
    """Rows of a cache, and which of them are not finite: these read as zeros, since 0 times NaN is NaN."""
    x = load_cached(cache, rows, exists, dims, DIM, PAGED)
    whole = all_finite(x.to(tl.float32))
    return tl.where(whole[:, None], x, 0.0), exists & (whole == 0)


@triton.jit
def load_queries(p, s_t, s_h, tokens, heads, exists, dims, DIM: tl.constexpr):
    """Rows of a query operand, ``[rows, dims]``."""
    offsets = tokens.to(tl.int64) * s_t + heads * s_h
    return tl.load(
        p + offsets[:, None] + dims[None, :], mask=exists[:, None] & (dims < DIM)[None, :], other=0.0
    )


@triton.jit(do_not_specialize=UNSPECIALIZED)
def weighted_kernel(
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
    p_lengths,
    p_table,
    s_table,
    page_size,
    p_probe,
    s_pb,
    s_pt,
    s_ph,
    p_stats,
    p_probe_stats,
    p_sums,
    q_len,
    heads,
    splits,
    window,
    kv_heads,
    scale,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    PAGED: tl.constexpr,
    GIVEN: tl.constexpr,
):
    """State of one split for a tile of the rows of a key head."""
    group = heads // kv_heads
    tiles = tl.cdiv(group * q_len, BLOCK_M)
    index = tl.program_id(0)
    tile, index = index % tiles, index // tiles
    i_split, index = index % splits, index // splits
    kv_head, batch = (index % kv_heads).to(tl.int64), (index // kv_heads).to(tl.int64)
    lo, hi = tile_range(p_lengths, batch, q_len, window, CAUSAL, WINDOW)
    size = split_size(hi - lo)
    begin = lo + i_split * size
    end = tl.minimum(begin + size, hi)
    if begin >= end:
        return

    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    exists, tokens, row_heads = rows < group * q_len, rows % q_len, kv_head * group + rows // q_len
    lo, hi = visible(p_lengths, batch, tokens, q_len, window, CAUSAL, WINDOW)
    columns, dims, value_dims = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    pages = p_table + batch * s_table
    keys = Cache(p_k + kv_head * s_kh, s_kb, s_kt, pages, page_size, batch)
    values = Cache(p_v + kv_head * s_vh, s_vb, s_vt, pages, page_size, batch)
    q = load_queries(p_q + batch * s_qb, s_qt, s_qh, tokens, row_heads, exists, dims, DIM)
    g, c0 = q, tl.zeros((BLOCK_M,), tl.float32)
    if GIVEN:
        g = load_queries(p_probe + batch * s_pb, s_pt, s_ph, tokens, row_heads, exists, dims, DIM)
        at = begin + columns
        k, _ = load_whole(keys, at, at < end, dims, DIM, PAGED)
        seen = (at[None, :] >= lo[:, None]) & (at < tl.minimum(hi[:, None], end))
        c0 = tl.max(tl.where(seen, product(g, tl.trans(k), tl.float32), -float("inf")), 1)
        c0 = tl.where(c0 == -float("inf"), 0.0, c0)

    top = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total, drift = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    broken_seen = tl.zeros((BLOCK_M,), tl.int32)
    v_sum, c_sum = tl.zeros((BLOCK_M, BLOCK_V), tl.float32), tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    for start in range(begin, end, BLOCK_N):
        at = start + columns
        k, k_broken = load_whole(keys, at, at < end, dims, DIM, PAGED)
        v, v_broken = load_whole(values, at, at < end, value_dims, VALUE_DIM, PAGED)
        seen = (at[None, :] >= lo[:, None]) & (at < tl.minimum(hi[:, None], end))
        broken_seen |= tl.max((seen & (k_broken | v_broken)[None, :]).to(tl.int32), 1)
        s = tl.where(seen, product(q, tl.trans(k), tl.float32) * (scale * LOG2_E), -float("inf"))
        new = tl.maximum(top, tl.max(s, 1))
        safe = tl.where(new == -float("inf"), 0.0, new)
        w, shrink = tl.exp2(s - safe[:, None]), tl.exp2(top - safe)
        top = new
        w_hi, w_lo, w = split(w, v.dtype, 2)
        total = total * shrink + tl.sum(w, 1)
        v_sum = accumulate(v_sum * shrink[:, None], w_hi, w_lo, v, 2)
        if GIVEN:
            c = tl.where(seen, w * (product(g, tl.trans(k), tl.float32) - c0[:, None]), 0.0)
            c_hi, c_lo, c = split(c, v.dtype, 2)
            drift = drift * shrink + tl.sum(c, 1)
            c_sum = accumulate(c_sum * shrink[:, None], c_hi, c_lo, v, 2)

    total = tl.where(broken_seen > 0, float("nan"), total)
    state = ((batch * q_len + tokens) * heads + row_heads) * splits + i_split
    tl.store(p_stats + 2 * state, top, mask=exists)
    tl.store(p_stats + 2 * state + 1, total, mask=exists)
    inside = exists[:, None] & (value_dims < VALUE_DIM)[None, :]
    p_sums += (2 * state * VALUE_DIM)[:, None] + value_dims[None, :]
    tl.store(p_sums, v_sum, mask=inside)
    if GIVEN:
        tl.store(p_probe_stats + 2 * state, c0, mask=exists)
        tl.store(p_probe_stats + 2 * state + 1, drift, mask=exists)
        tl.store(p_sums + VALUE_DIM, c_sum, mask=inside)


@triton.jit
def probe_sum(p_stats, p_probe_stats, state, top, centre):
    """``sum w (c - centre)`` of a split, what its own c lack to that, and the factor of its sums."""
    factor = tl.exp2(tl.load(p_stats + 2 * state) - top)
    missing = tl.load(p_probe_stats + 2 * state) - centre
    total = tl.load(p_stats + 2 * state + 1)
    return factor * (tl.load(p_probe_stats + 2 * state + 1) + missing * total), missing, factor


@triton.jit(do_not_specialize=UNSPECIALIZED)
def merge_weighted_kernel(
    p_gate,
    s_gb,
    s_gt,
    s_gh,
    p_stats,
    p_probe_stats,
    p_sums,
    p_lengths,
    p_o,
    p_lse,
    q_len,
    heads,
    splits,
    window,
    VALUE_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    GIVEN: tl.constexpr,
):
    """Output and lse of one row from the states of its splits."""
    row = tl.program_id(0).to(tl.int64)
    batch, token, head = row // (heads * q_len), row // heads % q_len, row % heads
    lo, hi = tile_range(p_lengths, batch, q_len, window, CAUSAL, WINDOW)
    first, count = row * splits, tl.cdiv(hi - lo, split_size(hi - lo))
    value_dims = tl.arange(0, BLOCK_V)
    inside = value_dims < VALUE_DIM

    top, total = -float("inf"), 0.0
    for state in range(first, first + count):
        top = tl.maximum(top, tl.load(p_stats + 2 * state))
    safe = tl.where(top == -float("inf"), 0.0, top)
    for state in range(first, first + count):
        total += tl.exp2(tl.load(p_stats + 2 * state) - safe) * tl.load(p_stats + 2 * state + 1)
    tl.store(p_lse + row, (top + tl.log2(total)) * LN_2)
    total = tl.where(total == 0, 1.0, total)  # nothing seen: the sums are 0 as well

    centre = 0.0
    if GIVEN:
        for state in range(first, first + count):
            centre += probe_sum(p_stats, p_probe_stats, state, safe, 0.0)[0] / total
    vbar, correction = tl.zeros((BLOCK_V,), tl.float32), tl.zeros((BLOCK_V,), tl.float32)
    drift = 0.0  # 0 up to rounding; the weights of a row sum to 1 without it
    for state in range(first, first + count):
        v_sum = tl.load(p_sums + 2 * state * VALUE_DIM + value_dims, mask=inside, other=0.0)
        if GIVEN:
            part, missing, factor = probe_sum(p_stats, p_probe_stats, state, safe, centre)
            c_sum = tl.load(p_sums + (2 * state + 1) * VALUE_DIM + value_dims, mask=inside, other=0.0)
            drift += part / total
            correction += factor * (c_sum + missing * v_sum)
        vbar += tl.exp2(tl.load(p_stats + 2 * state) - safe) * v_sum
    o = vbar / total
    if GIVEN:
        gate = tl.load(p_gate + batch * s_gb + token * s_gt + head * s_gh)
        o += gate * (correction / total - drift * o)
    o = tl.where(total == total, o, float("nan"))
    tl.store(p_o + row * VALUE_DIM + value_dims, narrow(o, p_o.dtype.element_ty), mask=inside)
