"""How far samples are from a law."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .mixture import Mixture

DIRECTIONS = 64


def sliced_wasserstein(x: Tensor, y: Tensor) -> float:
    """The sliced 2-Wasserstein distance of two clouds in the plane, ``[count, 2]`` each.

    Its mean over directions is a quadrature over equally spaced ones.
    """
    angles = torch.arange(DIRECTIONS, dtype=torch.float64) * (math.pi / DIRECTIONS)
    directions = torch.stack([angles.cos(), angles.sin()])
    sorted_x, sorted_y = ((cloud.double() @ directions).sort(0).values for cloud in (x, y))
    return (sorted_x - sorted_y).square().mean().sqrt().item()


def mode_divergence(x: Tensor, mixture: Mixture) -> float:
    """KL from the shares of the nearest modes among samples ``[count, 2]`` to those of the target, nats."""
    nearest = torch.cdist(x, mixture.centres).argmin(1)
    target = mixture.target_modes()
    shares = torch.bincount(nearest, minlength=len(target)).double() / len(x)
    return torch.special.xlogy(shares, shares / target).sum().item()


def total_variation(counts: Tensor, law: Tensor) -> float:
    """Half the absolute difference of the shares of ``counts`` and the probabilities ``law``."""
    return (counts.double() / counts.sum() - law).abs().sum().item() / 2
