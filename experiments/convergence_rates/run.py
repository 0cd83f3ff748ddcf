"""Configuration, trials, and what one trial computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..common.experiment import ExperimentConfig
from .data import SmoothMap, ball, draw_map, lift
from .methods import ESTIMATORS, SETTINGS

INTERIOR, BOUNDARY = 0.7, 0.9  # radii: the interior lies within one, the boundary outside of the other
REGIONS: dict[str, Callable[[Tensor], Tensor]] = {  # masks of points by their distance from the centre
    "domain": lambda radii: radii <= 1,
    "interior": lambda radii: radii < INTERIOR,
    "boundary": lambda radii: radii > BOUNDARY,
}
VALIDATION = 4  # test points for one that constants are chosen by


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """Convergence rates.

    Attributes:
        mixer: estimators, among lla and softmax.
        dim: dimensions of the ball, up to 6.
        keys: numbers of keys, at least two of them.
        queries: test points; a quarter as many choose the constants.
        value_dim: entries of a value, each with a map of its own.
        noise: standard deviation of the noise on the values.
        gradient: norm of the gradient of the linear part of every map.
        frequency: radians by which the wave in every map turns along a radius of the ball.
    """

    mixer: tuple[str, ...] = tuple(ESTIMATORS)
    seeds: int = 6
    dim: tuple[int, ...] = (1, 2, 4)
    keys: tuple[int, ...] = tuple(2**power for power in range(10, 17))
    queries: int = 1024
    value_dim: int = 64
    noise: float = 1.0
    gradient: float = 3.0
    frequency: float = 3.0

    def __post_init__(self):
        super().__post_init__()
        for name in self.mixer:
            if name not in ESTIMATORS:
                raise ValueError(
                    f"mixer {name!r} has no rate in the paper; this experiment takes "
                    f"{' and '.join(ESTIMATORS)}"
                )
        if not self.dim or min(self.dim) < 1 or max(self.dim) > 6:
            raise ValueError(f"dim={self.dim} must be 1 to 6; balls in more have next to no interior")
        if len(set(self.keys)) < 2 or min(self.keys) < 64:
            raise ValueError(f"keys={self.keys} must be two numbers or more, each at least 64")
        if self.queries < 256 or self.value_dim < 1:
            raise ValueError(
                f"queries={self.queries} must be at least 256, value_dim={self.value_dim} positive"
            )
        if min(self.noise, self.gradient, self.frequency) < 0:
            raise ValueError(
                f"noise={self.noise}, gradient={self.gradient} and frequency={self.frequency} "
                "must not be negative"
            )


PRESETS = {
    "smoke": Config(dim=(1, 2), keys=(256, 512, 1024), queries=256, seeds=2),
    "small": Config(),
    "gpu": Config(keys=tuple(2**power for power in range(11, 19)), queries=2048, seeds=8, device="cuda"),
}


@dataclass(frozen=True)
class Trial:
    """One mixer and one number of keys."""

    mixer: str
    seed: int
    dim: int
    keys: int
    queries: int
    value_dim: int
    noise: float
    gradient: float
    frequency: float
    device: str


def trials(config: Config) -> Iterator[Trial]:
    """All combinations, those that take longest first; the mixers of a seed see the same data."""
    constants = (config.queries, config.value_dim, config.noise, config.gradient, config.frequency)
    for keys in sorted(config.keys, reverse=True):
        for seed in range(config.seeds):
            for dim in config.dim:
                for mixer in config.mixer:
                    yield Trial(mixer, seed, dim, keys, *constants, config.device)


class _Points(NamedTuple):
    """Points of the ball: on the sphere, their distances from the centre, and what the map has there."""

    lifted: Tensor
    radii: Tensor
    values: Tensor


@torch.no_grad()
def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """The squared error in each region, with constants chosen for the domain and for the interior alone.

    A seed has one map and one set of queries for all numbers of keys, which keeps the noise of both out
    of slopes; the keys are drawn anew.
    """
    rng = np.random.default_rng((trial.seed, trial.dim))
    target = draw_map(trial.dim, trial.value_dim, trial.gradient, trial.frequency, rng)
    validation = _draw(trial, target, trial.queries // VALIDATION, rng)
    test = _draw(trial, target, trial.queries, rng)
    rng = np.random.default_rng((trial.seed, trial.dim, trial.keys))
    keys = _draw(trial, target, trial.keys, rng)
    noise = trial.noise * rng.standard_normal((trial.keys, trial.value_dim))
    values = keys.values + _tensor(noise, trial)

    def errors(points: _Points, setting: dict[str, float]) -> Tensor:
        estimate = ESTIMATORS[trial.mixer](points.lifted, keys.lifted, values, **setting)
        return (estimate - points.values).square().mean(1)

    tried = [(setting, errors(validation, setting)) for setting in SETTINGS[trial.mixer]]
    rows = []
    for chosen_for in ("domain", "interior"):
        inside = REGIONS[chosen_for](validation.radii)
        setting, _ = min(tried, key=lambda pair, inside=inside: pair[1][inside].mean().item())
        found = errors(test, setting)
        for region, mask in REGIONS.items():
            error = found[mask(test.radii)].mean().item()
            rows.append({"chosen_for": chosen_for, "region": region, "error": error, **setting})
    return rows


def _draw(trial: Trial, target: SmoothMap, count: int, rng: np.random.Generator) -> _Points:
    points = ball(count, trial.dim, rng)
    arrays = (lift(points), np.linalg.norm(points, axis=1), target(points))
    return _Points(*(_tensor(array, trial) for array in arrays))


def _tensor(array: np.ndarray, trial: Trial) -> Tensor:
    return torch.tensor(array, dtype=torch.float32, device=trial.device)
