"""Configuration, trials, and what one trial computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..common.experiment import ExperimentConfig
from ..common.methods import Method
from .data import CONTROL, FORMS, SERIES, Stream, control_stream, series_stream
from .methods import BASELINES, METHODS, MIXERS

BLOCKS = 8  # of the late part of a stream, a row of the table each


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """Test-time regression on real series.

    Attributes:
        mixer: attention as an estimator, among lla and softmax.
        baseline: other estimators, among ridge, k-nn and gp.
        series: names of series, or diabetes, the control.
        form: features of a series, differences and values.
        seeds: orders of the rows of the control; a series has but one.
    """

    baseline: tuple[str, ...] = tuple(BASELINES)
    series: tuple[str, ...] = (*SERIES, CONTROL)
    form: tuple[str, ...] = FORMS
    seeds: int = 10

    def __post_init__(self):
        super().__post_init__()
        series = (*SERIES, CONTROL)
        known = {"mixer": MIXERS, "baseline": BASELINES, "series": series, "form": FORMS}
        for field, names in known.items():
            for name in set(getattr(self, field)) - set(names):
                raise ValueError(
                    f"{field} {name!r} is not in this experiment; choose from {', '.join(names)}"
                )
        if self.device != "cpu":
            raise ValueError(f"device {self.device!r} is not for series as short as these; use cpu")


PRESETS = {
    "smoke": Config(series=("interest", "nile"), seeds=1),
    "small": Config(),
    "gpu": Config(seeds=50),
}


@dataclass(frozen=True)
class Trial:
    """One estimator on one series, or on one order of the control, whose form is "rows"."""

    method: str
    series: str
    form: str
    seed: int


def trials(config: Config) -> Iterator[Trial]:
    """All estimators on all streams."""
    for series in config.series:
        control = series == CONTROL
        for form in ("rows",) if control else config.form:
            for seed in range(config.seeds if control else 1):
                for method in (*config.mixer, *config.baseline):
                    yield Trial(method, series, form, seed)


def stream_of(trial: Trial) -> Stream:
    """What a trial predicts."""
    if trial.series == CONTROL:
        return control_stream(trial.seed)
    series = SERIES[trial.series]
    return series_stream(series.load(), series.lags, trial.form)


@torch.no_grad()
def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """A row for each block of the late part: the mean squared error, and that of the naive predictor."""
    stream, method = stream_of(trial), METHODS[trial.method]
    chosen = _choose(method, stream)
    predictions = method.estimate(stream.features, stream.targets, stream.early, **chosen)
    late = stream.targets[stream.early :]
    errors, naive = (
        [block.mean() for block in np.array_split(np.square(predicted - late), BLOCKS)]
        for predicted in (predictions, stream.naive[stream.early :])
    )
    pairs = enumerate(zip(errors, naive, strict=True))
    return [{"block": i, "error": float(e), "naive": float(n), **chosen} for i, (e, n) in pairs]


def _choose(method: Method, stream: Stream) -> dict[str, float]:
    """The constants of the lowest error in the second half of the early part."""
    features, targets = stream.features[: stream.early], stream.targets[: stream.early]
    start = stream.early // 2

    def error(setting: dict[str, float]) -> float:
        predictions = method.estimate(features, targets, start, **setting)
        return float(np.square(predictions - targets[start:]).mean())

    return method.best(error)
