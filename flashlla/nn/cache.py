"""The key/value cache of one attention layer."""

from __future__ import annotations

import torch
from torch import Tensor

from flashlla.nn.checks import check_sizes


class KVCache:
    """Preallocated keys and values of one layer, and how many rows of each sequence are used.

    The ``*_with_kvcache`` functions write new rows behind the used ones of ``k`` and ``v``, in place, and
    leave ``lengths`` alone; :meth:`advance` then counts them in. The modules of :mod:`flashlla.nn` do both.
    ``longest`` is an upper bound of ``lengths`` on the host, so that overflow is noticed before anything is
    written and without waiting for a GPU: change lengths through the methods only.

    Attributes:
        k: ``[batch, capacity, kv_heads, head_dim]``, rotary positions already applied.
        v: ``[batch, capacity, kv_heads, value_dim]``.
        lengths: used rows of each sequence, int64 ``[batch]``.
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
    def batch(self) -> int:
        return self.k.shape[0]

    @property
    def capacity(self) -> int:
        return self.k.shape[1]

    def check_room(self, rows: int) -> None:
        """Raise ValueError if ``rows`` more rows do not fit."""
        if rows < 0:
            raise ValueError(f"rows={rows} must be at least 0; truncate() forgets rows")
        if self.longest + rows > self.capacity:
            raise ValueError(
                f"cache overflow: {self.longest} rows plus {rows} new exceed capacity={self.capacity}; "
                "make a longer cache, or reset() this one"
            )

    def advance(self, rows: int) -> None:
        """Count ``rows`` rows in that have been written behind the used ones.

        Raises:
            ValueError: they do not fit.
        """
        self.check_room(rows)
        self.lengths += rows
        self.longest += rows

    def append(self, k: Tensor, v: Tensor) -> None:
        """Write ``k`` ``[batch, rows, kv_heads, head_dim]`` and ``v`` behind the used rows and count them in.

        Raises:
            TypeError: their dtype is not that of the cache.
            ValueError: they do not fit.
        """
        for name, new, cache in (("k", k, self.k), ("v", v, self.v)):
            expected = (self.batch, k.shape[1] if k.dim() == 4 else "rows", *cache.shape[2:])
            if tuple(new.shape) != expected:
                raise ValueError(f"{name} has shape {tuple(new.shape)}; this cache takes {expected}")
            if new.dtype != cache.dtype:
                raise TypeError(f"{name} has dtype {new.dtype} and the cache has {cache.dtype}; cast it")
        rows = k.shape[1]
        self.check_room(rows)
        sequences = torch.arange(self.batch, device=self.k.device)[:, None]
        slots = self.lengths[:, None] + torch.arange(rows, device=self.k.device)
        self.k[sequences, slots], self.v[sequences, slots] = k, v
        self.advance(rows)

    def truncate(self, lengths: int | Tensor) -> None:
        """Keep at most ``lengths`` rows of each sequence: an int, or an integer tensor ``[batch]``.

        After a prefill of right-padded prompts it drops the padding.
        """
        if isinstance(lengths, Tensor) and lengths.shape != self.lengths.shape:
            raise ValueError(
                f"lengths has shape {tuple(lengths.shape)}; expected {tuple(self.lengths.shape)}"
            )
        self.lengths.clamp_(max=lengths)
        self.longest = int(self.lengths.max())

    def reset(self) -> None:
        """Forget every row; the memory is kept."""
        self.lengths.zero_()
        self.longest = 0
