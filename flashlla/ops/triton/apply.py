"""The output for a probe: ``o = sum_j p_j (1 + gate (k_j - kbar) . g) v_j`` in one online-softmax sweep.

The probe is one that ``solve.py`` found, Parallax's, or none; all three share this kernel. Products with
the probe are taken relative to that of one visible key, so that a mean that all keys share costs no digits,
and their mean is measured with the rounded weights and taken out at the end: weights sum to 1 for any
probe.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from flashlla.ops.triton._common import (
    LN_2,
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
    sees_broken,
    split,
    split_product,
    state_rows,
    sweep,
    whole_scale,
)
from flashlla.ops.triton.solve import load_probe, online_weights


class ApplyContext(NamedTuple):
    q: tl.tensor
    scale: tl.tensor
    lo: tl.tensor
    hi: tl.tensor
    keys: Keys
    columns: tl.tensor
    dims: tl.tensor
    value_dims: tl.tensor
    g: tl.tensor
    g_lo: tl.tensor
    unit: tl.tensor  # in which g is given
    reference: tl.tensor  # product of g with one visible key


class Applied(NamedTuple):
    top: tl.tensor
    exact: tl.tensor  # sum of weights w before they are rounded: what lse is the logarithm of
    total: tl.tensor  # sum of weights w
    mean: tl.tensor  # sum of w c
    v: tl.tensor  # sum of w v
    cv: tl.tensor  # sum of w c v


@triton.jit
def apply_block(
    state,
    context,
    start,
    MASKED: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    TERMS: tl.constexpr,
    PROBE_TERMS: tl.constexpr,
):
    OPERAND: tl.constexpr = context.q.dtype
    columns, exists, k = load_keys(context.keys, start, context.columns, context.dims, OPERAND, DIM, MASKED)
    v = load_rows(
        context.keys.p_v, context.keys.s_v, columns, exists, context.value_dims, OPERAND, VALUE_DIM, MASKED
    )
    ACC: tl.constexpr = state.v.dtype
    s = product(context.q, tl.trans(k), ACC) * context.scale
    w, top, shrink = online_weights(s, state.top, context.lo, context.hi, columns[None, :], MASKED)
    hi, lo, used = split(w, v.dtype, TERMS)
    exact = state.exact * shrink + tl.sum(w, 1)
    total = state.total * shrink + tl.sum(used, 1)
    sum_v = accumulate(state.v * shrink[:, None], hi, lo, v, TERMS)
    mean, sum_cv = state.mean, state.cv
    if PROBE_TERMS > 0:
        c = split_product(context.g, context.g_lo, tl.trans(k), ACC, PROBE_TERMS)
        hi, lo, used = split(w * (c * context.unit[:, None] - context.reference[:, None]), v.dtype, TERMS)
        mean = mean * shrink + tl.sum(used, 1)
        sum_cv = accumulate(sum_cv * shrink[:, None], hi, lo, v, TERMS)
    return Applied(top, exact, total, mean, sum_v, sum_cv)


@triton.jit
def last_visible(p, stride, lo, hi, exists, dims, ACC: tl.constexpr, DIM: tl.constexpr):
    """The last key (or value) that each row sees, zeros where it sees none."""
    return load_rows(p, stride, tl.maximum(hi - 1, 0), exists & (lo < hi), dims, ACC, DIM, True)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def apply_fwd_kernel(
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
    p_g,
    s_pb,
    s_pt,
    s_ph,
    p_ridge,
    s_rb,
    s_rt,
    s_rh,
    p_gate,
    s_gb,
    s_gt,
    s_gh,
    p_broken,
    p_o,
    p_lse,
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
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
    TERMS: tl.constexpr,
    PROBE_TERMS: tl.constexpr,
    SOLVED: tl.constexpr,
    LAYOUT: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
):
    """o ``[rows, VALUE_DIM]`` in the dtype of its pointer and lse ``[rows]`` in ACC.

    A SOLVED probe is in units of 1 / ridge. PROBE_TERMS 0 is softmax attention.
    """
    sequences = Sequences(q_len, k_len, p_cu_q, p_cu_k, p_lengths, p_tiles)
    place = locate(sequences, tl.program_id(0), tiles, heads, few, BLOCK_M, LAYOUT)
    if has_members(place, window, BLOCK_M, CAUSAL, WINDOW, ROWS) == 0:
        return
    keys = find_keys(place, heads, kv_heads, k_len, p_k, s_kb, s_kt, s_kh, p_v, s_vb, s_vt, s_vh, p_broken)
    span = key_span(place, window, BLOCK_M, BLOCK_N, CAUSAL, WINDOW)
    rows, dims, columns = place.first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    value_dims = tl.arange(0, BLOCK_V)
    lo, hi = bounds(rows, place, window, CAUSAL, WINDOW)
    exists = members(place, rows, hi, ROWS)
    scale = whole_scale(scale_hi, scale_lo, ACC) * LOG2_E

    q = load_rows(first_row(p_q, place, s_qb, s_qt, s_qh), s_qt, rows, exists, dims, OPERAND, DIM, True)
    fine = all_finite(q.to(ACC)) & (sees_broken(keys, lo, hi) == 0)
    zero = tl.zeros((BLOCK_M,), ACC)
    gate, unit, reference, g, g_lo = zero, zero, zero, q, q
    if PROBE_TERMS > 0:
        gate = tl.load(p_gate + row_offsets(place, rows, s_gb, s_gt, s_gh), mask=exists, other=1.0).to(ACC)
        unit += 1.0
        offsets = row_offsets(place, rows, s_pb, s_pt, s_ph)
        if SOLVED:
            offsets = state_rows(place, rows, total, heads, CAUSAL, ROWS) * (PROBE_TERMS * DIM)
            ridge = tl.load(p_ridge + row_offsets(place, rows, s_rb, s_rt, s_rh), mask=exists, other=1.0)
            unit = 1.0 / ridge.to(ACC)
        g, g_lo = load_probe(p_g, offsets, DIM, exists, dims, DIM, PROBE_TERMS)
        g, g_lo = g.to(OPERAND), g_lo.to(OPERAND)
        whole_g = combine(g, g_lo, ACC, PROBE_TERMS)
        fine = fine & is_finite(gate) & is_finite(unit) & (unit > 0) & all_finite(whole_g)
        last = last_visible(keys.p_k, keys.s_k, lo, hi, exists, dims, ACC, DIM)
        reference = tl.sum(whole_g * last, 1) * unit

    context = ApplyContext(q, scale, lo, hi, keys, columns, dims, value_dims, g, g_lo, unit, reference)
    sums = tl.zeros((BLOCK_M, BLOCK_V), ACC)
    state = Applied(zero - float("inf"), zero, zero, zero, sums, sums)
    state = sweep(apply_block, state, context, span, BLOCK_N, WINDOW, DIM, VALUE_DIM, TERMS, PROBE_TERMS)

    seen = lo < hi
    weight = tl.where(seen & fine, state.total, 1.0)
    o = state.v / weight[:, None]
    if PROBE_TERMS > 0:
        o += gate[:, None] * (state.cv / weight[:, None] - (state.mean / weight)[:, None] * o)
    o = tl.where(fine[:, None], o, float("nan"))
    o = tl.where(seen[:, None], o, 0.0)
    lse = state.top + tl.log2(tl.where(seen & fine, state.exact, 1.0))
    lse = tl.where(fine, lse * LN_2, float("nan"))
    lse = tl.where(seen, lse, -float("inf"))
    offsets = own_rows(place, rows, total, heads)
    mask = exists[:, None] & (value_dims < VALUE_DIM)[None, :]
    tl.store(
        p_o + offsets[:, None] * VALUE_DIM + value_dims[None, :], narrow(o, p_o.dtype.element_ty), mask=mask
    )
    tl.store(p_lse + offsets, lse, mask=exists)
