"""How sparse vectors are: ``[..., dim]`` to ``[...]``, in float32 or better.

Definitions of arXiv 2603.03415 and its code. None but :func:`l1` depends on the length of a vector, and the
zero vector has none of them: NaN. All depend on the basis, so that a rotation changes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Metric(NamedTuple):
    """One number of a vector.

    Attributes:
        compute: ``compute(h)``, ``[..., dim]`` to ``[...]``.
        sign: 1 where a larger value means sparser, -1 where a smaller one does.
    """

    compute: Callable[[Tensor], Tensor]
    sign: int


def l1(h: Tensor) -> Tensor:
    """``sum |h_i|``, smaller is sparser; the only one here that grows with the length of ``h``."""
    return _magnitudes(h).sum(-1)


def top_energy(h: Tensor, share: float) -> Tensor:
    """Share of the energy, ``sum h_i^2``, in the ``floor(share * dim)`` largest entries; larger is sparser.

    Raises:
        ValueError: ``share`` is not in (0, 1], or that is no entry at all.
    """
    return _top(_magnitudes(h).square(), share)


def top_l1(h: Tensor, share: float) -> Tensor:
    """Share of ``sum |h_i|`` in the ``floor(share * dim)`` largest entries; larger is sparser.

    Raises:
        ValueError: as :func:`top_energy` does.
    """
    return _top(_magnitudes(h), share)


def effective_rank(h: Tensor, power: int = 2) -> Tensor:
    """``exp(-sum p log p) / dim`` with ``p_i = |h_i|^power / sum |h|^power``; smaller is sparser.

    Args:
        power: 2 for the energy, 1 for the magnitudes.
    """
    p = _magnitudes(h).pow(power)
    p = p / p.sum(-1, keepdim=True)
    return torch.special.entr(p).sum(-1).exp() / h.shape[-1]


def hoyer(h: Tensor) -> Tensor:
    """``(sqrt(dim) - |h|_1 / |h|_2) / (sqrt(dim) - 1)``: 0 for equal magnitudes, 1 for one entry alone."""
    a, root = _magnitudes(h), math.sqrt(h.shape[-1])
    return (root - a.sum(-1) / a.norm(dim=-1)) / (root - 1)


def gini(h: Tensor) -> Tensor:
    """Gini coefficient of the magnitudes: 0 where they are equal, ``1 - 1/dim`` for one entry alone."""
    a, dim = _magnitudes(h).sort(-1).values, h.shape[-1]
    ranks = torch.arange(1, dim + 1, device=a.device, dtype=a.dtype)
    return ((2 * ranks - dim - 1) * a).sum(-1) / (dim * a.sum(-1))


def kurtosis(h: Tensor) -> Tensor:
    """Fourth central moment over the square of the second: 3 for a Gaussian; larger is sparser."""
    centred = _wide(h) - _wide(h).mean(-1, keepdim=True)
    return centred.pow(4).mean(-1) / centred.square().mean(-1).square()


def participation_ratio(h: Tensor) -> Tensor:
    """``(sum h_i^2)^2 / (dim * sum h_i^4)``: 1 for equal magnitudes, ``1/dim`` for one entry alone."""
    energy = _magnitudes(h).square()
    return energy.sum(-1).square() / (h.shape[-1] * energy.square().sum(-1))


def l0(h: Tensor) -> Tensor:
    """Share of entries whose magnitude is above the mean of the magnitudes by more than their standard
    deviation (that of a population); smaller is sparser.
    """
    a = _magnitudes(h)
    limit = a.mean(-1, keepdim=True) + a.std(-1, correction=0, keepdim=True)
    share = (a > limit).to(a.dtype).mean(-1)
    return share.masked_fill(a.sum(-1) == 0, math.nan)


METRICS: dict[str, Metric] = {
    "l1": Metric(l1, -1),
    "top_5": Metric(lambda h: top_energy(h, 0.05), 1),
    "top_10": Metric(lambda h: top_energy(h, 0.1), 1),
    "top_10_l1": Metric(lambda h: top_l1(h, 0.1), 1),
    "erank": Metric(effective_rank, -1),
    "erank_l1": Metric(lambda h: effective_rank(h, 1), -1),
    "hoyer": Metric(hoyer, 1),
    "gini": Metric(gini, 1),
    "kurtosis": Metric(kurtosis, 1),
    "participation": Metric(participation_ratio, -1),
    "l0": Metric(l0, -1),
}


def measure(h: Tensor, metrics: Sequence[str] = tuple(METRICS)) -> dict[str, Tensor]:
    """Metrics by name of vectors ``[..., dim]``, each ``[...]``.

    Raises:
        ValueError: an unknown name, or vectors of fewer than 20 entries, of which 5 % is none.
    """
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"metric {name!r} is unknown; choose from {', '.join(METRICS)}")
    return {name: METRICS[name].compute(h) for name in metrics}


def _top(weights: Tensor, share: float) -> Tensor:
    dim = weights.shape[-1]
    count = math.floor(share * dim + 1e-9)  # 0.07 * 100 is a little less than 7
    if not 0 < share <= 1 or count < 1:
        raise ValueError(
            f"share={share} of {dim} entries is none; it must be in (0, 1] and at least {1 / dim:.2g}"
        )
    return weights.topk(count, -1).values.sum(-1) / weights.sum(-1)


def _magnitudes(h: Tensor) -> Tensor:
    return _wide(h).abs()


def _wide(h: Tensor) -> Tensor:
    return h.to(torch.promote_types(h.dtype, torch.float32))
