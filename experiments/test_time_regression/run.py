"""Configuration, trials, and what one trial computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.experiment import ExperimentConfig
from ..common.methods import Method
from .data import Stream, piecewise_linear
from .methods import METHODS

BIN = 32  # positions that one row of the table stands for


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """Test-time regression.

    Attributes:
        mixer: estimators, among softmax, lla, mesanet, linear_attention, gated_deltanet.
        dim: dimensions of keys and values.
        segment: positions before the linear map changes, multiples of 32.
        length: positions of a sequence.
        batch: sequences that the error is measured on; half as many choose the constants.
        noise: standard deviation of the noise on the values, which have variance 1.
    """

    mixer: tuple[str, ...] = tuple(METHODS)
    dim: tuple[int, ...] = (4, 8, 16, 32, 64)
    segment: tuple[int, ...] = (32, 128, 512)
    length: int = 1024
    batch: int = 16
    noise: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        for name in self.mixer:
            if name not in METHODS:
                raise ValueError(f"mixer {name!r} needs training; this experiment takes {', '.join(METHODS)}")
        for segment in self.segment:
            if segment < BIN or segment % BIN:
                raise ValueError(f"segment {segment} must be a positive multiple of {BIN}")
            if segment > self.length:
                raise ValueError(f"segment {segment} is longer than length {self.length}")
        if self.batch < 2 or min(self.dim, default=0) < 1 or self.noise < 0:
            raise ValueError(
                f"batch={self.batch} must be at least 2, dim={self.dim} positive, "
                f"noise={self.noise} not negative"
            )


PRESETS = {
    "smoke": Config(dim=(4, 16), segment=(32, 64), length=128, batch=2, seeds=2),
    "small": Config(),
    "gpu": Config(segment=(32, 64, 128, 256, 512, 1024), batch=64, seeds=5, device="cuda"),
}


@dataclass(frozen=True)
class Trial:
    """One mixer on one kind of data."""

    mixer: str
    seed: int
    dim: int
    segment: int
    length: int
    batch: int
    noise: float
    device: str


def trials(config: Config) -> Iterator[Trial]:
    """All combinations; the mixers of a seed see the same data."""
    for seed in range(config.seeds):
        for dim in config.dim:
            for segment in config.segment:
                for mixer in config.mixer:
                    sizes = (dim, segment, config.length, config.batch, config.noise)
                    yield Trial(mixer, seed, *sizes, config.device)


@torch.no_grad()
def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """A row for every method of the mixer and every ``BIN`` positions: the squared error there."""
    generator = torch.Generator().manual_seed(trial.seed)
    sizes = (trial.length, trial.dim, trial.segment, trial.noise, generator)
    validation, test = (
        Stream(*(t.to(trial.device) for t in piecewise_linear(batch, *sizes)))
        for batch in (trial.batch // 2, trial.batch)
    )
    rows = []
    for name, method in METHODS[trial.mixer].items():
        chosen = _choose(method, validation)
        errors = _errors(method, test, chosen)
        for i, error in enumerate(errors.unflatten(0, (-1, BIN)).mean(1).tolist()):
            rows.append({"method": name, "position": i * BIN, "error": error, **chosen})
    return rows


def _choose(method: Method, stream: Stream) -> dict[str, float]:
    """The constants of the lowest error; one that is no number is none."""

    def error(setting: dict[str, float]) -> float:
        return _errors(method, stream, setting).mean().nan_to_num(torch.inf).item()

    return method.best(error)


def _errors(method: Method, stream: Stream, setting: dict[str, float]) -> Tensor:
    """Mean squared error of every position, ``[length]``, over sequences and entries."""
    return (method.estimate(stream, **setting) - stream.targets).square().mean((0, 2))
