"""The attention layers of :mod:`flashlla.nn` as token mixers; their decode state is a key/value cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flashlla.nn import KVCache


class AttentionMixer(nn.Module):
    """A causal attention layer behind the interface of :mod:`flashlla.models.mixers`."""

    def __init__(self, layer: type[nn.Module], dim: int, heads: int, kv_heads: int | None = None, **options):
        super().__init__()
        if not options.get("causal", True):
            raise ValueError("causal=False: a token mixer of a language model must be causal")
        self.attention = layer(dim, heads, kv_heads=kv_heads, **options)

    def forward(self, x: Tensor, state: KVCache | None = None) -> Tensor:
        return self.attention(x, cache=state)

    def make_state(
        self, batch: int, capacity: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> KVCache:
        return self.attention.make_cache(batch, capacity, device=device, dtype=dtype)

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        self.attention.out_proj.weight.mul_(factor)
