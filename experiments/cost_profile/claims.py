"""What the paper says of this experiment, and what its reviewers would like to know."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..common.claims import Claim, Verdict, above, below, unanswered
from ..common.statistics import bootstrap
from ..common.table import Table
from .memory import MEASURED
from .methods import PHASES

MEMORY = "arXiv 2510.01450, memory of the naive and the blockwise form"
REVIEWS = "reviews of arXiv 2510.01450: no comparison of time with softmax attention"
TOLERANCE = 0.25  # of an exponent, which other terms shift at lengths that are not long
FITTED = 3  # longest lengths of a method, where these terms matter least


def exponents(table: Table, method: str, phase: str) -> list[float]:
    """Per seed: slope of the logarithm of memory over that of length; empty with fewer than two lengths."""
    part = table[(table["method"] == method) & (table["phase"] == phase)]
    wide = (
        part.pivot(index="length", columns="seed", values="peak").sort_index().iloc[-FITTED:].dropna(axis=1)
    )
    if len(wide) < 2 or wide.empty or (wide <= 0).any(axis=None):
        return []
    return list(np.polyfit(np.log(wide.index.to_numpy(float)), np.log(wide.to_numpy()), 1)[0])


def _grows(method: str, phase: str, judge: Callable[..., Verdict], threshold: float):
    def verdict(table: Table) -> Verdict:
        slopes = exponents(table, method, phase)
        if not slopes:
            return unanswered(f"the table lacks the memory of {method} at two lengths")
        unit = f"exponent of memory over length, {phase}, the longest {FITTED} lengths"
        return judge(bootstrap(slopes), threshold, unit)

    return verdict


def _costs_more(phase: str):
    """The time of compiled LLA over that of torch SDPA at the longest length."""

    def verdict(table: Table) -> Verdict:
        part = table[(table["method"] == "lla") & (table["phase"] == phase)]
        if part.empty:
            return unanswered("the table lacks LLA")
        longest = part["length"].max()
        factors = part.loc[part["length"] == longest, "ratio"]
        return above(bootstrap(factors), 1.0, f"times the time of torch SDPA, {phase}, {longest} keys")

    return verdict


CLAIMS = (
    *(
        Claim(
            f"naive, {phase}",
            f"Memory of the naive form grows with the square of the length or faster ({phase}).",
            MEMORY,
            _grows("lla, naive", phase, above, 2 - TOLERANCE),
        )
        for phase in MEASURED
    ),
    *(
        Claim(
            f"{method}, {phase}",
            f"Memory of the {form} form grows no faster than the length ({phase}).",
            MEMORY,
            _grows(method, phase, below, 1 + TOLERANCE),
        )
        for method, form in (("lla, blockwise", "blockwise"), ("lla", "compiled"))
        for phase in MEASURED
    ),
    *(
        Claim(
            f"time, {phase}",
            f"LLA takes longer than softmax attention ({phase}).",
            REVIEWS,
            _costs_more(phase),
        )
        for phase in PHASES
    ),
)
