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
HEADROOM = tl.constexpr(2.0**13)  # the largest key becomes this, shifted at most twice as much


@triton.jit
def power_of_two_above(x):
    """The least power of two that is not below x > 0."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x7FFFFF) & -0x800000).to(tl.float32, bitcast=True)


@triton.jit
def mean_of(cache, rows, exists, dims, DIM: tl.constexpr, PAGED: tl.constexpr):
    """Mean of the rows that exist, of which there is one at least."""
    x = load_cached(cache, rows, exists, dims, DIM, PAGED).to(tl.float32)
    return tl.sum(x, 0) / tl.sum(exists.to(tl.float32), 0)


@triton.jit
def scaled(cache, rows, exists, dims, root, shift, scale, DIM: tl.constexpr, PAGED: tl.constexpr):
    """``root (x - shift) / scale`` of rows of a cache, in float32."""
    x = load_cached(cache, rows, exists, dims, DIM, PAGED).to(tl.float32)
    return (x - shift[None, :]) * (root * (HEADROOM / scale))[:, None]


@triton.jit
def remainder(x):
    """What float16 does not hold of x, in float16."""
    return (x - x.to(tl.float16).to(tl.float32)).to(tl.float16)


@triton.jit
def as_columns(root):
    """root as two columns of a matrix ``[rows, 16]`` of float16, so that tensor cores sum with it."""
    hi = root.to(tl.float16)
    lo = (root - hi.to(tl.float32)).to(tl.float16)
    column = tl.arange(0, 16)[None, :]
    return tl.where(column == 0, hi[:, None], tl.where(column == 1, lo[:, None], 0.0))


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
    BLOCK_N: tl.constexpr,
    TILES: tl.constexpr,
    ROWS_D: tl.constexpr,
    ROWS_V: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    PAGED: tl.constexpr,
):
    """State of one split of one row, rows ``tile * ROWS_D`` on of A and ``tile * ROWS_V`` on of B. Rows that
    share keys lie next to each other, so that they find them in the cache of the GPU.
    """
    group = heads // kv_heads
    index = tl.program_id(0)
    tile, index = index % TILES, index // TILES
    token, index = index % q_len, index // q_len
    head, index = index % group, index // group
    i_split, index = index % splits, index // splits
    kv_head, batch = (index % kv_heads).to(tl.int64), (index // kv_heads).to(tl.int64)
    head = kv_head * group + head

    lo, hi = visible(p_lengths, batch, token, q_len, window, CAUSAL, WINDOW)
    few = hi - lo <= FEW_KEYS * DIM
    size = split_size(hi - lo)
    begin = lo + i_split * size
    end = tl.minimum(begin + size, hi)
    if begin >= end:
        return

    columns = tl.arange(0, BLOCK_N)
    dims, value_dims = tl.arange(0, BLOCK_D), tile * ROWS_V + tl.arange(0, ROWS_V)
    dim_rows = tile * ROWS_D + tl.arange(0, ROWS_D)
    pages = p_table + batch * s_table
    keys = Cache(p_k + kv_head * s_kh, s_kb, s_kt, pages, page_size, batch)
    values = Cache(p_v + kv_head * s_vh, s_vb, s_vt, pages, page_size, batch)
    q = tl.load(p_q + batch * s_qb + token * s_qt + head * s_qh + dims, mask=dims < DIM, other=0.0)
    q = q.to(tl.float32) * (scale * LOG2_E)

    first = begin + columns
    k_shift = mean_of(keys, first, first < end, dims, DIM, PAGED)
    v_shift = mean_of(values, first, first < end, value_dims, VALUE_DIM, PAGED)
    row_shift = k_shift
    if TILES > 1:
        row_shift = mean_of(keys, first, first < end, dim_rows, DIM, PAGED)

    top, total = -float("inf"), tl.zeros((BLOCK_N,), tl.float32)
    k_scale, v_scale = SMALLEST_SCALE, SMALLEST_SCALE
    k_sum, v_sum = tl.zeros((BLOCK_D, 16), tl.float32), tl.zeros((ROWS_V, 16), tl.float32)
    a, b = tl.zeros((ROWS_D, BLOCK_D), tl.float32), tl.zeros((ROWS_V, BLOCK_D), tl.float32)
    for start in range(begin, end, BLOCK_N):
        rows = start + columns
        exists = rows < end
        k = load_cached(keys, rows, exists, dims, DIM, PAGED).to(tl.float32)
        v = load_cached(values, rows, exists, value_dims, VALUE_DIM, PAGED).to(tl.float32)
        s = tl.where(exists, tl.sum(k * q[None, :], 1), -float("inf"))
        k_size, v_size = tl.max(tl.abs(k), 1), tl.max(tl.abs(v), 1)
        # One reduction over the keys decides whether the three that follow from it are needed: rarely.
        if tl.max(((s > top) | (k_size > k_scale) | (v_size > v_scale)).to(tl.int32), 0) > 0:
            new_top = tl.maximum(top, 2.0 * tl.ceil(0.5 * tl.max(s, 0)))
            new_k = tl.maximum(k_scale, power_of_two_above(tl.max(k_size, 0)))
            new_v = tl.maximum(v_scale, power_of_two_above(tl.max(v_size, 0)))
            shrink, k_shrink, v_shrink = tl.exp2(top - new_top), k_scale / new_k, v_scale / new_v
            total *= shrink
            k_sum *= shrink * k_shrink
            v_sum *= shrink * v_shrink
            a *= shrink * k_shrink * k_shrink
            b *= shrink * k_shrink * v_shrink
            top, k_scale, v_scale = new_top, new_k, new_v
        root = tl.exp2(0.5 * (s - top))
        total += root * root
        u = ((k - k_shift[None, :]) * (root * (HEADROOM / k_scale))[:, None]).to(tl.float16)
        z = ((v - v_shift[None, :]) * (root * (HEADROOM / v_scale))[:, None]).to(tl.float16)
        weights = as_columns(root)
        k_sum, v_sum = dot(tl.trans(u), weights, k_sum), dot(tl.trans(z), weights, v_sum)
        u_rows = u
        if TILES > 1:
            u_rows = scaled(keys, rows, exists, dim_rows, root, row_shift, k_scale, DIM, PAGED).to(tl.float16)
        a = dot(tl.trans(u_rows), u, a)
        b = dot(tl.trans(z), u, b)
        if few:
            u_rest = remainder(scaled(keys, rows, exists, dims, root, k_shift, k_scale, DIM, PAGED))
            z_rest = remainder(
                scaled(values, rows, exists, value_dims, root, v_shift, v_scale, VALUE_DIM, PAGED)
            )
            k_sum, v_sum = dot(tl.trans(u_rest), weights, k_sum), dot(tl.trans(z_rest), weights, v_sum)
            u_rows_rest = u_rest
            if TILES > 1:
                u_rows_rest = remainder(
                    scaled(keys, rows, exists, dim_rows, root, row_shift, k_scale, DIM, PAGED)
                )
            a = dot(tl.trans(u_rows), u_rest, dot(tl.trans(u_rows_rest), u, a))
            b = dot(tl.trans(z), u_rest, dot(tl.trans(z_rest), u, b))

    k_scale, v_scale = k_scale / HEADROOM, v_scale / HEADROOM
    state = ((batch * q_len + token) * heads + head) * splits + i_split
    if tile == 0:
        tl.store(p_stats + 2 * state, top)
        tl.store(p_stats + 2 * state + 1, tl.sum(total, 0))
        tl.store(p_key_sums + 2 * state * DIM + dims, k_shift, mask=dims < DIM)
        tl.store(p_key_sums + (2 * state + 1) * DIM + dims, tl.sum(k_sum, 1) * k_scale, mask=dims < DIM)
    p_value_sums += 2 * state * VALUE_DIM + value_dims
    tl.store(p_value_sums, v_shift, mask=value_dims < VALUE_DIM)
    tl.store(p_value_sums + VALUE_DIM, tl.sum(v_sum, 1) * v_scale, mask=value_dims < VALUE_DIM)
    p_a += state * (DIM * DIM) + dim_rows[:, None] * DIM + dims[None, :]
    p_b += state * (VALUE_DIM * DIM) + value_dims[:, None] * DIM + dims[None, :]
    in_a = (dim_rows < DIM)[:, None] & (dims < DIM)[None, :]
    in_b = (value_dims < VALUE_DIM)[:, None] & (dims < DIM)[None, :]
    tl.store(p_a, a * k_scale * k_scale, mask=in_a)
    tl.store(p_b, b * k_scale * v_scale, mask=in_b)
