"""Second half of the backward pass: gradients of rows by a sweep over keys, of keys by a sweep over rows.

With the probe g and its adjoint f (0 if the probe is not solved for), ``c = (k - kbar) . g``, ``u = (k -
kbar) . f`` and ``e = do . v - ebar``, the gradient of a logit is ``ds = p (y - mean(y))``, ``y = e (1 +
gate c) - u (1 + c)``, and

    dq = scale sum_j ds_j k_j + f
    dgate = sum_j p_j e_j c_j,    dridge = -sum_j p_j c_j (gate e_j - u_j) / ridge
    dk = sum_i scale ds_i q_i + p_i (gate_i e_i - u_i) g_i - p_i (1 + c_i) f_i
    dv = sum_i p_i (1 + gate_i c_i) do_i

Every key is one program's, so nothing is added atomically.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from flashlla.ops.triton._common import (
    FEW,
    LOG2_E,
    UNSPECIALIZED,
    Keys,
    Place,
    Sequences,
    accumulate,
    bounds,
    combine,
    dot,
    find_keys,
    first_row,
    has_members,
    key_span,
    load_keys,
    load_rows,
    locate,
    members,
    narrow,
    own_rows,
    product,
    row_offsets,
    row_span,
    scalar_rows,
    split,
    split_product,
    state_rows,
    sweep,
    whole_scale,
)
from flashlla.ops.triton.solve import load_probe, weights

# Numbers of a row that the sweep over rows reads, ``[7, rows]``: the first two come from the adjoint kernel.
PLANES = 7
LSE = tl.constexpr(0)
EBAR = tl.constexpr(1)
GATE = tl.constexpr(2)
UNIT = tl.constexpr(3)  # in which g and f are given
G_MEAN = tl.constexpr(4)  # kbar . g
F_MEAN = tl.constexpr(5)  # kbar . f
Y_MEAN = tl.constexpr(6)


# ---- gradients of rows -----------------------------------------------------------------------------------


class RowContext(NamedTuple):
    q: tl.tensor
    scale: tl.tensor
    lse: tl.tensor
    lo: tl.tensor
    hi: tl.tensor
    keys: Keys
    columns: tl.tensor
    dims: tl.tensor
    value_dims: tl.tensor
    do: tl.tensor
    ebar: tl.tensor
    gate: tl.tensor
    g: tl.tensor
    g_lo: tl.tensor
    g_unit: tl.tensor
    g_mean: tl.tensor  # kbar . g
    f: tl.tensor
    f_lo: tl.tensor
    f_unit: tl.tensor
    f_mean: tl.tensor


class RowSums(NamedTuple):
    yk: tl.tensor  # sum of p y k
    y: tl.tensor  # sum of p y
    ec: tl.tensor  # sum of p e c
    cu: tl.tensor  # sum of p c (gate e - u)


@triton.jit
def row_block(
    state,
    context,
    start,
    MASKED: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    F_TERMS: tl.constexpr,
    PROBE_TERMS: tl.constexpr,
):
    OPERAND: tl.constexpr = context.q.dtype
    columns, exists, k = load_keys(context.keys, start, context.columns, context.dims, OPERAND, DIM, MASKED)
    v = load_rows(
        context.keys.p_v, context.keys.s_v, columns, exists, context.value_dims, OPERAND, VALUE_DIM, MASKED
    )
    ACC: tl.constexpr = state.yk.dtype
    p = weights(
        context.q, k, context.scale, context.lse, context.lo, context.hi, columns[None, :], ACC, MASKED
    )
    e = product(context.do, tl.trans(v), ACC) - context.ebar[:, None]
    y = e
    ec, cu = state.ec, state.cu
    if PROBE_TERMS > 0:
        c = split_product(context.g, context.g_lo, tl.trans(k), ACC, PROBE_TERMS)
        c = c * context.g_unit[:, None] - context.g_mean[:, None]
        gated = context.gate[:, None] * e
        ec += tl.sum(p * e * c, 1)
        y += gated * c
        if F_TERMS > 0:
            u = split_product(context.f, context.f_lo, tl.trans(k), ACC, F_TERMS)
            u = u * context.f_unit[:, None] - context.f_mean[:, None]
            cu += tl.sum(p * c * (gated - u), 1)
            y -= u * (1.0 + c)
    # At a small ridge y is large and cancels: rounded to one bfloat16, dq would not stay within its budget.
    TERMS: tl.constexpr = 1 if ACC == tl.float64 else 2
    hi, lo, py = split(p * y, k.dtype, TERMS)
    return RowSums(accumulate(state.yk, hi, lo, k, TERMS), state.y + tl.sum(py, 1), ec, cu)


@triton.jit
def load_direction(
    p, offsets, unit, kbar, exists, dims, fine, DIM: tl.constexpr, OPERAND: tl.constexpr, TERMS: tl.constexpr
):
    """A probe (or its adjoint) as hi and lo, zeros in broken rows; its product with kbar, and the vector
    itself.
    """
    hi, lo = load_probe(p, offsets, DIM, exists & fine, dims, DIM, TERMS)
    hi, lo = hi.to(OPERAND), lo.to(OPERAND)
    vector = combine(hi, lo, kbar.dtype, TERMS) * unit[:, None]
    return hi, lo, tl.sum(vector * kbar, 1), vector


@triton.jit(do_not_specialize=UNSPECIALIZED)
def rows_bwd_kernel(
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
    p_kbar,
    p_f,
    p_planes,
    plane,
    p_dq,
    p_dridge,
    p_dgate,
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
    PROBE_TERMS: tl.constexpr,
    F_TERMS: tl.constexpr,
    LAYOUT: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
):
    """dq, dgate and dridge, and the planes that the sweep over rows reads. F_TERMS 0 is a probe that was
    not solved for.
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
    original_scale = whole_scale(scale_hi, scale_lo, ACC)
    offsets = state_rows(place, rows, total, heads, CAUSAL, ROWS)
    mask = exists[:, None] & (dims < DIM)[None, :]

    scalars = scalar_rows(place, rows, total, heads, CAUSAL, ROWS)
    lse = tl.load(p_planes + LSE * plane + scalars, mask=exists, other=0.0)
    ebar = tl.load(p_planes + EBAR * plane + scalars, mask=exists, other=0.0)
    fine = ebar == ebar
    q = load_rows(
        first_row(p_q, place, s_qb, s_qt, s_qh), s_qt, rows, exists & fine, dims, OPERAND, DIM, True
    )
    do_first = first_row(p_do, place, s_db, s_dt, s_dh)
    do = load_rows(do_first, s_dt, rows, exists & fine, value_dims, OPERAND, VALUE_DIM, True)
    kbar = tl.load(p_kbar + offsets[:, None] * DIM + dims[None, :], mask=mask & fine[:, None], other=0.0)
    zero = tl.zeros((BLOCK_M,), ACC)
    gate, ridge, f_unit, g_unit = zero, zero + 1.0, zero, zero + 1.0
    g, g_lo, g_mean, f, f_lo, f_mean = q, q, zero, q, q, zero
    f_vector = tl.zeros((BLOCK_M, BLOCK_D), ACC)
    if PROBE_TERMS > 0:
        gate = tl.load(p_gate + row_offsets(place, rows, s_gb, s_gt, s_gh), mask=exists & fine, other=1.0).to(
            ACC
        )
        if F_TERMS > 0:
            ridge = tl.load(
                p_ridge + row_offsets(place, rows, s_rb, s_rt, s_rh), mask=exists & fine, other=1.0
            )
            ridge = ridge.to(ACC)
            g_unit, f_unit = 1.0 / ridge, 1.0 / ridge
            f, f_lo, f_mean, f_vector = load_direction(
                p_f, offsets * (F_TERMS * DIM), f_unit, kbar, exists, dims, fine, DIM, OPERAND, F_TERMS
            )
        probe_at = row_offsets(place, rows, s_pb, s_pt, s_ph)
        if F_TERMS > 0:
            probe_at = offsets * (PROBE_TERMS * DIM)
        g, g_lo, g_mean, _ = load_direction(
            p_g, probe_at, g_unit, kbar, exists, dims, fine, DIM, OPERAND, PROBE_TERMS
        )

    context = RowContext(
        q,
        original_scale * LOG2_E,
        lse,
        lo,
        hi,
        keys,
        columns,
        dims,
        value_dims,
        do,
        tl.where(fine, ebar, 0.0),
        gate,
        g,
        g_lo,
        g_unit,
        g_mean,
        f,
        f_lo,
        f_unit,
        f_mean,
    )
    state = RowSums(tl.zeros((BLOCK_M, BLOCK_D), ACC), zero, zero, zero)
    state = sweep(row_block, state, context, span, BLOCK_N, WINDOW, DIM, VALUE_DIM, F_TERMS, PROBE_TERMS)

    dq = original_scale * (state.yk - state.y[:, None] * kbar) + f_vector
    dq = tl.where((lo < hi)[:, None], dq, 0.0)
    dq = tl.where(fine[:, None], dq, float("nan"))
    own = own_rows(place, rows, total, heads)
    tl.store(p_dq + own[:, None] * DIM + dims[None, :], narrow(dq, p_dq.dtype.element_ty), mask=mask)
    tl.store(p_planes + GATE * plane + scalars, gate, mask=exists)
    tl.store(p_planes + UNIT * plane + scalars, g_unit, mask=exists)
    tl.store(p_planes + G_MEAN * plane + scalars, g_mean, mask=exists)
    tl.store(p_planes + F_MEAN * plane + scalars, f_mean, mask=exists)
    tl.store(p_planes + Y_MEAN * plane + scalars, state.y, mask=exists)
    dgate = tl.where(fine, tl.where(lo < hi, state.ec, 0.0), float("nan"))
    tl.store(p_dgate + own, dgate, mask=exists)
    if F_TERMS > 0:
        dridge = tl.where(fine, tl.where(lo < hi, -state.cu / ridge, 0.0), float("nan"))
        tl.store(p_dridge + own, dridge, mask=exists)


# ---- gradients of keys and values ------------------------------------------------------------------------


class KeyContext(NamedTuple):
    """A block of keys, and pointers to the first row of everything that is read of the rows that see it."""

    k: tl.tensor
    v: tl.tensor
    scale: tl.tensor
    place: Place  # of the keys; its head is the query head
    window: tl.tensor
    numbers: tl.tensor  # of the keys
    rows: tl.tensor
    dims: tl.tensor
    value_dims: tl.tensor
    p_q: tl.tensor
    s_q: tl.tensor
    p_do: tl.tensor
    s_do: tl.tensor
    p_g: tl.tensor
    s_g: tl.tensor
    p_f: tl.tensor
    s_f: tl.tensor
    p_planes: tl.tensor
    plane: tl.tensor


class KeySums(NamedTuple):
    k: tl.tensor
    v: tl.tensor


@triton.jit
def load_plane(context, NAME: tl.constexpr, rows, exists, MASKED: tl.constexpr):
    """One number a row, as ``rows_bwd_kernel`` left it."""
    pointers = context.p_planes + NAME * context.plane + rows
    if MASKED:
        return tl.load(pointers, mask=exists, other=0.0)
    return tl.load(pointers)


@triton.jit
def key_block(
    state,
    context,
    start,
    MASKED: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    F_TERMS: tl.constexpr,
    PROBE_TERMS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Weights are ``[keys, rows]`` here: keys stay, rows stream."""
    ACC: tl.constexpr = state.k.dtype
    rows = start + context.rows
    lo, hi = bounds(rows, context.place, context.window, CAUSAL, WINDOW)
    exists = members(context.place, rows, hi, ROWS)
    lse = load_plane(context, LSE, rows, exists, MASKED)
    ebar = load_plane(context, EBAR, rows, exists, MASKED)
    y_mean = load_plane(context, Y_MEAN, rows, exists, MASKED)
    # A broken row keeps NaN in its weights, for the keys that it sees; the others meet a row of zeros.
    usable = exists & (lo < hi) & (ebar == ebar)
    OPERAND: tl.constexpr = context.k.dtype
    q = load_rows(context.p_q, context.s_q, rows, usable, context.dims, OPERAND, DIM, MASKED)
    do = load_rows(context.p_do, context.s_do, rows, usable, context.value_dims, OPERAND, VALUE_DIM, MASKED)
    visible = exists[None, :]
    if MASKED:
        numbers = context.numbers[:, None]
        visible = exists[None, :] & (numbers >= lo[None, :]) & (numbers < hi[None, :])

    p = tl.exp2(product(context.k, tl.trans(q), ACC) * context.scale * LOG2_E - lse[None, :])
    e = product(context.v, tl.trans(do), ACC) - ebar[None, :]
    a, y = p, e
    if PROBE_TERMS > 0:
        gate = load_plane(context, GATE, rows, exists, MASKED)
        unit = load_plane(context, UNIT, rows, exists, MASKED)
        g = load_rows(context.p_g, context.s_g, rows, usable, context.dims, OPERAND, DIM, MASKED)
        c = product(context.k, tl.trans(g), ACC)
        if PROBE_TERMS == 2:
            g_lo = load_rows(context.p_g + DIM, context.s_g, rows, usable, context.dims, OPERAND, DIM, MASKED)
            c = dot(context.k, tl.trans(g_lo), c)
        c = c * unit[None, :] - load_plane(context, G_MEAN, rows, exists, MASKED)[None, :]
        x = e * gate[None, :]
        y += x * c
        a = p * (1.0 + gate[None, :] * c)
        if F_TERMS > 0:
            f = load_rows(context.p_f, context.s_f, rows, usable, context.dims, OPERAND, DIM, MASKED)
            u = product(context.k, tl.trans(f), ACC)
            if F_TERMS == 2:
                f_lo = load_rows(
                    context.p_f + DIM, context.s_f, rows, usable, context.dims, OPERAND, DIM, MASKED
                )
                u = dot(context.k, tl.trans(f_lo), u)
            u = u * unit[None, :] - load_plane(context, F_MEAN, rows, exists, MASKED)[None, :]
            x -= u
            y -= u * (1.0 + c)
            weight = p * (1.0 + c) * unit[None, :]
            if MASKED:
                weight = tl.where(visible, weight, 0.0)
            dk = dot(narrow(-weight, f.dtype), f, state.k)
        else:
            dk = state.k
        weight = p * x * unit[None, :]
        if MASKED:
            weight = tl.where(visible, weight, 0.0)
        dk = dot(narrow(weight, g.dtype), g, dk)
    else:
        dk = state.k
    ds = context.scale * p * (y - y_mean[None, :])
    if MASKED:
        ds, a = tl.where(visible, ds, 0.0), tl.where(visible, a, 0.0)
    return KeySums(dot(narrow(ds, q.dtype), q, dk), dot(narrow(a, do.dtype), do, state.v))


@triton.jit(do_not_specialize=UNSPECIALIZED)
def keys_bwd_kernel(
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
    p_g,
    s_pb,
    s_pt,
    s_ph,
    p_f,
    p_planes,
    plane,
    p_dk,
    p_dv,
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
    PROBE_TERMS: tl.constexpr,
    F_TERMS: tl.constexpr,
    LAYOUT: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
):
    """dk and dv of a block of keys of one key head, summed over the query heads of its group.

    The launch for rows that see FEW keys comes second and adds its share.
    """
    sequences = Sequences(q_len, k_len, p_cu_q, p_cu_k, p_lengths, p_tiles)
    place = locate(sequences, tl.program_id(0), tiles, kv_heads, few, BLOCK_N, LAYOUT)
    if place.first >= place.k_len:
        return
    if ROWS == FEW and place.first >= few:
        return
    span = row_span(place, window, BLOCK_M, BLOCK_N, CAUSAL, WINDOW, ROWS)
    numbers, rows, dims = place.first + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    value_dims = tl.arange(0, BLOCK_V)
    exists = numbers < place.k_len
    k_first = p_k + place.batch * s_kb + place.k_start * s_kt + place.head * s_kh
    v_first = p_v + place.batch * s_vb + place.k_start * s_vt + place.head * s_vh
    k = load_rows(k_first, s_kt, numbers, exists, dims, OPERAND, DIM, True)
    v = load_rows(v_first, s_vt, numbers, exists, value_dims, OPERAND, VALUE_DIM, True)
    scale = whole_scale(scale_hi, scale_lo, ACC)

    state = KeySums(tl.zeros((BLOCK_N, BLOCK_D), ACC), tl.zeros((BLOCK_N, BLOCK_V), ACC))
    group = heads // kv_heads
    for member in range(0, group):
        head = place.head * group + member
        at = Place(
            place.batch,
            head,
            place.q_start,
            place.q_len,
            place.k_start,
            place.k_len,
            place.first,
            place.sequence,
            place.few,
        )
        own = state_rows(at, 0, total, heads, CAUSAL, ROWS)
        g_first, s_g = first_row(p_g, at, s_pb, s_pt, s_ph), s_pt
        if F_TERMS > 0:
            g_first, s_g = p_g + own * (PROBE_TERMS * DIM), heads * (PROBE_TERMS * DIM)
        context = KeyContext(
            k,
            v,
            scale,
            at,
            window,
            numbers,
            rows,
            dims,
            value_dims,
            first_row(p_q, at, s_qb, s_qt, s_qh),
            s_qt,
            first_row(p_do, at, s_db, s_dt, s_dh),
            s_dt,
            g_first,
            s_g,
            p_f + own * (F_TERMS * DIM),
            heads * (F_TERMS * DIM),
            p_planes + scalar_rows(at, 0, total, heads, CAUSAL, ROWS),
            plane,
        )
        state = sweep_rows(
            state, context, span, BLOCK_M, DIM, VALUE_DIM, F_TERMS, PROBE_TERMS, CAUSAL, WINDOW, ROWS
        )

    key_head = (place.batch * k_len + place.k_start + numbers) * kv_heads + place.head
    mask = exists[:, None] & (dims < DIM)[None, :]
    store_sum(p_dk, key_head[:, None] * DIM + dims[None, :], state.k, mask, ROWS == FEW)
    mask = exists[:, None] & (value_dims < VALUE_DIM)[None, :]
    store_sum(p_dv, key_head[:, None] * VALUE_DIM + value_dims[None, :], state.v, mask, ROWS == FEW)


@triton.jit
def store_sum(p, offsets, x, mask, ADD: tl.constexpr):
    """Store x; ADD: on top of what an earlier launch left."""
    if ADD:
        x += tl.load(p + offsets, mask=mask, other=0.0).to(x.dtype)
    tl.store(p + offsets, narrow(x, p.dtype.element_ty), mask=mask)


@triton.jit
def sweep_rows(
    state,
    context,
    span,
    BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    F_TERMS: tl.constexpr,
    PROBE_TERMS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
):
    """``_common.sweep`` over rows: the blocks at the diagonal come first."""
    if CAUSAL:
        for start in range(span.begin, tl.minimum(span.full_begin, span.end), BLOCK):
            state = key_block(
                state, context, start, True, DIM, VALUE_DIM, F_TERMS, PROBE_TERMS, CAUSAL, WINDOW, ROWS
            )
    for start in range(span.full_begin, span.full_end, BLOCK):
        state = key_block(
            state, context, start, False, DIM, VALUE_DIM, F_TERMS, PROBE_TERMS, CAUSAL, WINDOW, ROWS
        )
    for start in range(span.full_end, span.end, BLOCK):
        state = key_block(
            state, context, start, True, DIM, VALUE_DIM, F_TERMS, PROBE_TERMS, CAUSAL, WINDOW, ROWS
        )
    return state
