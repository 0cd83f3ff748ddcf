"""What the decoding kernels share: which keys a row of a cache sees, how they are split, and where they lie.

A row's keys are split into pieces whose size follows from their number alone, so that a result does not
depend on what else is in the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

SHORTEST_SPLIT = tl.constexpr(1024)
LONGEST_SPLIT = tl.constexpr(4096)
USUAL_SPLITS = tl.constexpr(8)  # between those two sizes; long sequences have more, short ones fewer

# Lengths change from step to step, sizes of a batch from call to call: no reason to compile again.
UNSPECIALIZED = ("q_len", "heads", "kv_heads", "splits", "window", "page_size", "max_iters")


def most_splits(capacity: int) -> int:
    """How many splits a row of a cache can have, at most."""
    few, many = (-(-max(capacity, 1) // size.value) for size in (LONGEST_SPLIT, SHORTEST_SPLIT))
    most: int = max(few, min(many, USUAL_SPLITS.value))
    return most


@triton.jit
def split_size(keys):
    """Size of the splits of a row that sees so many keys: an eighth of them, rounded up to a power of two."""
    size = tl.zeros_like(keys) + SHORTEST_SPLIT
    while (size * USUAL_SPLITS < keys) & (size < LONGEST_SPLIT):
        size *= 2
    return size


@triton.jit
def visible(p_lengths, batch, token, q_len, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """First visible key of a token and one past its last; the mask is aligned to the bottom right."""
    length = tl.load(p_lengths + batch).to(tl.int32)
    hi = length + token * 0
    if CAUSAL:
        hi = tl.minimum(tl.maximum(token + (length - q_len + 1), 0), length)
    lo = hi * 0
    if WINDOW:
        lo = tl.maximum(hi - window, 0)
    return lo, hi


class Cache(NamedTuple):
    """Keys or values of one head: pointer, strides of a page (or batch row) and of a row in it, the pages."""

    p: tl.tensor
    s_page: tl.tensor
    s_row: tl.tensor
    p_table: tl.tensor
    page_size: tl.tensor
    batch: tl.tensor  # int64


@triton.jit
def load_cached(cache, rows, exists, dims, DIM: tl.constexpr, PAGED: tl.constexpr):
    """Rows of a cache, ``[rows, dims]`` in its dtype, zeros where there is nothing."""
    if PAGED:
        page = tl.load(cache.p_table + rows // cache.page_size, mask=exists, other=0).to(tl.int64)
        offsets = page * cache.s_page + (rows % cache.page_size).to(tl.int64) * cache.s_row
    else:
        offsets = cache.batch * cache.s_page + rows.to(tl.int64) * cache.s_row
    pointers = cache.p + offsets[:, None] + dims[None, :]
    return tl.load(pointers, mask=exists[:, None] & (dims < DIM)[None, :], other=0.0)
