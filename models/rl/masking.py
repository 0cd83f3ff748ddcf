"""Means over the steps that count."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Mean of ``x`` where ``mask`` is True; 0 where it is so nowhere.

    What stands elsewhere has no influence, be it NaN. Over all dimensions every step counts alike; with
    ``dim=-1`` and a mean behind it every row does, as in GRPO (arXiv 2402.03300, equation 3).

    Args:
        x: floats of any shape.
        mask: bool, broadcast to the shape of x.
        dim: dimensions that the mean is over; None means all.
    """
    mask = mask.expand_as(x)
    dim = tuple(range(x.dim())) if dim is None else dim
    return x.masked_fill(~mask, 0.0).sum(dim) / mask.sum(dim).clamp(min=1)


def whiten(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """``x`` with mean 0 and variance 1 over all entries where ``mask`` is True, and 0 elsewhere.

    Advantages are brought to one scale in this way before a step of PPO.
    """
    centred = x - masked_mean(x, mask)
    scale = masked_mean(centred.square(), mask).add(eps).rsqrt()
    return torch.where(mask, centred * scale, 0.0)
