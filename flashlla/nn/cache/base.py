"""What the attention layers and the models use of a cache, whatever its kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class Cache(ABC):
    """Keys and values of one layer for a batch of sequences, and how many rows of each are stored.

    A step has three parts, which the layers of :mod:`flashlla.nn` take by themselves::

        cache.reserve(rows)     make room, or raise and leave everything as it was
        *_with_kvcache(q, cache.k, cache.v, k, v, cache_seqlens=cache.lengths, block_table=cache.block_table)
        cache.advance(rows)     count the new rows in

    None of them waits for a GPU: what they decide follows from numbers on the host. In all of them ``counts``
    says how many of the new rows of each sequence are real, ints in ``[0, rows]``; the others are padding
    behind these and are not counted in. ``None`` stands for all of them.

    Attributes:
        k, v: what ``*_with_kvcache`` takes as ``k_cache`` and ``v_cache``, rotary positions already applied.
        lengths: stored rows of each sequence, int64 ``[batch]``.
        block_table: the pages of each sequence, int64 ``[batch, max_pages]``; None if there are none.
        window_size: number of visible keys that are kept for a query; None means all.
        most_rows: the most rows that one step takes; None means any number. Layers split longer inputs.
    """

    k: Tensor
    v: Tensor
    lengths: Tensor
    block_table: Tensor | None = None
    window_size: int | None = None
    most_rows: int | None = None

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self.lengths.shape[0]

    @property
    def positions(self) -> Tensor:
        """Position of the next row of each sequence, int64 ``[batch]``: all rows it ever had count."""
        return self.lengths

    @abstractmethod
    def check_room(self, rows: int, counts: Sequence[int] | None = None) -> None:
        """Raise ValueError if ``rows`` more rows do not fit."""

    @abstractmethod
    def reserve(self, rows: int, counts: Sequence[int] | None = None) -> None:
        """Make room for ``rows`` more rows; k, v and block_table are then those to write through.

        Raises:
            ValueError: they do not fit; nothing has changed.
        """

    @abstractmethod
    def advance(self, rows: int, counts: Sequence[int] | None = None) -> None:
        """Count rows in that have been written behind the stored ones.

        Raises:
            ValueError: they do not fit.
        """

    @abstractmethod
    def truncate(self, lengths: int | Sequence[int] | Tensor) -> None:
        """Keep at most the first ``lengths`` rows of each sequence: one int, or ``batch`` of them.

        Raises:
            ValueError: not one entry a sequence, or one below 0.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget every row; the memory is kept."""

    def append(self, k: Tensor, v: Tensor) -> None:
        """Write ``k`` ``[batch, rows, kv_heads, head_dim]`` and ``v`` behind the stored rows, counted in.

        Raises:
            TypeError: their dtype is not that of the cache.
            ValueError: wrong shapes, or they do not fit; nothing is written.
        """
        for name, new, stored in (("k", k, self.k), ("v", v, self.v)):
            expected = (self.batch, k.shape[1] if k.dim() == 4 else "rows", *stored.shape[2:])
            if tuple(new.shape) != expected:
                raise ValueError(f"{name} has shape {tuple(new.shape)}; this cache takes {expected}")
            if new.dtype != stored.dtype:
                raise TypeError(f"{name} has dtype {new.dtype} and the cache has {stored.dtype}; cast it")
        step = self.most_rows or max(k.shape[1], 1)
        for k_piece, v_piece in zip(k.split(step, 1), v.split(step, 1), strict=True):
            rows = k_piece.shape[1]
            self.reserve(rows)
            at = self._slots(rows)
            self.k[at], self.v[at] = k_piece, v_piece
            self.advance(rows)

    def _slots(self, rows: int) -> tuple[Tensor, Tensor]:
        """Where in k and v the next ``rows`` rows of each sequence lie."""
        first = torch.arange(self.batch, device=self.k.device)[:, None]
        second = self.lengths[:, None] + torch.arange(rows, device=self.k.device)
        if self.block_table is None:
            return first, second
        page_size = self.k.shape[1]
        return self.block_table[first, second // page_size], second % page_size


def on_device(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device | str | None) -> Tensor:
    """Ints of the host as an int64 tensor on ``device``, without waiting for what that still computes."""
    return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)


def check_counts(rows: int, counts: Sequence[int] | None, batch: int, name: str = "counts") -> None:
    """``rows`` is a number of rows, and ``counts`` has one for every sequence, not above it."""
    if rows < 0:
        raise ValueError(f"rows={rows} must be at least 0; truncate() forgets rows")
    if counts is None:
        return
    if isinstance(counts, Tensor):
        raise TypeError(
            f"{name} must be a list of ints, not a tensor: the host decides by them; use tolist()"
        )
    if len(counts) != batch:
        raise ValueError(f"{name} has {len(counts)} entries for a batch of {batch}; give one a sequence")
    if counts and not 0 <= min(counts) <= max(counts) <= rows:
        wrong = min(counts) if min(counts) < 0 else max(counts)
        raise ValueError(f"{name} has the entry {wrong}; of {rows} new rows each sequence counts 0 to {rows}")


def check_lengths(lengths: int | Sequence[int] | Tensor, batch: int) -> list[int]:
    """``lengths`` of a truncation as one int a sequence."""
    if isinstance(lengths, int):
        lengths = [lengths] * batch
    elif isinstance(lengths, Tensor):
        lengths = lengths.tolist()
    if not isinstance(lengths, Sequence) or len(lengths) != batch:
        shape = len(lengths) if isinstance(lengths, Sequence) else "no"
        raise ValueError(f"lengths has {shape} entries for a batch of {batch}; give one a sequence")
    if lengths and min(lengths) < 0:
        raise ValueError(f"lengths has the entry {min(lengths)}; 0 forgets every row")
    return list(lengths)
