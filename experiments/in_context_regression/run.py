"""Configuration, trials, and what one trial computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flashlla.models.config import StackConfig
from flashlla.models.mixers import MIXERS

from ..common.experiment import ExperimentConfig
from ..common.training import train
from .data import TARGETS, pairs
from .model import Regressor

PARTS = 8  # of a segment: rows of the table
TEST_SEED = 10**6  # apart from the seeds of training


def build_model(mixer: str, dim: int, length: int, width: int, depth: int, heads: int, device: str):
    """The mixer's layers as they come, without MLPs; Hyena's filters are as long as the sequence.

    Raises:
        ValueError: sizes that do not fit.
    """
    options = {"filter_length": 2 * length} if mixer == "hyena" else {}
    sizes = {"dim": width, "depth": depth, "heads": heads}
    return Regressor(StackConfig(**sizes, mixer=mixer, mixer_options=options, mlp_hidden=0), dim, device)


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """In-context regression.

    Attributes:
        mixer: token mixers to compare where the map is linear.
        nonlinear_mixer: those to compare where it is not, at the longest segments alone.
        target: maps from x to y, among linear, fourier, spline.
        segment: pairs before the map changes, multiples of 8 that divide length.
        length: pairs of a sequence; the model reads two tokens for each.
        dim: entries of x and of y.
        noise: standard deviation of the noise on y.
        learning_rate: peaks that are tried for each mixer.
        width, depth, heads: of the model.
        batch: sequences of a step.
        steps: of training.
        test: sequences of the test.
    """

    mixer: tuple[str, ...] = ("lla", "softmax", "mesanet", "gated_deltanet", "mamba2", "gla", "hyena")
    nonlinear_mixer: tuple[str, ...] = ("lla", "softmax")
    target: tuple[str, ...] = TARGETS
    segment: tuple[int, ...] = (8, 32)
    length: int = 64
    dim: int = 4
    noise: float = 0.1
    learning_rate: tuple[float, ...] = (1e-2, 2e-2)
    width: int = 32
    depth: int = 2
    heads: int = 1
    batch: int = 8
    steps: int = 250
    test: int = 256

    def __post_init__(self):
        super().__post_init__()
        self._check_names("nonlinear_mixer", MIXERS)
        self._check_names("target", TARGETS)
        for segment in self.segment:
            if segment < PARTS or segment % PARTS or self.length % segment:
                raise ValueError(
                    f"segment {segment} must be a positive multiple of {PARTS} and divide "
                    f"length={self.length}"
                )
        if min(self.dim, self.batch, self.steps, self.test) < 1 or self.noise < 0:
            raise ValueError(
                f"dim={self.dim}, batch={self.batch}, steps={self.steps}, test={self.test} must be at least "
                f"1, and noise={self.noise} not negative"
            )
        if not all(rate > 0 for rate in self.learning_rate):
            raise ValueError(f"learning_rate={self.learning_rate} must be positive")
        if not (self.target and self.segment and self.learning_rate):
            raise ValueError("target, segment and learning_rate must name at least one value each")
        for mixer in {*self.mixer, *self.nonlinear_mixer}:  # sizes that do not fit are told apart here
            build_model(mixer, self.dim, self.length, self.width, self.depth, self.heads, "meta")


PRESETS = {
    "smoke": Config(
        mixer=("lla", "softmax"),
        segment=(8, 16),
        length=16,
        learning_rate=(1e-2,),
        width=16,
        batch=4,
        steps=10,
        test=32,
        seeds=2,
    ),
    "small": Config(),
    "gpu": Config(  # the dimension of the paper
        mixer=tuple(MIXERS),
        segment=(64, 256),
        length=512,
        dim=32,
        learning_rate=(3e-3, 1e-2),
        width=128,
        heads=2,
        batch=16,
        steps=1000,
        test=512,
        device="cuda",
    ),
}


@dataclass(frozen=True)
class Trial:
    """One mixer at one learning rate on one kind of data."""

    mixer: str
    seed: int
    target: str
    segment: int
    length: int
    dim: int
    noise: float
    learning_rate: float
    width: int
    depth: int
    heads: int
    batch: int
    steps: int
    test: int
    device: str


def trials(config: Config) -> Iterator[Trial]:
    """All mixers and segments with linear maps, few with others; mixers of a seed see the same data."""
    data = (config.length, config.dim, config.noise)
    sizes = (config.width, config.depth, config.heads, config.batch, config.steps, config.test, config.device)
    for seed in range(config.seeds):
        for target in config.target:
            linear = target == "linear"
            for segment in config.segment if linear else (max(config.segment),):
                for mixer in config.mixer if linear else config.nonlinear_mixer:
                    for rate in config.learning_rate:
                        yield Trial(mixer, seed, target, segment, *data, rate, *sizes)


def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """A row for every eighth of a segment: the squared error there, and that of predicting zero."""
    torch.manual_seed(trial.seed)
    shape = (trial.dim, trial.length, trial.width, trial.depth, trial.heads)
    model = build_model(trial.mixer, *shape, trial.device)

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return pairs(
            trial.target, batch, trial.length, trial.dim, trial.segment, trial.noise, generator=generator
        )

    train(
        model,
        lambda model, batch: F.mse_loss(model(*batch), batch[1]),
        lambda generator: draw(trial.batch, generator),
        folder,
        steps=trial.steps,
        learning_rate=trial.learning_rate,
        seed=trial.seed,
    )
    x, y = (
        t.to(trial.device) for t in draw(trial.test, torch.Generator().manual_seed(TEST_SEED + trial.seed))
    )
    with torch.no_grad():
        errors = _by_place(model.eval()(x, y) - y, trial.segment)
    zeros = _by_place(y, trial.segment)
    places = (place * trial.segment // PARTS for place in range(1, PARTS + 1))
    return [
        {"place": place, "error": error, "zero": zero, "parameters": model.num_parameters()}
        for place, error, zero in zip(places, errors, zeros, strict=True)
    ]


def _by_place(differences: Tensor, segment: int) -> list[float]:
    """Mean squares in every eighth of a segment, over all segments, of ``[batch, length, dim]``."""
    squares = differences.double().square().mean((0, 2))
    return squares.unflatten(0, (-1, PARTS, segment // PARTS)).mean((0, 2)).tolist()
