"""Rotary position embedding (arXiv 2104.09864), in the layout that pairs the two halves of a head."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosine and sine of every position and frequency: ``[..., seq, 1, head_dim / 2]``."""

    cos: Tensor
    sin: Tensor


def rotation(positions: Tensor, head_dim: int, base: float, dtype: torch.dtype) -> Rotation:
    """The rotation of integer ``positions`` ``[..., seq]``, in float32, or float64 for float64 operands."""
    dtype = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=dtype) / head_dim
    angles = positions.to(dtype)[..., None, None] * base**-exponents
    return Rotation(angles.cos(), angles.sin())


def rotate(x: Tensor, turn: Rotation) -> Tensor:
    """``x`` ``[..., seq, heads, head_dim]`` turned by its positions, in the dtype of x."""
    a, b = x.to(turn.cos.dtype).chunk(2, -1)
    return torch.cat([a * turn.cos - b * turn.sin, b * turn.cos + a * turn.sin], -1).to(x.dtype)


def packed_positions(cu_seqlens: Tensor, total: int) -> Tensor:
    """Position of each of ``total`` packed rows within its own sequence."""
    row = torch.arange(total, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), row, right=True)
    # Rows behind the last sequence are an error that the attention call names; here they must not be one.
    sequence = sequence.clamp(max=cu_seqlens.shape[0] - 1)
    return row - cu_seqlens[sequence]
