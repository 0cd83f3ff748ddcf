"""Decoding, solved probes: softmax weights and second moments of the keys and values of one split.

With logits ``s_j`` in powers of two, an even integer ``m`` above them, a shift ``x0`` and a power of two
``x`` (``y0`` and ``y`` for values), the numbers that enter the products are, rounded to float16,

    u_j = 2^((s_j - m) / 2) (k_j - x0) / x          z_j = 2^((s_j - m) / 2) (v_j - y0) / y

- Both sides of ``A = sum u u^T`` are the same numbers, so their rounding perturbs the keys and nothing else:
  no part of the probe that meets no key, as large as ``|q| / ridge``, comes back through it.
- All rescaling is by powers of two, which change no digit: m is an integer, an even one since its half is
  taken, and the scales keep the numbers within the range of float16 whatever that of the keys.
- The shift, the mean of the first block, keeps a mean that all keys share from eating the digits.
- What rounding took from u and z is a second term of the products where a row sees few keys: with about as
  many keys as dimensions the regression is most sensitive to them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashlla.ops.triton._common import LOG2_E, dot
from flashlla.ops.triton.cached import UNSPECIALIZED, Cache, load_cached, split_size, visible

SMALLEST_SCALE = tl.constexpr(2.0**-100)  # of keys that are all zeros
FEW_KEYS = tl.constexpr(4)  # times the head dimension
LARGEST = tl.constexpr(2.0**13)  # becomes a key of the size of its scale, shifted at most twice as much
SLACK = tl.constexpr(16.0)  # of scales that only the first keys have chosen


@triton.jit
def power_of_two_above(x):
    """The least power of two that is not below x > 0."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x7FFFFF) & -0x800000).to(tl.float32, bitcast=True)


@triton.jit
def mean_of(x, exists):
    """Mean of the rows that exist, of which there is one at least; the others are zeros."""
    return tl.sum(x, 0) / tl.sum(exists.to(tl.float32), 0)


@triton.jit
def scale_of(x):
    """A power of two that no entry exceeds."""
    return tl.maximum(power_of_two_above(tl.max(tl.max(tl.abs(x), 1), 0)), SMALLEST_SCALE)


@triton.jit
def remainder(x):
    """What float16 does not hold of x, in float16."""
    return (x - x.to(tl.float16).to(tl.float32)).to(tl.float16)


@triton.jit
def not_finite(x):
    """Whether any entry of a vector is infinite or no number."""
    return tl.max((tl.abs(x) < float("inf")).to(tl.int32) ^ 1, 0) > 0


@triton.jit
def sum_in_slots(x, root, SLOTS: tl.constexpr):
    """``sum root x`` over rows, in as many parts as rows that threads hold side by side: no thread waits for
    another.
    """
    x = x.to(tl.float32) * root[:, None]
    return tl.sum(tl.reshape(x, (x.shape[0] // SLOTS, SLOTS, x.shape[1])), 0)


@triton.jit
def sweep(
    keys,
    values,
    q,
    begin,
    end,
    dims,
    value_dims,
    dim_rows,
    k_shift,
    row_shift,
    v_shift,
    k_scale,
    v_scale,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SLOTS: tl.constexpr,
    TILED: tl.constexpr,
    PAGED: tl.constexpr,
    CAREFUL: tl.constexpr,
):
    """The moments of one split: top logit, sum of weights, centred sums of keys and values, the rows
    ``dim_rows`` of A and of the transpose of B.

    If not CAREFUL, the scales are taken on trust, and sums that are not finite betray keys beyond them. If
    CAREFUL, they grow, and what rounding took from u and z is a second term of the products.
    """
    columns = tl.arange(0, BLOCK_N)
    top, total = -float("inf"), tl.zeros((BLOCK_N,), tl.float32)
    k_sum = tl.zeros((SLOTS, dims.shape[0]), tl.float32)
    v_sum = tl.zeros((SLOTS, value_dims.shape[0]), tl.float32)
    a = tl.zeros((dim_rows.shape[0], dims.shape[0]), tl.float32)
    b = tl.zeros((dim_rows.shape[0], value_dims.shape[0]), tl.float32)
    for start in range(begin, end, BLOCK_N):
        rows = start + columns
        exists = rows < end
        k = load_cached(keys, rows, exists, dims, DIM, PAGED).to(tl.float32)
        s = tl.where(exists, tl.sum(k * q[None, :], 1), -float("inf"))
        highest, new_k, new_v = tl.max(s, 0), k_scale, v_scale
        if CAREFUL:
            v = load_cached(values, rows, exists, value_dims, VALUE_DIM, PAGED).to(tl.float32)
            new_k, new_v = tl.maximum(k_scale, scale_of(k)), tl.maximum(v_scale, scale_of(v))
        if (highest > top) | (new_k > k_scale) | (new_v > v_scale):
            new_top = tl.maximum(top, 2.0 * tl.ceil(0.5 * highest))
            shrink, k_shrink, v_shrink = tl.exp2(top - new_top), k_scale / new_k, v_scale / new_v
            total *= shrink
            k_sum *= shrink * k_shrink
            v_sum *= shrink * v_shrink
            a *= shrink * k_shrink * k_shrink
            b *= shrink * k_shrink * v_shrink
            top, k_scale, v_scale = new_top, new_k, new_v
        root = tl.exp2(0.5 * (s - top))
        total += root * root
        k_factor, v_factor = (root * (LARGEST / k_scale))[:, None], (root * (LARGEST / v_scale))[:, None]
        u_wide = (k - k_shift[None, :]) * k_factor
        u = u_wide.to(tl.float16)
        u_rows_wide, u_rows = u_wide, u
        if TILED:
            k_rows = load_cached(keys, rows, exists, dim_rows, DIM, PAGED).to(tl.float32)
            u_rows_wide = (k_rows - row_shift[None, :]) * k_factor
            u_rows = u_rows_wide.to(tl.float16)
        v = load_cached(values, rows, exists, value_dims, VALUE_DIM, PAGED).to(tl.float32)
        z_wide = (v - v_shift[None, :]) * v_factor
        z = z_wide.to(tl.float16)
        left = tl.trans(u_rows)
        a, b = dot(left, u, a), dot(left, z, b)
        k_sum += sum_in_slots(u, root, SLOTS)
        v_sum += sum_in_slots(z, root, SLOTS)
        if CAREFUL:
            u_rest, z_rest = remainder(u_wide), remainder(z_wide)
            left_rest = tl.trans(remainder(u_rows_wide))
            a, b = dot(left, u_rest, a), dot(left, z_rest, b)
            a, b = dot(left_rest, u, a), dot(left_rest, z, b)
            k_sum += sum_in_slots(u_rest, root, SLOTS)
            v_sum += sum_in_slots(z_rest, root, SLOTS)
    k_unit, v_unit = k_scale / LARGEST, v_scale / LARGEST
    keys_sum, values_sum = tl.sum(k_sum, 0) * k_unit, tl.sum(v_sum, 0) * v_unit
    return top, tl.sum(total, 0), keys_sum, values_sum, a * k_unit * k_unit, b * k_unit * v_unit


@triton.jit(do_not_specialize=UNSPECIALIZED)
def moments_kernel(
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
    p_stats,
    p_key_sums,
    p_value_sums,
    p_a,
    p_b,
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
    BLOCK_N: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    PAGED: tl.constexpr,
):
    """State of one split of one row, ``ROWS`` rows of A and columns of B a program. Programs that share keys
    lie next to each other, so that they find them in the cache of the GPU.
    """
    group = heads // kv_heads
    TILES: tl.constexpr = BLOCK_D // ROWS
    index = tl.program_id(0)
    tile, index = index % TILES, index // TILES
    token, index = index % q_len, index // q_len
    head, index = index % group, index // group
    i_split, index = index % splits, index // splits
    kv_head, batch = (index % kv_heads).to(tl.int64), (index // kv_heads).to(tl.int64)
    head = kv_head * group + head

    lo, hi = visible(p_lengths, batch, token, q_len, window, CAUSAL, WINDOW)
    size = split_size(hi - lo)
    begin = lo + i_split * size
    end = tl.minimum(begin + size, hi)
    if begin >= end:
        return

    first = begin + tl.arange(0, BLOCK_N)
    dims, value_dims = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    dim_rows = tile * ROWS + tl.arange(0, ROWS)
    pages = p_table + batch * s_table
    keys = Cache(p_k + kv_head * s_kh, s_kb, s_kt, pages, page_size, batch)
    values = Cache(p_v + kv_head * s_vh, s_vb, s_vt, pages, page_size, batch)
    q = tl.load(p_q + batch * s_qb + token * s_qt + head * s_qh + dims, mask=dims < DIM, other=0.0)
    q = q.to(tl.float32) * (scale * LOG2_E)

    k = load_cached(keys, first, first < end, dims, DIM, PAGED).to(tl.float32)
    v = load_cached(values, first, first < end, value_dims, VALUE_DIM, PAGED).to(tl.float32)
    k_shift, v_shift = mean_of(k, first < end), mean_of(v, first < end)
    k_scale, v_scale = SLACK * scale_of(k), SLACK * scale_of(v)
    row_shift = k_shift
    if TILES > 1:
        row_shift = tl.sum(tl.where(dim_rows[:, None] == dims[None, :], k_shift[None, :], 0.0), 1)

    top, total = -float("inf"), 0.0
    k_sum, v_sum = k_shift, v_shift
    a, b = tl.zeros((ROWS, BLOCK_D), tl.float32), tl.zeros((ROWS, BLOCK_V), tl.float32)
    careful = hi - lo <= FEW_KEYS * DIM
    if not careful:
        top, total, k_sum, v_sum, a, b = sweep(
            keys,
            values,
            q,
            begin,
            end,
            dims,
            value_dims,
            dim_rows,
            k_shift,
            row_shift,
            v_shift,
            k_scale,
            v_scale,
            DIM,
            VALUE_DIM,
            BLOCK_N,
            SLOTS,
            TILES > 1,
            PAGED,
            CAREFUL=False,
        )
        careful = not_finite(k_sum) | not_finite(v_sum)
    if careful:
        top, total, k_sum, v_sum, a, b = sweep(
            keys,
            values,
            q,
            begin,
            end,
            dims,
            value_dims,
            dim_rows,
            k_shift,
            row_shift,
            v_shift,
            k_scale / SLACK,
            v_scale / SLACK,
            DIM,
            VALUE_DIM,
            max(BLOCK_N // 2, 16),
            SLOTS,
            TILES > 1,
            PAGED,
            CAREFUL=True,
        )

    state = ((batch * q_len + token) * heads + head) * splits + i_split
    if tile == 0:
        tl.store(p_stats + 2 * state, top)
        tl.store(p_stats + 2 * state + 1, total)
        of_keys, of_values = 2 * state * DIM + dims, 2 * state * VALUE_DIM + value_dims
        tl.store(p_key_sums + of_keys, k_shift, mask=dims < DIM)
        tl.store(p_key_sums + of_keys + DIM, k_sum, mask=dims < DIM)
        tl.store(p_value_sums + of_values, v_shift, mask=value_dims < VALUE_DIM)
        tl.store(p_value_sums + of_values + VALUE_DIM, v_sum, mask=value_dims < VALUE_DIM)
    rows_exist = (dim_rows < DIM)[:, None]
    p_a += state * (DIM * DIM) + dim_rows[:, None] * DIM + dims[None, :]
    tl.store(p_a, a, mask=rows_exist & (dims < DIM)[None, :])
    p_b += state * (VALUE_DIM * DIM) + value_dims[None, :] * DIM + dim_rows[:, None]
    tl.store(p_b, b, mask=rows_exist & (value_dims < VALUE_DIM)[None, :])
