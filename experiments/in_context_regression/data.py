"""Sequences of pairs whose map from x to y changes from segment to segment."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..test_time_regression.data import piecewise_linear

WAVES = 32  # random features of an entry of y
BEND = 1.0  # radians, one standard deviation, that a wave turns by within a segment
KNOTS = (-3.0, 3.0, 7)  # of a spline: first, last, how many, in standard deviations of its argument
TARGETS = ("linear", "fourier", "spline")


def pairs(
    target: str, batch: int, length: int, dim: int, segment: int, noise: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw x and y, ``[batch, length, dim]`` each.

    x is that of test-time regression whatever the target: normal around a centre that is drawn anew for every
    segment, with variance 1 an entry. y is a function of x of the segment's own, and noise.

    Args:
        target: ``"linear"``, a matrix; ``"fourier"``, a sum of waves; ``"spline"``, in every entry a cubic
            spline of a projection of x.
        noise: standard deviation of the noise on y, whose entries have variance 1 (spline: about 0.8).
    """
    stream = piecewise_linear(batch, length, dim, segment, noise, generator)
    if target == "linear":
        return stream.keys, stream.values
    function = {"fourier": _waves, "spline": _splines}[target]
    parts = [function(x, generator) for x in stream.keys.split(segment, 1)]
    y = torch.cat(parts, 1)
    return stream.keys, y + noise * torch.randn(y.shape, generator=generator)


def _waves(x: Tensor, generator: torch.Generator) -> Tensor:
    """``sum_m a_m cos(w_m . x + b_m)`` in every entry, with waves of each sequence's own."""
    batch, _, dim = x.shape
    frequencies = torch.randn(batch, dim, WAVES, generator=generator) * (BEND * math.sqrt(2 / dim))
    phases = torch.rand(batch, 1, WAVES, generator=generator) * (2 * math.pi)
    amplitudes = torch.randn(batch, WAVES, dim, generator=generator) * math.sqrt(2 / WAVES)
    return (x @ frequencies + phases).cos() @ amplitudes


def _splines(x: Tensor, generator: torch.Generator) -> Tensor:
    """Splines through normal values at the knots; a spline is linear in these."""
    batch, _, dim = x.shape
    directions = torch.randn(batch, dim, dim, generator=generator)
    arguments = x @ (directions / directions.norm(dim=1, keepdim=True))
    values = torch.randn(batch, KNOTS[2], dim, generator=generator)
    weights = torch.from_numpy(_spline_through_units()(arguments.clamp(*KNOTS[:2]).numpy())).to(x.dtype)
    return torch.einsum("btdk,bkd->btd", weights, values)


@lru_cache
def _spline_through_units():
    """Splines that are 1 at one knot each and 0 at the others: what a value there weighs at any place."""
    import numpy as np
    from scipy.interpolate import CubicSpline

    return CubicSpline(np.linspace(*KNOTS), np.eye(KNOTS[2]), bc_type="natural")
