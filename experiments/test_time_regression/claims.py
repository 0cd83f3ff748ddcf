"""What the paper says of this experiment, and what its reviewers would like to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..common.claims import Claim, Verdict, above, below, unanswered
from ..common.figures import label
from ..common.statistics import bootstrap, geometric_mean
from ..common.table import Table

Judge = Callable[..., Verdict]  # above, below

SOURCE = "arXiv 2510.01450, test-time regression"
OURS = "asked by us"
PLACES: dict[str, Callable[[Table], Any]] = {  # masks of the rows
    "first segment": lambda table: table["position"] < table["segment"],
    "later segments": lambda table: table["position"] >= table["segment"],
    "all positions": lambda table: table["position"] >= 0,
}


def sums(table: Table) -> Table:
    """Mean error of every method, dimension, segment length and seed."""
    return table.groupby(["method", "dim", "segment", "seed"], as_index=False)["error"].mean()


def _gain_within_segments(table: Table, method: str) -> list[float]:
    """Per seed: error in the last quarter of a segment over that in the first, behind the first segment."""
    part = table[
        (table["method"] == method) & (table["segment"] >= 128) & (table["position"] >= table["segment"])
    ]
    if part.empty:
        return []
    quarter = part["position"] % part["segment"] * 4 // part["segment"]
    means = (
        part.assign(quarter=quarter).groupby(["seed", "dim", "segment", "quarter"])["error"].mean().unstack()
    )
    return list((means[3] / means[0]).groupby("seed").agg(geometric_mean))


def _ratio(table: Table, other: str, mask) -> list[float]:
    """Per seed: error of ``other`` over that of LLA, the geometric mean over dimensions and segments."""
    part = table[mask & table["method"].isin([other, "lla"])]
    means = part.groupby(["seed", "dim", "segment", "method"])["error"].mean().unstack()
    if other not in means or "lla" not in means:
        return []
    return list((means[other] / means["lla"]).groupby("seed").agg(geometric_mean))


def _gain(method: str, judge: Judge, threshold: float):
    """How far the error of ``method`` falls within a segment."""

    def verdict(table: Table) -> Verdict:
        ratios = _gain_within_segments(table, method)
        if not ratios:
            return unanswered(
                f"the table has no {label(method)}, or no segments of 128 positions or more behind the first"
            )
        return judge(bootstrap(ratios), threshold, "error at the end of a segment over that at its start")

    return verdict


def _against_lla(other: str, places: str, judge: Judge):
    """The error of ``other`` over that of LLA, at some of the positions."""

    def verdict(table: Table) -> Verdict:
        ratios = _ratio(table, other, PLACES[places](table))
        if not ratios:
            return unanswered(f"the table lacks LLA or {label(other)} there: {places}")
        return judge(bootstrap(ratios), 1.0, f"error of {label(other)} over that of LLA, {places}")

    return verdict


def _grows_with_dim(other: str):
    def judge(table: Table) -> Verdict:
        totals = sums(table).pivot_table(index=["seed", "dim"], columns="method", values="error")
        if other not in totals or "lla" not in totals or len(set(table["dim"])) < 2:
            return unanswered(f"the table lacks LLA, {other} or a second dimension")
        logs = np.log(totals[other] / totals["lla"]).unstack("dim")
        slopes = np.polyfit(np.log(logs.columns.to_numpy(float)), logs.to_numpy().T, 1)[0]
        ends = np.exp(logs.mean())
        first, last = logs.columns[[0, -1]]
        detail = f"the ratio is {ends.iloc[0]:.2f} at d = {first}, {ends.iloc[-1]:.2f} at {last}"
        return above(bootstrap(slopes), 0.0, "slope of the logarithm of the ratio over that of d", detail)

    return judge


CLAIMS = (
    Claim(
        "improves",
        "LLA keeps improving within every segment: its error falls to less than half.",
        SOURCE,
        _gain("lla", below, 0.5),
    ),
    Claim(
        "first",
        "MesaNet is better than LLA before the first change.",
        SOURCE,
        _against_lla("mesanet", "first segment", below),
    ),
    Claim(
        "later",
        "MesaNet is worse than LLA after the first change.",
        SOURCE,
        _against_lla("mesanet", "later segments", above),
    ),
    Claim(
        "softmax",
        "Softmax attention gains little within a segment: its error stays above half.",
        SOURCE,
        _gain("softmax", above, 0.5),
    ),
    Claim(
        "dim",
        "The error of softmax attention over that of LLA grows with the dimension.",
        SOURCE,
        _grows_with_dim("softmax"),
    ),
    Claim(
        "dim_mesanet",
        "The error of MesaNet over that of LLA grows with the dimension.",
        SOURCE,
        _grows_with_dim("mesanet"),
    ),
    Claim(
        "forgetting",
        "LLA is better than a MesaNet that forgets at the best constant rate.",
        OURS,
        _against_lla("mesanet, forgetting", "all positions", above),
    ),
)
