"""What a number has to be held against: a Gaussian of the same width, and a rotation of the same vectors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .metrics import METRICS, measure

NULL_NUMBERS = 2**21  # drawn for a width: the mean of a metric is then known to 1e-3 of itself or better


class Null(NamedTuple):
    """A metric of vectors with independent entries from N(0, 1).

    Attributes:
        mean: over vectors.
        std: from vector to vector.
    """

    mean: float
    std: float


@lru_cache
def gaussian_null(dim: int) -> dict[str, Null]:
    """All metrics of Gaussian vectors of ``dim`` entries, by name.

    From ``2^21 / dim`` vectors, always the same ones; computed once a process, in a second.

    Raises:
        ValueError: fewer than 20 entries, of which 5 % is none.
    """
    generator = torch.Generator().manual_seed(dim)
    vectors = torch.randn(max(NULL_NUMBERS // dim, 2), dim, generator=generator)
    return {name: Null(v.mean().item(), v.std().item()) for name, v in measure(vectors).items()}


@lru_cache(maxsize=32)
def random_rotation(dim: int, seed: int = 0) -> Tensor:
    """An orthogonal matrix from the uniform (Haar) distribution, float64 ``[dim, dim]``.

    The same tensor at every call: do not change it in place.
    """
    gaussian = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    return q * r.diagonal().sign()  # without the signs, QR's own convention would favour some rotations


def rotated(h: Tensor, metrics: Sequence[str] = tuple(METRICS), *, rotations: int = 8) -> dict[str, Tensor]:
    """Metrics of ``h`` ``[..., dim]`` behind a random rotation, each ``[...]``, means over ``rotations``.

    All vectors are turned alike, and lengths and angles stay. What lies in the basis of the model is gone, so
    that a metric comes near that of a Gaussian; with few rotations within its ``std`` from vector to vector,
    because vectors that are alike stay so.
    """
    wide = h.to(torch.promote_types(h.dtype, torch.float32))
    turns = (random_rotation(h.shape[-1], seed).to(wide) for seed in range(rotations))
    found = [measure(wide @ turn, metrics) for turn in turns]
    return {name: torch.stack([values[name] for values in found]).mean(0) for name in metrics}
