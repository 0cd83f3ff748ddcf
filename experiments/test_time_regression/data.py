"""Piecewise linear data that is not stationary: every segment has its own linear map, and its own place.

The paper does not say how its keys are distributed. Here the keys of a segment are normal around a centre,
itself
drawn anew for every segment, with as much of the variance between the centres as within: a key says, more or
less clearly, to which segment it belongs, which is what makes the map a function of the key.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Stream(NamedTuple):
    """Sequences of keys and values, and a test point for every position, from the same segment.

    Attributes:
        keys, values: ``[batch, length, dim]``; values carry noise.
        queries, targets: ``[batch, length, dim]``; targets carry none.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor
    targets: Tensor


def piecewise_linear(
    batch: int, length: int, dim: int, segment: int, noise: float, generator: torch.Generator
) -> Stream:
    """Draw ``batch`` sequences in segments of ``segment`` positions; keys and targets have variance 1 an
    entry.
    """
    count = -(-length // segment)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    maps = normal(count, dim, dim) / math.sqrt(dim)
    centres = normal(count, 1, dim) * math.sqrt(0.5)

    def draw() -> tuple[Tensor, Tensor]:
        points = centres + normal(count, segment, dim) * math.sqrt(0.5)
        return points.flatten(1, 2)[:, :length], (points @ maps).flatten(1, 2)[:, :length]

    keys, values = draw()
    queries, targets = draw()
    return Stream(keys, values + noise * normal(length, dim), queries, targets)
