"""Means, and intervals over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas

RESAMPLES = 10_000
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An estimate and its bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def exact(value: float) -> Interval:
    """A number without an interval: of what is exact, where no seeds vary."""
    return Interval(value, value, value)


def geometric_mean(positive: Any, axis: int = 0) -> Any:
    """Of positive numbers along an axis, in place of a mean: ``groupby(...).agg(geometric_mean)`` of a table,
    where what is missing is left out, or the statistic of :func:`bootstrap`.
    """
    return np.exp(np.log(positive).mean(axis=axis))


def bootstrap(
    samples: Sequence[float] | np.ndarray, statistic: Callable[..., np.ndarray] = np.mean, *, seed: int = 0
) -> Interval:
    """The percentile bootstrap over the first axis: 95 %, from 10 000 resamples, always the same ones.

    With n samples the interval of a mean is about ``sqrt((n - 1) / n)`` of what it should be; with one there
    is none, and both ends are infinite.

    Args:
        samples: one entry, or one row, a seed.
        statistic: ``statistic(samples, axis=...)``.

    Raises:
        ValueError: no samples, or some that are not finite.
    """
    samples = np.asarray(samples, dtype=float)
    if not len(samples) or not np.isfinite(samples).all():
        raise ValueError(f"samples must be finite, and at least one; got {samples}")
    value = float(statistic(samples, axis=0))
    if len(samples) == 1:
        return Interval(value, -np.inf, np.inf)
    values = statistic(samples[_resamples(len(samples), seed)], axis=1)
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(low), float(high))


@lru_cache(maxsize=8)
def _resamples(count: int, seed: int) -> np.ndarray:
    """Which samples are drawn, ``[resamples, count]``."""
    return np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))


def over_seeds(numbers: pandas.Series, statistic: Callable[..., Any] = np.mean) -> Interval:
    """:func:`bootstrap` over seeds, each of which is first brought to one number.

    Args:
        numbers: with an index that has a level ``seed``.
        statistic: of the numbers of a seed, and of the seeds.
    """
    return bootstrap(numbers.groupby("seed").agg(statistic), statistic)
