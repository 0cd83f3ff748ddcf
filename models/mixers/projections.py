"""Queries, keys and values by head, with an optional short convolution: the front of most mixers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import by_head
from .short_conv import ShortConv


class QKVProjection(nn.Module):
    """``q_proj``, ``k_proj`` and ``v_proj``, a short convolution over them, and SiLU.

    Args:
        dim, heads, kv_heads, head_dim, value_dim: sizes, checked.
        short_conv: taps of the convolution, None for none.
        silu: apply SiLU behind it.
        values: convolution and SiLU include the values; otherwise queries and keys only.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        value_dim: int,
        *,
        short_conv: int | None,
        silu: bool,
        values: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.kv_heads, self.group, self.silu = kv_heads, heads // kv_heads, silu
        self.sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * value_dim]
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(dim, size, bias=False, **factory) for size in self.sizes
        )
        self.parts = 3 if values else 2
        channels = sum(self.sizes[: self.parts])
        self.conv = None if short_conv is None else ShortConv(channels, short_conv, **factory)

    def state_sizes(self) -> dict[str, tuple[int, ...]]:
        """The rows that the convolution has to remember, by name; none without one."""
        return {} if self.conv is None else {"conv": (self.conv.width - 1, self.conv.weight.shape[1])}

    def forward(
        self, x: Tensor, past: dict[str, Tensor], counts: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """q, k and v by head in ``dtype``, and the tensors of the state behind x."""
        projected = [proj(x).to(dtype) for proj in (self.q_proj, self.k_proj, self.v_proj)]
        front, following = projected[: self.parts], {}
        if self.conv is not None:
            mixed, following["conv"] = self.conv(torch.cat(front, -1), past["conv"], counts)
            front = mixed.split(self.sizes[: self.parts], -1)
        if self.silu:
            front = [F.silu(t) for t in front]
        q, k, v = (*front, *projected[self.parts :])
        return (
            by_head(q, self.kv_heads, self.group),
            by_head(k, self.kv_heads),
            by_head(v, self.kv_heads),
            following,
        )
