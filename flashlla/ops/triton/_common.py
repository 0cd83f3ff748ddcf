"""What all kernels share: exact products, where a tile lies, what it sees, and the sweep over its keys.

Precision. ``OPERAND`` is the dtype of the operands of every product, ``ACC`` that of sums and of all state:

=====================  ============  =======
q, k, v                OPERAND       ACC
=====================  ============  =======
bfloat16, float16      the same      float32
float32, float64       float64       float64
=====================  ============  =======

Keys and values enter a product as they are, with no rounding. The other side of it is computed: it is
rounded to ``TERMS`` numbers of dtype OPERAND (``split``), and whatever is derived from it, such as the sum
of weights that centres a mean, is derived from the rounded numbers. So rounding perturbs weights; it never
breaks an identity.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

ACC = {
    torch.bfloat16: tl.float32,
    torch.float16: tl.float32,
    torch.float32: tl.float64,
    torch.float64: tl.float64,
}
OPERAND = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float64,
    torch.float64: tl.float64,
}
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

# Numbers whose value or divisibility buys no faster code, but would cost a compilation for every new length.
UNSPECIALIZED = (
    "q_len",
    "k_len",
    "length",
    "tiles",
    "blocks",
    "heads",
    "kv_heads",
    "window",
    "few",
)

# Layouts of a call, see flashlla.ops.types.Layout.
DENSE = tl.constexpr(0)
PACKED = tl.constexpr(1)
CACHE = tl.constexpr(2)

# Rows that a launch takes. A row that sees few keys has a singular covariance and a probe of size 1 /
# ridge, most of which meets no key and must cancel: whatever the operands, such rows are worked on in
# float64, by a launch of their own.
ALL = tl.constexpr(0)
MANY = tl.constexpr(1)
FEW = tl.constexpr(2)


# ---- products --------------------------------------------------------------------------------------------


@triton.jit
def dot(a, b, acc):
    """``acc + a @ b`` in the dtype of acc. The interpreter cannot multiply bfloat16: it widens first."""
    if INTERPRETED:
        a, b = a.to(acc.dtype), b.to(acc.dtype)
    return tl.dot(a, b, acc, out_dtype=acc.dtype)


@triton.jit
def product(a, b, ACC: tl.constexpr):
    """``a @ b`` in ACC."""
    return dot(a, b, tl.zeros((a.shape[0], b.shape[1]), ACC))


@triton.jit
def narrow(x, OPERAND: tl.constexpr):
    """x in dtype OPERAND, rounded to nearest. The interpreter truncates to bfloat16, so it is helped."""
    if INTERPRETED and OPERAND == tl.bfloat16:
        x = x.to(tl.float32)
        bits = x.to(tl.int32, bitcast=True)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
        x = tl.where(is_finite(x), rounded, x)
    return x.to(OPERAND)


@triton.jit
def split(x, OPERAND: tl.constexpr, TERMS: tl.constexpr):
    """x as ``hi + lo`` of dtype OPERAND, and the number that a product with TERMS terms uses.

    What two terms leave out, 2^-17 of x at most, is less than what it would cost to account for it.
    """
    hi = narrow(x, OPERAND)
    rounded = hi.to(x.dtype)
    lo = narrow(x - rounded, OPERAND)
    return hi, lo, x if TERMS == 2 else rounded


@triton.jit
def accumulate(acc, hi, lo, b, TERMS: tl.constexpr):
    """``acc + (hi + lo) @ b``."""
    acc = dot(hi, b, acc)
    if TERMS == 2:
        acc = dot(lo, b, acc)
    return acc


@triton.jit
def split_product(hi, lo, b, ACC: tl.constexpr, TERMS: tl.constexpr):
    """``(hi + lo) @ b`` in ACC."""
    return accumulate(tl.zeros((hi.shape[0], b.shape[1]), ACC), hi, lo, b, TERMS)


@triton.jit
def whole_scale(hi, lo, ACC: tl.constexpr):
    """A factor that is handed over as two float32 numbers, in ACC: a launch narrows every float argument."""
    return tl.zeros((1,), ACC) + hi + lo


# ---- where a tile lies -----------------------------------------------------------------------------------


class Place(NamedTuple):
    """A tile of one head of one sequence. Rows and keys count from the start of the sequence."""

    batch: tl.tensor  # int64
    head: tl.tensor  # int64
    q_start: tl.tensor  # int64, first row of the sequence in its batch row
    q_len: tl.tensor
    k_start: tl.tensor  # int64
    k_len: tl.tensor
    first: tl.tensor  # first row (or key) of the tile
    sequence: tl.tensor  # int64
    few: tl.tensor  # a row with so many keys or fewer sees few


class Sequences(NamedTuple):
    """The layout of a call: lengths of a dense batch, pointers for the other layouts."""

    q_len: tl.tensor
    k_len: tl.tensor
    p_cu_q: tl.tensor
    p_cu_k: tl.tensor
    p_lengths: tl.tensor
    p_tiles: tl.tensor


@triton.jit
def locate(sequences, tile, tiles, heads, few, BLOCK: tl.constexpr, LAYOUT: tl.constexpr):
    """The place of one of ``tiles * heads * batch`` tiles: heads outermost, so that those that run at one
    time read the same keys; in a head the longest rows first. A packed tile is looked up in a table of
    (sequence, tile in it); entries of -1 fill it up, and such a tile lies behind its sequence.
    """
    i_tile, flat = tile % tiles, tile // tiles
    head, batch = (flat % heads).to(tl.int64), (flat // heads).to(tl.int64)
    q_len, k_len = sequences.q_len, sequences.k_len
    q_start, k_start, sequence = batch * 0, batch * 0, batch
    if LAYOUT == PACKED:
        i_sequence = tl.load(sequences.p_tiles + 2 * i_tile)
        sequence = i_sequence.to(tl.int64)
        first = tl.load(sequences.p_tiles + 2 * i_tile + 1) * BLOCK
        exists = i_sequence >= 0
        q_start = tl.load(sequences.p_cu_q + i_sequence, mask=exists, other=0).to(tl.int64)
        k_start = tl.load(sequences.p_cu_k + i_sequence, mask=exists, other=0).to(tl.int64)
        q_end = tl.load(sequences.p_cu_q + i_sequence + 1, mask=exists, other=0).to(tl.int64)
        k_end = tl.load(sequences.p_cu_k + i_sequence + 1, mask=exists, other=0).to(tl.int64)
        q_len, k_len = (q_end - q_start).to(tl.int32), (k_end - k_start).to(tl.int32)
    else:
        first = (tiles - 1 - i_tile) * BLOCK
        if LAYOUT == CACHE:
            k_len = tl.load(sequences.p_lengths + batch).to(tl.int32)
    return Place(batch, head, q_start, q_len, k_start, k_len, first, sequence, few)


# ---- what a row sees -------------------------------------------------------------------------------------


@triton.jit
def bounds(row, place, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """First visible key of a row and one past its last; the mask is aligned to the bottom right."""
    hi = row * 0 + place.k_len
    if CAUSAL:
        hi = tl.minimum(tl.maximum(row + (place.k_len - place.q_len + 1), 0), place.k_len)
    lo = hi * 0
    if WINDOW:
        lo = tl.maximum(hi - window, 0)
    return lo, hi


@triton.jit
def members(place, rows, hi, ROWS: tl.constexpr):
    """The rows of a tile that exist and are this launch's."""
    chosen = rows < place.q_len
    if ROWS == MANY:
        chosen = chosen & ((hi > place.few) | (hi == 0))
    if ROWS == FEW:
        chosen = chosen & (hi > 0) & (hi <= place.few)
    return chosen


@triton.jit
def has_members(
    place, window, BLOCK_M: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, ROWS: tl.constexpr
):
    """Whether a tile of rows has any that are this launch's."""
    some = place.first < place.q_len
    if ROWS != ALL:
        _, fewest = bounds(place.first, place, window, CAUSAL, WINDOW)
        _, most = bounds(tl.minimum(place.first + BLOCK_M, place.q_len) - 1, place, window, CAUSAL, WINDOW)
        if ROWS == MANY:
            some = some & ((most > place.few) | (fewest == 0))
        else:
            some = some & (most > 0) & (fewest <= place.few)
    return some


class Span(NamedTuple):
    """Blocks of a sweep: from begin to end; those from full_begin to full_end lie under no mask."""

    begin: tl.tensor
    full_begin: tl.tensor
    full_end: tl.tensor
    end: tl.tensor


@triton.jit
def key_span(
    place, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr
):
    """The keys that the rows of a tile see; bounds never fall from row to row."""
    last = tl.minimum(place.first + BLOCK_M, place.q_len) - 1
    lo, common_end = bounds(place.first, place, window, CAUSAL, WINDOW)
    common_begin, hi = bounds(last, place, window, CAUSAL, WINDOW)
    full_begin = (common_begin + BLOCK_N - 1) // BLOCK_N * BLOCK_N
    full_end = tl.maximum(common_end // BLOCK_N * BLOCK_N, full_begin)
    return Span(lo // BLOCK_N * BLOCK_N, full_begin, full_end, hi)


@triton.jit
def row_span(
    place,
    window,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The rows of this launch that see the keys of a tile, which begins at ``place.first``."""
    first, last = place.first, tl.minimum(place.first + BLOCK_N, place.k_len) - 1
    begin, full_begin = first * 0, first * 0
    end, full_end = first * 0 + place.q_len, first * 0 + place.q_len
    offset = place.k_len - place.q_len
    if CAUSAL:
        begin = tl.maximum(first - offset, 0)
        full_begin = tl.maximum(last - offset, 0)
        if WINDOW:
            end = tl.minimum(tl.maximum(last - offset + window, 0), place.q_len)
            full_end = tl.minimum(tl.maximum(first - offset + window, 0), place.q_len)
    if ROWS != ALL:  # rows that see few keys come first, or a sequence without a mask has no others
        if CAUSAL:
            border = tl.minimum(tl.maximum(place.few - offset, 0), place.q_len)
        else:
            border = tl.where(place.k_len <= place.few, place.q_len, 0)
        if ROWS == MANY:
            begin, full_begin = tl.maximum(begin, border), tl.maximum(full_begin, border)
        else:
            end, full_end = tl.minimum(end, border), tl.minimum(full_end, border)
    full_begin = (full_begin + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    full_end = tl.maximum(full_end // BLOCK_M * BLOCK_M, full_begin)
    return Span(begin // BLOCK_M * BLOCK_M, full_begin, full_end, end)


@triton.jit
def sweep(
    body: tl.constexpr,
    state,
    context,
    span,
    BLOCK: tl.constexpr,
    LEADING: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    TERMS: tl.constexpr,
    PROBE_TERMS: tl.constexpr,
):
    """``state = body(state, context, start, MASKED, DIM, ...)`` for every block of the span.

    LEADING: blocks before the unmasked ones exist. They do under a window, and among the rows of a key.
    """
    if LEADING:
        for start in range(span.begin, tl.minimum(span.full_begin, span.end), BLOCK):
            state = body(state, context, start, True, DIM, VALUE_DIM, TERMS, PROBE_TERMS)
    for start in range(span.full_begin, span.full_end, BLOCK):
        state = body(state, context, start, False, DIM, VALUE_DIM, TERMS, PROBE_TERMS)
    for start in range(span.full_end, span.end, BLOCK):
        state = body(state, context, start, True, DIM, VALUE_DIM, TERMS, PROBE_TERMS)
    return state


# ---- memory ----------------------------------------------------------------------------------------------


class Keys(NamedTuple):
    """Keys and values that a head sees: pointers to the first row of the sequence, strides of a row.

    p_broken holds, for every key, how many keys before it have an entry that is not finite (``broken.py``).
    """

    p_k: tl.tensor
    s_k: tl.tensor
    p_v: tl.tensor
    s_v: tl.tensor
    p_broken: tl.tensor
    length: tl.tensor


@triton.jit
def find_keys(place, heads, kv_heads, capacity, p_k, s_kb, s_kt, s_kh, p_v, s_vb, s_vt, s_vh, p_broken):
    """The keys of a query head's group."""
    head = place.head // (heads // kv_heads)
    return Keys(
        p_k + place.batch * s_kb + place.k_start * s_kt + head * s_kh,
        s_kt,
        p_v + place.batch * s_vb + place.k_start * s_vt + head * s_vh,
        s_vt,
        p_broken + (place.batch * kv_heads + head) * (capacity + 1) + place.k_start,
        place.k_len,
    )


@triton.jit
def load_rows(p, stride, rows, exists, dims, OPERAND: tl.constexpr, DIM: tl.constexpr, MASKED: tl.constexpr):
    """Rows of a matrix in dtype OPERAND, ``[rows, dims]``, zeros where there is nothing."""
    pointers = p + rows.to(tl.int64)[:, None] * stride + dims[None, :]
    if OPERAND == tl.float64 and p.dtype.element_ty.primitive_bitwidth == 16:
        # Triton 3.6 lays float64 operands out by the width that they were loaded with, and then fails on 16
        # bits. It does not look behind a branch; this one is always taken.
        x = tl.zeros((rows.shape[0], dims.shape[0]), OPERAND)
        if stride != -1:
            x = load_masked(pointers, exists, dims, DIM, MASKED).to(OPERAND)
        return x
    else:
        return load_masked(pointers, exists, dims, DIM, MASKED).to(OPERAND)


@triton.jit
def load_masked(pointers, exists, dims, DIM: tl.constexpr, MASKED: tl.constexpr):
    """What the pointers ``[rows, dims]`` point to, and zeros in rows and dimensions that do not exist."""
    if MASKED:
        return tl.load(pointers, mask=exists[:, None] & (dims < DIM)[None, :], other=0.0)
    elif dims.shape[0] != DIM:
        return tl.load(pointers, mask=(dims < DIM)[None, :], other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def whole(keys, columns):
    """Keys that exist and are finite. A masked entry still meets a weight of 0 in a product, and 0 times
    NaN is NaN, so blocks under a mask read the others as zeros.
    """
    exists = columns < keys.length
    before = tl.load(keys.p_broken + columns, mask=exists, other=0)
    after = tl.load(keys.p_broken + columns + 1, mask=exists, other=0)
    return exists & (before == after)


@triton.jit
def load_keys(keys, start, columns, dims, OPERAND: tl.constexpr, DIM: tl.constexpr, MASKED: tl.constexpr):
    """A block of keys: their numbers, which of them may be read, and themselves."""
    columns = start + columns
    exists = columns >= 0
    if MASKED:
        exists = whole(keys, columns)
    return columns, exists, load_rows(keys.p_k, keys.s_k, columns, exists, dims, OPERAND, DIM, MASKED)


@triton.jit
def sees_broken(keys, lo, hi):
    """Rows that see a key or value which is not finite."""
    return tl.load(keys.p_broken + hi) > tl.load(keys.p_broken + lo)


@triton.jit
def row_offsets(place, rows, s_b, s_t, s_h):
    """Offsets of rows in a ``[batch, seq, heads]`` operand with any strides."""
    return place.batch * s_b + (place.q_start + rows) * s_t + place.head * s_h


@triton.jit
def first_row(p, place, s_b, s_t, s_h):
    """Pointer to the first row of the sequence in a ``[batch, seq, heads, dim]`` operand."""
    return p + place.batch * s_b + place.q_start * s_t + place.head * s_h


@triton.jit
def own_rows(place, rows, total, heads):
    """Numbers of rows in a contiguous ``[batch, total, heads]`` tensor."""
    return (place.batch * total + place.q_start + rows) * heads + place.head


@triton.jit
def all_finite(x):
    """Rows of x without NaN or infinity: x - x is 0 for finite numbers alone."""
    return tl.sum(tl.where(x - x == 0, 0, 1), 1) == 0


@triton.jit
def state_rows(place, rows, total, heads, CAUSAL: tl.constexpr, ROWS: tl.constexpr):
    """Numbers of rows in what a launch keeps of them: ``own_rows``, but rows that see few keys of causal
    sequences are packed, at most ``few`` of a sequence.
    """
    if CAUSAL and ROWS == FEW:
        first = tl.maximum(place.q_len - place.k_len, 0)
        return (place.sequence * place.few + rows - first) * heads + place.head
    return own_rows(place, rows, total, heads)


@triton.jit
def scalar_rows(place, rows, total, heads, CAUSAL: tl.constexpr, ROWS: tl.constexpr):
    """``state_rows`` for what is one number a row: heads outside, so that the rows of a tile lie side by
    side.
    """
    if CAUSAL and ROWS == FEW:
        first = tl.maximum(place.q_len - place.k_len, 0)
        return (place.sequence * heads + place.head) * place.few + rows - first
    return (place.batch * heads + place.head) * total + place.q_start + rows


@triton.jit
def is_finite(x):
    """Entries that are neither NaN nor infinite."""
    return x - x == 0


@triton.jit
def combine(hi, lo, ACC: tl.constexpr, TERMS: tl.constexpr):
    """The number that ``split`` took apart."""
    x = hi.to(ACC)
    if TERMS == 2:
        x += lo.to(ACC)
    return x
