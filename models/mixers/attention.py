"""The attention layers of :mod:`flashlla.nn` as token mixers; their decode state is a key/value cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flashlla.nn import Cache, PagedKVCache, PageTable


class AttentionMixer(nn.Module):
    """A causal attention layer behind the interface of :mod:`flashlla.models.mixers`."""

    def __init__(self, layer: type[nn.Module], dim: int, heads: int, kv_heads: int | None = None, **options):
        super().__init__()
        if not options.get("causal", True):
            raise ValueError("causal=False: a token mixer of a language model must be causal")
        self.attention = layer(dim, heads, kv_heads=kv_heads, **options)

    def forward(self, x: Tensor, state: Cache | None = None, lengths: Sequence[int] | None = None) -> Tensor:
        return self.attention(x, cache=state, lengths=lengths)

    def make_state(
        self, batch: int, capacity: int, *, kind: str = "static", dtype: torch.dtype | None = None
    ) -> Cache:
        return self.attention.make_cache(batch, capacity, kind=kind, dtype=dtype)

    def make_paged_state(self, table: PageTable, *, dtype: torch.dtype | None = None) -> PagedKVCache:
        return self.attention.make_paged_cache(table, dtype=dtype)

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        self.attention.out_proj.weight.mul_(factor)
