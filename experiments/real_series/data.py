"""Real series that come with statsmodels, and a table of scikit-learn, as streams of pairs.

Nothing is downloaded. A series gives at every time its last values as features and the next value as
target. All scales are those of the early part of a stream, on which constants are chosen as well; no
error is ever reported on it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

FORMS = ("differences", "values")  # of the features
EARLY = 0.5  # share of the pairs


class Stream(NamedTuple):
    """Pairs in the order in which they become known, float64.

    Attributes:
        features: ``[pairs, dim]``.
        targets: ``[pairs]``, each known behind its features and before the next ones.
        naive: ``[pairs]``, what a predictor without constants says of the targets.
        early: number of pairs that constants are chosen on.
    """

    features: np.ndarray
    targets: np.ndarray
    naive: np.ndarray
    early: int


@dataclass(frozen=True)
class Series:
    """A series of statsmodels.

    Attributes:
        title: in words.
        load: ``load()``, the values in order of time, ``[length]``.
        lags: number of features.
    """

    title: str
    load: Callable[[], np.ndarray]
    lags: int


def _dataset(name: str):
    return importlib.import_module(f"statsmodels.datasets.{name}").load_pandas().data


def _column(dataset: str, column: str) -> np.ndarray:
    return _dataset(dataset)[column].to_numpy(float)


def _co2() -> np.ndarray:
    """Monthly means; a month without a measurement has that of the month before."""
    return _dataset("co2")["co2"].resample("MS").mean().ffill().to_numpy(float)


def _elnino() -> np.ndarray:
    """The table has a row a year and a column a month."""
    return _dataset("elnino").drop(columns="YEAR").to_numpy(float).ravel()


def _electrical() -> np.ndarray:
    return _dataset("elec_equip").iloc[:, 0].to_numpy(float)


MONTHLY, QUARTERLY, YEARLY = 12, 8, 10  # lags: of one year, two, and ten
SERIES = {
    "co2": Series("CO2 in the air", _co2, MONTHLY),
    "elnino": Series("sea surface, El Niño", _elnino, MONTHLY),
    "electrical": Series("electrical equipment, euro area", _electrical, MONTHLY),
    "gdp": Series("log GDP, US", lambda: np.log(_column("macrodata", "realgdp")), QUARTERLY),
    "inflation": Series("inflation, US", lambda: _column("macrodata", "infl"), QUARTERLY),
    "unemployment": Series("unemployment, US", lambda: _column("macrodata", "unemp"), QUARTERLY),
    "tbill": Series("treasury bills, US", lambda: _column("macrodata", "tbilrate"), QUARTERLY),
    "interest": Series("interest, Germany", lambda: _column("interest_inflation", "R"), QUARTERLY),
    "sunspots": Series("sunspots", lambda: _column("sunspots", "SUNACTIVITY"), YEARLY),
    "nile": Series("flow of the Nile", lambda: _column("nile", "volume"), YEARLY),
}
CONTROL = "diabetes"  # a table whose rows come in a random order: nothing changes with time


def series_stream(values: np.ndarray, lags: int, form: str) -> Stream:
    """The pairs of a series.

    Args:
        values: in order of time, ``[length]``.
        lags: number of features.
        form: ``"differences"``: the features are the last ``lags`` differences and the target is the
            next one, in units of their root mean square; ``"values"``: the last values and the next one,
            standardised. The naive prediction is the last value in both.
    """
    early = int(EARLY * (len(values) - lags - 1))
    past = values[: early + lags + 1]  # up to the last target of the early part
    if form == "differences":
        scaled = np.diff(values) / np.sqrt(np.square(np.diff(past)).mean())
    else:
        scaled = (values[1:] - past.mean()) / past.std()
    features = np.lib.stride_tricks.sliding_window_view(scaled, lags)[:-1]
    targets = scaled[lags:]
    naive = np.zeros_like(targets) if form == "differences" else features[:, -1]
    return Stream(features, targets, naive, early)


def control_stream(seed: int) -> Stream:
    """The control in an order drawn with ``seed``; the naive prediction is the mean target so far."""
    from sklearn.datasets import load_diabetes

    features, targets = load_diabetes(return_X_y=True, scaled=False)
    order = np.random.default_rng(seed).permutation(len(targets))
    early = int(EARLY * len(targets))
    features, targets = (_standard(t[order], early) for t in (features, targets))
    means = np.cumsum(targets) / np.arange(1, len(targets) + 1)
    return Stream(features, targets, np.append(0.0, means[:-1]), early)


def _standard(values: np.ndarray, early: int) -> np.ndarray:
    return (values - values[:early].mean(0)) / values[:early].std(0)
