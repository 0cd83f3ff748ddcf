"""The short causal convolution in front of many mixers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flashlla.nn.checks import check_sizes


class ShortConv(nn.Module):
    """Depthwise causal convolution: ``y_t = sum_i w_i x_{t - i}``, ``i = 0 .. width - 1``, for every channel.

    The sum is written out: shifted inputs, multiplied and added, which is exact about what sees what.

    Args:
        channels: number of channels.
        width: number of taps, at least 2.
        bias: add a learned number to every channel.
    """

    def __init__(self, channels: int, width: int, bias: bool = False, device=None, dtype=None):
        super().__init__()
        check_sizes(short_conv=width)
        if width < 2:
            raise ValueError(f"short_conv={width} must be at least 2; None leaves the convolution out")
        self.width = width
        bound = width**-0.5
        weight = torch.empty(width, channels, device=device, dtype=dtype).uniform_(-bound, bound)
        self.weight = nn.Parameter(weight)
        bias = torch.zeros(channels, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))

    def forward(self, x: Tensor, past: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolve ``x`` ``[batch, seq, channels]`` behind ``past``, its last ``width - 1`` rows.

        Returns:
            The convolution, and the ``past`` of what follows the first ``counts`` rows of x.
        """
        joined, following = slide(past, x, counts)
        weight = self.weight.to(joined.dtype)
        last = joined.shape[1]
        y = sum(joined[:, self.width - 1 - i : last - i] * weight[i] for i in range(self.width))
        return (y if self.bias is None else y + self.bias.to(y.dtype)), following

    def extra_repr(self) -> str:
        return f"channels={self.weight.shape[1]}, width={self.width}"


def slide(past: Tensor, new: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """``new`` behind ``past``, ``[batch, rows, channels]`` each, and the last rows up to ``counts`` of new.

    There are as many last rows as there were in past; earlier ones are forgotten.
    """
    joined = torch.cat([past, new.to(past.dtype)], 1)
    kept = past.shape[1]
    if counts is None:
        return joined, joined[:, joined.shape[1] - kept :]
    rows = counts[:, None] + torch.arange(kept, device=counts.device)
    return joined, joined.gather(1, rows[..., None].expand(-1, -1, joined.shape[2]))
