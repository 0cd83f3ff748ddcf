"""The vocabulary that all backends share: options, layouts, and what a pass returns.

A backend is a module with two functions::

    forward(q, k, v, probe, ridge, gate, layout, options, stats) -> Forward
    backward(do, q, k, v, probe, ridge, gate, kbar, g, layout, options) -> Gradients

q is ``[batch, q_len, heads, head_dim]``, k and v are ``[batch, kv_len, kv_heads, ...]``, probe has the
shape of q, ridge and gate are ``[batch, q_len, heads]`` in float32 (float64 for float64 operands).
Three kinds of probe exist: with ``ridge`` it is solved for (LLA), with ``probe`` it is given
(Parallax), with neither it is zero (softmax attention).
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

MAX_DECODE_QUERIES = 16  # more new queries a sequence than these over a cache are a prefill


class Options(NamedTuple):
    """The scalar options of one call, every default resolved."""

    scale: float
    causal: bool
    window_size: int  # number of visible keys, the diagonal included; 0 means no window
    solver: str  # "auto", "cg" or "direct"
    rtol: float
    max_iters: int


class Layout(NamedTuple):
    """Where the sequences lie in the operands.

    All None: one sequence a batch row. ``cu_seqlens_*`` (int, ``[sequences + 1]``): packed sequences in
    a batch of one, those of the keys None if they are the same. ``seqlens_k`` (int, ``[batch]``): the used
    length of each row of a key/value cache. ``block_table`` (int, ``[batch, max_pages]``), with seqlens_k:
    the cache is paged, k and v are ``[pages, page_size, kv_heads, ...]`` and row ``b`` holds its keys in the
    pages that ``block_table[b]`` lists; entries behind the used ones may be anything.
    """

    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    seqlens_k: Tensor | None = None
    block_table: Tensor | None = None

    @property
    def packed(self) -> tuple[Tensor, Tensor] | None:
        """Cumulative lengths of queries and keys, if sequences are packed."""
        if self.cu_seqlens_q is None:
            return None
        return self.cu_seqlens_q, self.cu_seqlens_q if self.cu_seqlens_k is None else self.cu_seqlens_k


class Forward(NamedTuple):
    """What a forward pass returns; ``kbar`` and ``g`` are what its own backward wants back.

    o ``[batch, q_len, heads, value_dim]`` in the dtype of q; lse, residual ``[batch, q_len, heads]`` in the
    accumulation dtype; iterations int32 ``[batch, q_len, heads]``. kbar and g are the backend's own:
    ``flashlla._library`` promises their shapes and dtypes, and only its backward pass knows what they hold.
    """

    o: Tensor
    lse: Tensor
    kbar: Tensor
    g: Tensor
    residual: Tensor
    iterations: Tensor


class Gradients(NamedTuple):
    """What a backward pass returns, in the dtypes of the operands; dprobe, dridge, dgate may be None."""

    dq: Tensor
    dk: Tensor
    dv: Tensor
    dprobe: Tensor | None
    dridge: Tensor | None
    dgate: Tensor | None


class Sequence(NamedTuple):
    """Slices of one piece of work: batch rows, query rows, and key rows of the operands."""

    batch: slice
    q_rows: slice
    k_rows: slice


def contiguous_cache(k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Layout]:
    """A paged cache as rows ``[batch, max_pages * page_size, kv_heads, ...]``, copied; others as are."""
    if layout.block_table is None:
        return k, v, layout
    pages = layout.block_table.long().clamp(0, max(k.shape[0] - 1, 0))
    k, v = (t[pages].flatten(1, 2) for t in (k, v))
    return k, v, layout._replace(block_table=None)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a backend accumulates and solves for operands of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sequences(layout: Layout, q: Tensor, k: Tensor) -> list[Sequence]:
    """The pieces of a problem that PyTorch code computes one after the other.

    A dense batch is one piece; packed sequences and cache rows are one piece each.
    """
    whole = slice(None)
    if layout.seqlens_k is not None:
        lengths = layout.seqlens_k.tolist()
        return [Sequence(slice(b, b + 1), whole, slice(0, n)) for b, n in enumerate(lengths)]
    if layout.packed:
        cu_q, cu_k = (t.tolist() for t in layout.packed)
        return [
            Sequence(whole, slice(*rows), slice(*keys))
            for rows, keys in zip(pairwise(cu_q), pairwise(cu_k), strict=True)
        ]
    return [Sequence(whole, whole, whole)]


def visible_range(
    q_len: int, kv_len: int, causal: bool, window_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """First visible key and one past the last, for every query row (int64, ``[q_len]`` each).

    The mask is aligned to the bottom right: row ``i`` stands at position ``i + kv_len - q_len`` of the
    keys and sees the last ``window_size`` keys up to that position. Empty rows have ``lo == hi``.
    """
    if not causal:
        lo = torch.zeros(q_len, dtype=torch.int64, device=device)
        return lo, torch.full_like(lo, kv_len)
    hi = (torch.arange(q_len, device=device) + (kv_len - q_len + 1)).clamp(0, kv_len)
    return (hi - (window_size or kv_len)).clamp(min=0), hi
