"""The cache that is allocated once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flashlla.nn.cache.base import Cache, check_counts, check_lengths, on_device
from flashlla.nn.checks import check_sizes


class KVCache(Cache):
    """Preallocated keys and values: nothing moves, so that a step can be captured in a CUDA graph.

    ``longest`` is an upper bound of ``lengths`` on the host, so that overflow is noticed before anything is
    written and without waiting for a GPU: change lengths through the methods only.

    Args:
        batch: number of sequences.
        capacity: rows that each may reach; padding counts while it is being written.
        kv_heads, head_dim: sizes of keys; value_dim: width of values, None means head_dim.
        device, dtype: of keys and values.

    Attributes:
        k: ``[batch, capacity, kv_heads, head_dim]``; v: ``[batch, capacity, kv_heads, value_dim]``.

    Raises:
        TypeError, ValueError: a size that is no int of at least 1.
    """

    def __init__(
        self,
        batch: int,
        capacity: int,
        kv_heads: int,
        head_dim: int,
        value_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        value_dim = head_dim if value_dim is None else value_dim
        check_sizes(batch=batch, capacity=capacity, kv_heads=kv_heads, head_dim=head_dim, value_dim=value_dim)
        self.k = torch.empty(batch, capacity, kv_heads, head_dim, device=device, dtype=dtype)
        self.v = torch.empty(batch, capacity, kv_heads, value_dim, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self.longest = 0

    @property
    def capacity(self) -> int:
        """Rows of each sequence that there is memory for."""
        return self.k.shape[1]

    def check_room(self, rows: int, counts: Sequence[int] | None = None) -> None:
        check_counts(rows, counts, self.batch)
        self._check_capacity(rows)

    def reserve(self, rows: int, counts: Sequence[int] | None = None) -> None:
        self.check_room(rows, counts)

    def advance(self, rows: int, counts: Sequence[int] | None = None) -> None:
        check_counts(rows, counts, self.batch)
        self._check_capacity(rows)
        new = rows if counts is None else on_device(counts, self.lengths.device)
        self._count(new, rows if counts is None else max(counts))

    def truncate(self, lengths: int | Sequence[int] | Tensor) -> None:
        limit = on_device(check_lengths(lengths, self.batch), self.lengths.device)
        self.lengths.copy_(self.lengths.minimum(limit))
        self.longest = int(self.lengths.max())

    def reset(self) -> None:
        self.lengths.zero_()
        self.longest = 0

    def _check_capacity(self, rows: int) -> None:
        if self.longest + rows > self.capacity:
            raise ValueError(
                f"cache overflow: {self.longest} rows plus {rows} new exceed capacity={self.capacity}; "
                "make a longer cache, or reset() this one"
            )

    def _count(self, new: int | Tensor, most: int) -> None:
        self.lengths += new
        self.longest += most
