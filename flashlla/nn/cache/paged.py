"""The cache whose rows lie in pages that sequences share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flashlla.nn.cache.base import Cache, check_lengths
from flashlla.nn.cache.table import PageTable
from flashlla.nn.checks import check_sizes


class PagedKVCache(Cache):
    """One layer's pages of a :class:`PageTable`; the batch is what the table has selected.

    The layers of a model share one table. Make their caches in the order in which they run, and let every
    step run all of them: the first makes room, the last counts the rows in.

    Args:
        table: who holds which page.
        kv_heads, head_dim: sizes of keys; value_dim: width of values, None means head_dim.
        dtype: of keys and values; the device is the table's.

    Attributes:
        k: ``[pages + 1, page_size, kv_heads, head_dim]``; v: ``[pages + 1, page_size, kv_heads, value_dim]``.
            The last page takes padding, and is never read for anything else.

    Raises:
        TypeError, ValueError: a size that is no int of at least 1, or a table with rows in it.
    """

    def __init__(
        self,
        table: PageTable,
        kv_heads: int,
        head_dim: int,
        value_dim: int | None = None,
        dtype: torch.dtype | None = None,
    ):
        value_dim = head_dim if value_dim is None else value_dim
        check_sizes(kv_heads=kv_heads, head_dim=head_dim, value_dim=value_dim)
        rows = (table.pages + 1, table.page_size, kv_heads)
        self.k = torch.empty(*rows, head_dim, device=table.device, dtype=dtype)
        self.v = torch.empty(*rows, value_dim, device=table.device, dtype=dtype)
        self.table = table
        self._layer = table.register(self)

    # Those of the table, which alone changes them.

    @property
    def lengths(self) -> Tensor:  # type: ignore[override]
        return self.table.lengths

    @property
    def block_table(self) -> Tensor:  # type: ignore[override]
        return self.table.block_table

    def check_room(self, rows: int, counts: Sequence[int] | None = None) -> None:
        if self._layer == 0:
            self.table.check_room(rows, counts)

    def reserve(self, rows: int, counts: Sequence[int] | None = None) -> None:
        if self._layer == 0:
            self.table.reserve(rows, counts)

    def advance(self, rows: int, counts: Sequence[int] | None = None) -> None:
        if self._layer == self.table.layers - 1:
            self.table.advance(rows, counts)

    def truncate(self, lengths: int | Sequence[int] | Tensor) -> None:
        """As in :class:`Cache`, for the selected sequences in all layers."""
        for name, length in zip(self.table.selected, check_lengths(lengths, self.batch), strict=True):
            self.table.truncate(name, length)

    def reset(self) -> None:
        """Forget every row of the selected sequences, in all layers."""
        self.truncate(0)

    def copy_pages(self, source: Tensor, target: Tensor) -> None:
        """Copy the pages ``source`` into the pages ``target``, int64 ``[n]`` each."""
        self.k[target], self.v[target] = self.k[source], self.v[source]
