"""The cache that keeps what a window can still see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flashlla.nn.cache.base import check_counts, check_lengths, on_device
from flashlla.nn.cache.static import KVCache

SLACK = 128  # least rows beyond the window: the more, the longer the pieces of a prompt


def sliding_capacity(window_size: int, length: int) -> int:
    """Rows of memory for sequences of ``length`` rows: all of them, or a window and as much again."""
    return max(window_size, min(length, window_size + max(window_size, SLACK)))


class SlidingKVCache(KVCache):
    """The last rows of each sequence, in order: memory for a window, whatever the length.

    When there is no room for new rows, the last ``window_size - 1`` of each sequence move to the front; with
    ``window_size`` rows of slack that is one row copied a step on average. ``lengths`` counts the rows that
    are stored and ``positions`` all that there were. There is no overflow.

    Args:
        capacity: rows of memory for each sequence, at least window_size.
        window_size: visible keys, the diagonal included: that of the layer, or more.
        others: as for :class:`KVCache`.

    Raises:
        TypeError, ValueError: a size that is no int of at least 1, or less capacity than the window.
    """

    window_size: int
    most_rows: int

    def __init__(
        self,
        batch: int,
        capacity: int,
        kv_heads: int,
        head_dim: int,
        value_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        window_size: int,
    ):
        if capacity < window_size:
            raise ValueError(f"capacity={capacity} is below window_size={window_size}, and must not be")
        super().__init__(batch, capacity, kv_heads, head_dim, value_dim, device, dtype)
        self.window_size = window_size
        self.most_rows = capacity - window_size + 1
        self._positions = torch.zeros_like(self.lengths)

    @property
    def positions(self) -> Tensor:
        return self._positions

    def check_room(self, rows: int, counts: Sequence[int] | None = None) -> None:
        check_counts(rows, counts, self.batch)
        if rows > self.most_rows:
            raise ValueError(
                f"rows={rows} at once exceed the limit of {self.most_rows} for capacity={self.capacity} and "
                f"window_size={self.window_size}; write them in pieces, as the layers do"
            )

    def reserve(self, rows: int, counts: Sequence[int] | None = None) -> None:
        self.check_room(rows, counts)
        if self.longest + rows > self.capacity:
            self._slide()

    def truncate(self, lengths: int | Sequence[int] | Tensor) -> None:
        """As in :class:`Cache`, with ``lengths`` in positions.

        Raises:
            ValueError: rows that the window would then see are forgotten already.
        """
        target = on_device(check_lengths(lengths, self.batch), self.lengths.device)
        cut = (self._positions - target).clamp(min=0)
        first = self._positions - self.lengths
        visible = (target - self.window_size + 1).clamp(min=0)  # the first row that the next query sees
        gone = (cut > 0) & (visible < target) & (visible < first)
        if bool(gone.any()):
            row = int(gone.nonzero()[0])
            raise ValueError(
                f"lengths[{row}]={int(target[row])} needs rows before row {int(first[row])}, which are "
                "forgotten; reset() and start again, or make a cache with more capacity"
            )
        self.lengths.sub_(cut).clamp_(min=0)
        self._positions -= cut
        self.longest = int(self.lengths.max())

    def reset(self) -> None:
        super().reset()
        self._positions.zero_()

    def _count(self, new: int | Tensor, most: int) -> None:
        super()._count(new, most)
        self._positions += new

    def _slide(self) -> None:
        """Move the last rows of each sequence to the front."""
        kept = self.window_size - 1
        start = (self.lengths - kept).clamp(min=0)
        sequences = torch.arange(self.batch, device=self.k.device)[:, None]
        slots = start[:, None] + torch.arange(kept, device=self.k.device)
        self.k[:, :kept], self.v[:, :kept] = self.k[sequences, slots], self.v[sequences, slots]
        self.lengths -= start
        self.longest = min(self.longest, kept)
