"""Causal convolutions as long as the sequence, ``y_t = sum_{s <= t} h_{t - s} z_s`` for every channel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def direct(z: Tensor, taps: Tensor) -> Tensor:
    """The sum as it is written: the specification.

    Args:
        z: ``[batch, rows, channels]``.
        taps: ``[channels, rows]`` or more.
    """
    return torch.cat([last_position(z[:, : t + 1], taps) for t in range(z.shape[1])], 1)


def last_position(z: Tensor, taps: Tensor) -> Tensor:
    """The last row of the convolution alone, ``[batch, 1, channels]``."""
    return (z * taps[:, : z.shape[1]].flip(1).mT).sum(1, keepdim=True)


def by_blocks(z: Tensor, taps: Tensor, smallest: int) -> Tensor:
    """The same by halves, O(rows log^2 rows).

    Neighbouring blocks of ``smallest``, then of twice and four times as many rows and so on: an FFT takes the
    left block of each pair into the right one, and what lies inside the smallest blocks is a product with a
    triangular matrix. One FFT over everything would do with less work, but mix every input into the rounding
    of every output; here an output is a sum over earlier inputs, bit for bit.
    """
    rows = z.shape[1]
    size = smallest
    while size < rows:
        size *= 2
    z = F.pad(z.mT, (0, size - rows))
    taps = F.pad(taps[:, :rows], (0, size - min(rows, taps.shape[1])))
    y = _inside(z.unflatten(-1, (-1, smallest)), taps).flatten(-2)
    width = smallest
    while width < size:
        left = z.unflatten(-1, (-1, 2, width))[..., 0, :]
        spectrum = torch.fft.rfft(left, 2 * width) * torch.fft.rfft(taps[:, : 2 * width])[:, None]
        right = torch.fft.irfft(spectrum, 2 * width)[..., width:]
        y = y + torch.stack([torch.zeros_like(right), right], -2).flatten(-3)
        width *= 2
    return y[..., :rows].mT


def _inside(blocks: Tensor, taps: Tensor) -> Tensor:
    """The convolution within each block, ``[batch, channels, blocks, size]``."""
    size = blocks.shape[-1]
    position = torch.arange(size, device=blocks.device)
    lag = position[:, None] - position
    matrix = taps[:, lag.clamp(min=0)].masked_fill(lag < 0, 0)  # [channels, size, size]
    return blocks @ matrix.mT
