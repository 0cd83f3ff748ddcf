"""Claims of a paper, judged from a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .figures import label
from .statistics import Interval

if TYPE_CHECKING:
    import pandas

    from .table import Table

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"


@dataclass(frozen=True)
class Verdict:
    """What a table says of a claim.

    Attributes:
        outcome: supported, not supported, or inconclusive.
        effect: what was estimated over seeds, with its interval.
        unit: what the effect is.
        detail: what else a reader needs to know, in a sentence.
    """

    outcome: str
    effect: Interval
    unit: str
    detail: str = ""


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        name: short, as a key.
        statement: what is claimed, in a sentence that can be wrong.
        source: where it is claimed.
        judge: ``judge(table)``, a :class:`Verdict`.
    """

    name: str
    statement: str
    source: str
    judge: Callable[[Table], Verdict]


def above(effect: Interval, threshold: float, unit: str, detail: str = "") -> Verdict:
    """Supported if the whole interval is above ``threshold``, not supported if it is wholly below."""
    return Verdict(_outcome(effect.low > threshold, effect.high < threshold), effect, unit, detail)


def below(effect: Interval, threshold: float, unit: str, detail: str = "") -> Verdict:
    """Supported if the whole interval is below ``threshold``, not supported if it is wholly above."""
    return Verdict(_outcome(effect.high < threshold, effect.low > threshold), effect, unit, detail)


def within(effect: Interval, low: float, high: float, unit: str, detail: str = "") -> Verdict:
    """Supported if the whole interval lies between two bounds, not supported if it is wholly outside."""
    holds = low <= effect.low and effect.high <= high
    return Verdict(_outcome(holds, effect.high < low or effect.low > high), effect, unit, detail)


def unanswered(why: str) -> Verdict:
    """The table does not hold what the claim is about: other mixers, or one seed."""
    return Verdict(INCONCLUSIVE, Interval(float("nan"), float("-inf"), float("inf")), "", why)


def by_mixer(numbers: pandas.Series) -> str:
    """The mean of every mixer in words, for a detail; the index has a level ``mixer``."""
    means = numbers.groupby("mixer").mean()
    return "; ".join(f"{label(mixer)} {mean:.3g}" for mixer, mean in means.items())


def _outcome(holds: bool, fails: bool) -> str:
    return SUPPORTED if holds else NOT_SUPPORTED if fails else INCONCLUSIVE
