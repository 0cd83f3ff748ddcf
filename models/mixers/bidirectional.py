"""Mixers that see the whole sequence, for encoders and diffusion.

An attention layer without its causal mask is one. Of a causal mixer with a state two runs are taken, over the
sequence and over its reverse, with one set of weights (arXiv 2403.03234 does so), so that the number of
parameters is that of the causal mixer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flashlla.nn.cache.base import check_counts, on_device

from . import ATTENTION_LAYERS, MIXERS


def build_bidirectional_mixer(
    name: str, dim: int, heads: int, kv_heads: int | None = None, *, rotary: bool = True, **options
) -> nn.Module:
    """The mixer called ``name`` without causality: ``mixer(x, lengths=None)``, x ``[batch, seq, dim]``.

    Args:
        rotary: rotary positions in the attention layers, which have no order without; the other mixers have
            one by themselves.
        options: keyword arguments of the mixer.

    Raises:
        ValueError: the name is unknown, or options of a wrong value: a window needs a causal mask.
        TypeError: options that the mixer does not have.
    """
    if name in ATTENTION_LAYERS:
        if "causal" in options:
            raise ValueError(
                f"causal={options['causal']}: a bidirectional mixer has no causal mask; leave it out"
            )
        layer = ATTENTION_LAYERS[name](dim, heads, kv_heads=kv_heads, causal=False, rotary=rotary, **options)
        return BidirectionalAttention(layer)
    if name not in MIXERS:
        raise ValueError(f"mixer={name!r} is unknown; choose one of {', '.join(MIXERS)}")
    return BothDirections(MIXERS[name](dim, heads, kv_heads, **options))


class BidirectionalAttention(nn.Module):
    """An attention layer over the real rows of each sequence."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Mix ``x`` ``[batch, seq, dim]``.

        ``lengths`` are the real rows of each sequence, ints; padding behind them is not read, and gives 0.

        Raises:
            TypeError, ValueError: lengths that do not fit, and as the layer does.
        """
        check_counts(x.shape[1], lengths, x.shape[0], "lengths")
        if lengths is None or min(lengths, default=0) == x.shape[1]:
            return self.attention(x)
        rows = torch.arange(x.shape[1], device=x.device)
        real = rows < on_device(lengths, x.device)[:, None]
        # The host knows how many rows are real, so that a GPU is not asked.
        at = real.flatten().nonzero_static(size=sum(lengths))[:, 0]
        bounds = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(x.device, non_blocking=True)
        packed = self.attention(x.flatten(0, 1)[at], cu_seqlens=bounds)
        return packed.new_zeros(x.shape[0] * x.shape[1], x.shape[2]).index_copy(0, at, packed).view_as(x)

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        self.attention.out_proj.weight.mul_(factor)


class BothDirections(nn.Module):
    """The mean of a causal mixer over the sequence and over its reverse."""

    def __init__(self, mixer: nn.Module):
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """As :meth:`BidirectionalAttention.forward`, but that outputs of padding have no meaning."""
        check_counts(x.shape[1], lengths, x.shape[0], "lengths")
        if lengths is None:
            return (self.mixer(x) + self.mixer(x.flip(1)).flip(1)) / 2
        rows, counts = torch.arange(x.shape[1], device=x.device), on_device(lengths, x.device)[:, None]
        mirrored = torch.where(rows < counts, counts - 1 - rows, rows)[..., None]
        backward = self.mixer(x.take_along_dim(mirrored, 1)).take_along_dim(mirrored, 1)
        return (self.mixer(x) + backward) / 2

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        self.mixer.scale_output(factor)
