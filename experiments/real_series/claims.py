"""What we would like to know: whether LLA is better than each of the others, on average over series."""

from __future__ import annotations

import numpy as np

from ..common.claims import Claim, Verdict, above, unanswered
from ..common.statistics import Interval, bootstrap, geometric_mean
from ..common.table import Table
from .data import CONTROL, FORMS
from .methods import TITLES

OURS = "asked by us"
BLOCK = ["seed", "block"]
FEWEST = 5  # series that a claim is judged from: two that agree would give an interval beyond 1


def ratio(table: Table, method: str, over: str) -> Interval | None:
    """Error of ``method`` over that of another, or of the naive predictor, on one series or the control.

    The interval is over blocks, and over orders of the control; None if the table lacks one of both.
    """
    errors = _errors(table, method, over)
    return bootstrap(errors, _of_means) if len(errors) else None


def ratios(table: Table, method: str, over: str, form: str) -> list[float]:
    """:func:`ratio` on every series of a form."""
    pairs = [_errors(rows, method, over) for _, rows in table[table["form"] == form].groupby("series")]
    return [float(_of_means(errors, 0)) for errors in pairs if len(errors)]


def mean_ratio(table: Table, method: str, over: str, form: str) -> Interval | None:
    """The geometric mean of :func:`ratios`, with an interval over series; None if there is none."""
    found = ratios(table, method, over, form)
    return bootstrap(found, geometric_mean) if found else None


def _errors(table: Table, method: str, over: str) -> np.ndarray:
    """Mean squared errors of both, ``[blocks, 2]``; no blocks if the table lacks one of them."""
    ours, theirs = (_of_method(table, name) for name in (method, over))
    return np.stack([ours, theirs], axis=1) if len(ours) and len(theirs) else np.empty((0, 2))


def _of_method(table: Table, name: str) -> np.ndarray:
    """One error a block; every row has that of the naive predictor as well."""
    if name == "naive":
        return table.drop_duplicates(BLOCK).sort_values(BLOCK)["naive"].to_numpy()
    return table[table["method"] == name].sort_values(BLOCK)["error"].to_numpy()


def _of_means(pairs: np.ndarray, axis: int) -> np.ndarray:
    means = pairs.mean(axis)
    return means[..., 0] / means[..., 1]


def _against_lla(other: str, form: str):
    """The error of ``other`` over that of LLA."""

    def judge(table: Table) -> Verdict:
        found = ratios(table, other, "lla", form)
        if len(found) < FEWEST:
            return unanswered(
                f"the table has LLA and {TITLES[other]} on {len(found)} series with {form} as features, "
                f"and a mean over series takes {FEWEST} or more"
            )
        detail = f"LLA is better on {sum(r > 1 for r in found)} of {len(found)} series"
        if control := ratio(table[table["series"] == CONTROL], other, "lla"):
            detail = f"on the control the ratio is {control}; {detail}"
        mean = mean_ratio(table, other, "lla", form)
        return above(mean, 1.0, f"error of {TITLES[other]} over that of LLA, geometric mean", detail)

    return judge


CLAIMS = tuple(
    Claim(
        f"{other}_{form}",
        f"From the last {form} of a series, LLA predicts the next better than {TITLES[other]}.",
        OURS,
        _against_lla(other, form),
    )
    for form in FORMS
    for other in ("softmax", "ridge", "k-nn", "gp")
)
