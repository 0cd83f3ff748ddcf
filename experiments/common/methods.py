"""Estimators without training, and how their constants are chosen."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """An estimator, and the constants that validation chooses from.

    Attributes:
        estimate: ``estimate(*data, **constants)``; an experiment says what its data is.
        grid: values of every constant.
    """

    estimate: Callable[..., Any]
    grid: Mapping[str, Sequence[float]]

    def settings(self) -> list[dict[str, float]]:
        """All combinations of constants."""
        combinations = itertools.product(*self.grid.values())
        return [dict(zip(self.grid, values, strict=True)) for values in combinations]

    def best(self, error: Callable[[dict[str, float]], float]) -> dict[str, float]:
        """The combination of the lowest error, the first of them if there are several."""
        return min(self.settings(), key=error)
