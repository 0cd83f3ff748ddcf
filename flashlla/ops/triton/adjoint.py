"""First half of the backward pass: what a row needs before anything can be summed over rows or keys.

With ``e_j = do . v_j`` and its mean ``ebar``, the gradient of the probe is ``h = sum_j p_j (e_j - ebar)(k_j
- kbar)``, and for a solved probe its adjoint ``f = (Cov + ridge I)^-1 gate h`` comes from the solver of the
forward pass.
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
    product,
    row_offsets,
    scalar_rows,
    sees_broken,
    split,
    state_rows,
    sweep,
    whole_scale,
)
from flashlla.ops.triton.apply import last_visible
from flashlla.ops.triton.solve import conjugate_gradients, online_weights, store_split


class AdjointContext(NamedTuple):
    q: tl.tensor
    scale: tl.tensor
    lo: tl.tensor
    hi: tl.tensor
    keys: Keys
    columns: tl.tensor
    dims: tl.tensor
    value_dims: tl.tensor
    do: tl.tensor
    reference: tl.tensor  # do . v of one visible key


class AdjointSums(NamedTuple):
    top: tl.tensor
    total: tl.tensor  # sum of weights w
    e: tl.tensor  # sum of w e, relative to the reference
    ek: tl.tensor  # sum of w e k
    k: tl.tensor  # sum of w k, if kbar is not known


@triton.jit
def adjoint_block(
    state,
    context,
    start,
    MASKED: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    TERMS: tl.constexpr,
    KBAR_TERMS: tl.constexpr,
):
    OPERAND: tl.constexpr = context.q.dtype
    columns, exists, k = load_keys(context.keys, start, context.columns, context.dims, OPERAND, DIM, MASKED)
    v = load_rows(
        context.keys.p_v, context.keys.s_v, columns, exists, context.value_dims, OPERAND, VALUE_DIM, MASKED
    )
    ACC: tl.constexpr = state.ek.dtype
    s = product(context.q, tl.trans(k), ACC) * context.scale
    e = product(context.do, tl.trans(v), ACC) - context.reference[:, None]
    w, top, shrink = online_weights(s, state.top, context.lo, context.hi, columns[None, :], MASKED)
    sum_k = state.k
    if KBAR_TERMS > 0:
        hi, lo, w = split(w, k.dtype, KBAR_TERMS)
        sum_k = accumulate(sum_k * shrink[:, None], hi, lo, k, KBAR_TERMS)
    total = state.total * shrink + tl.sum(w, 1)
    hi, lo, we = split(w * e, k.dtype, TERMS)
    sum_e = state.e * shrink + tl.sum(we, 1)
    return AdjointSums(top, total, sum_e, accumulate(state.ek * shrink[:, None], hi, lo, k, TERMS), sum_k)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def adjoint_bwd_kernel(
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
    p_do,
    s_db,
    s_dt,
    s_dh,
    p_ridge,
    s_rb,
    s_rt,
    s_rh,
    p_gate,
    s_gb,
    s_gt,
    s_gh,
    p_broken,
    p_kbar,
    p_lse,
    p_ebar,
    p_f,
    p_dprobe,
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
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
    TERMS: tl.constexpr,
    F_TERMS: tl.constexpr,
    SOLVED: tl.constexpr,
    GIVEN: tl.constexpr,
    LAYOUT: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
):
    """For every row: lse (log2 of the sum of exponentials) and ebar in ACC; NaN in ebar marks a broken row.

    SOLVED reads kbar and writes f in units of 1 / ridge, split; the others write kbar, GIVEN dprobe as well.
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
    offsets = state_rows(place, rows, total, heads, CAUSAL, ROWS)
    mask = exists[:, None] & (dims < DIM)[None, :]

    q = load_rows(first_row(p_q, place, s_qb, s_qt, s_qh), s_qt, rows, exists, dims, OPERAND, DIM, True)
    do_first = first_row(p_do, place, s_db, s_dt, s_dh)
    do = load_rows(do_first, s_dt, rows, exists, value_dims, OPERAND, VALUE_DIM, True)
    gate = tl.load(p_gate + row_offsets(place, rows, s_gb, s_gt, s_gh), mask=exists, other=1.0).to(ACC)
    fine = all_finite(q.to(ACC)) & all_finite(do.to(ACC)) & (sees_broken(keys, lo, hi) == 0)
    ridge = tl.zeros((BLOCK_M,), ACC) + 1.0
    if SOLVED:
        ridge = tl.load(p_ridge + row_offsets(place, rows, s_rb, s_rt, s_rh), mask=exists, other=1.0).to(ACC)
        fine = fine & is_finite(ridge) & (ridge > 0)
    if SOLVED or GIVEN:
        fine = fine & is_finite(gate)
    q = tl.where(fine[:, None], q, 0.0).to(OPERAND)
    do = tl.where(fine[:, None], do, 0.0).to(OPERAND)
    ridge, gate = tl.where(fine, ridge, 1.0), tl.where(fine, gate, 0.0)

    last = last_visible(keys.p_v, keys.s_v, lo, hi, exists & fine, value_dims, ACC, VALUE_DIM)
    reference = tl.sum(do.to(ACC) * last, 1)
    zero = tl.zeros((BLOCK_M,), ACC)
    context = AdjointContext(q, scale, lo, hi, keys, columns, dims, value_dims, do, reference)
    sums = tl.zeros((BLOCK_M, BLOCK_D), ACC)
    state = AdjointSums(zero - float("inf"), zero, zero, sums, sums)
    state = sweep(
        adjoint_block, state, context, span, BLOCK_N, WINDOW, DIM, VALUE_DIM, TERMS, 0 if SOLVED else TERMS
    )

    seen = fine & (lo < hi)
    weight = tl.where(seen, state.total, 1.0)
    lse = tl.where(seen, state.top + tl.log2(weight), 0.0)
    e = tl.where(seen, state.e / weight, 0.0)
    scalars = scalar_rows(place, rows, total, heads, CAUSAL, ROWS)
    tl.store(p_lse + scalars, lse, mask=exists)
    tl.store(p_ebar + scalars, tl.where(fine | (lo >= hi), e + reference, float("nan")), mask=exists)

    kbar_at = p_kbar + offsets[:, None] * DIM + dims[None, :]
    if SOLVED:
        kbar = tl.load(kbar_at, mask=mask, other=0.0)
    else:
        kbar = tl.where(seen[:, None], state.k / weight[:, None], 0.0)
        tl.store(kbar_at, kbar, mask=mask)
    h = gate[:, None] * tl.where(seen[:, None], state.ek / weight[:, None] - e[:, None] * kbar, 0.0)
    if SOLVED:
        f, _ = conjugate_gradients(
            h,
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
        store_split(p_f, offsets, f, 1.0 / ridge, exists, dims, DIM, OPERAND, F_TERMS)
    if GIVEN:
        h = tl.where((fine | (lo >= hi))[:, None], h, float("nan"))
        # A given probe has no rows of their own: ROWS is ALL, where both numberings are one.
        tl.store(
            p_dprobe + offsets[:, None] * DIM + dims[None, :], narrow(h, p_dprobe.dtype.element_ty), mask=mask
        )
