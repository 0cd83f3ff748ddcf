"""The cache that grows with its sequences."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flashlla.nn.cache.base import check_counts
from flashlla.nn.cache.static import KVCache


class GrowingKVCache(KVCache):
    """A :class:`KVCache` that moves into twice the memory when it is full; ``capacity`` is where it starts.

    Every row is copied once or twice over the life of a sequence. There is no overflow but that of the
    memory, and that leaves the cache as it was.
    """

    def check_room(self, rows: int, counts: Sequence[int] | None = None) -> None:
        check_counts(rows, counts, self.batch)

    def reserve(self, rows: int, counts: Sequence[int] | None = None) -> None:
        self.check_room(rows, counts)
        needed = self.longest + rows
        if needed > self.capacity:
            capacity = max(2 * self.capacity, needed)
            self.k, self.v = self._moved(self.k, capacity), self._moved(self.v, capacity)

    def _moved(self, rows: Tensor, capacity: int) -> Tensor:
        moved = rows.new_empty(rows.shape[0], capacity, *rows.shape[2:])
        moved[:, : self.longest] = rows[:, : self.longest]
        return moved
