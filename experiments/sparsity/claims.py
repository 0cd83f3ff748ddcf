"""What the paper says, and what has to hold for its numbers to mean something."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..common.claims import Claim, Verdict, above, unanswered, within
from ..common.figures import label
from ..common.statistics import over_seeds
from ..common.table import Table
from .effects import of_arms, of_axes, of_graph, variant

if TYPE_CHECKING:
    import pandas

SOURCE = "arXiv 2603.03415"
CURVES = "arXiv 2603.03415, learning dynamics on the knowledge graph"
OURS = "asked by us"
RISE = 0.02  # what the paper's model of this size rises by above its start
SMALL = (0.05, 0.2)  # correlations over single samples; the paper's are 0.10 to 0.13
LARGE = 0.75  # correlations over levels; the paper's with this metric are 0.82 to 0.91
ENERGY = "top-10 % energy"
AXES = {
    "depth": "prompts ask for longer chains of lookups",
    "context": "prompts have more examples in them",
    "distractors": "prompts have more distractors in them",
    "conflict": "more of the examples contradict what was learned",
}
ARMS = {
    "zero-shot": "no demonstrations",
    "random": "random ones",
    "nearest": "the most similar ones",
    "reversed": "the same rule with the score reversed",
}


def _verdict(values: pandas.Series, judge: Callable[..., Verdict], *bounds: float, unit: str) -> Verdict:
    """Judge the mean over mixers of every seed; the detail says what each mixer has."""
    values = values.dropna()
    if values.empty:
        return unanswered("the table lacks the part, the mixer or the variant that this is about")
    means = values.groupby("mixer", sort=False).mean()
    detail = "; ".join(f"{label(mixer)} {mean:.3g}" for mixer, mean in means.items())
    return judge(over_seeds(values), *bounds, unit, detail)


def _only(values: pandas.Series, mixer: str) -> pandas.Series:
    return values[values.index.get_level_values("mixer") == mixer]


def _graph(
    column: str,
    judge: Callable[..., Verdict],
    *bounds: float,
    unit: str,
    mixer: str = "softmax",
    **which: int,
) -> Callable[[Table], Verdict]:
    """Judge an effect on the knowledge graph, of one mixer; ``which`` is that of :func:`variant`."""

    def verdict(table: Table) -> Verdict:
        effects = variant(of_graph(table), **which)[column]
        return _verdict(_only(effects, mixer), judge, *bounds, unit=unit)

    return verdict


def _size(table: Table) -> Verdict:
    larger, smaller = (variant(of_graph(table), size=number)["short"] for number in (0, 1))
    return _verdict(
        _only(larger - smaller, "softmax"), above, 0.0, unit=f"{ENERGY} that the difference is larger"
    )


def _controls(column: str) -> Callable[[Table], Verdict]:
    """Over all mixers: within one standard deviation of a Gaussian."""

    def verdict(table: Table) -> Verdict:
        values = variant(of_graph(table))[column]
        unit = f"{ENERGY} less that of a Gaussian, in standard deviations of a vector"
        return _verdict(values, within, -1.0, 1.0, unit=unit)

    return verdict


def _axis(axis: str) -> Callable[[Table], Verdict]:
    def verdict(table: Table) -> Verdict:
        rows = of_axes(table)
        return _verdict(
            rows.loc[rows["axis"] == axis, "rho"],
            above,
            0.0,
            unit=f"Spearman's rho of level and {ENERGY}, over samples",
        )

    return verdict


def _all_axes(column: str, judge: Callable[..., Verdict], *bounds: float) -> Callable[[Table], Verdict]:
    def verdict(table: Table) -> Verdict:
        values = of_axes(table)[column].groupby(["mixer", "seed"], sort=False).mean()
        return _verdict(values, judge, *bounds, unit="Spearman's rho, mean over the axes")

    return verdict


def _arm(arm: str) -> Callable[[Table], Verdict]:
    def verdict(table: Table) -> Verdict:
        rows = of_arms(table)
        return _verdict(
            rows.loc[rows["arm"] == arm, "gain"],
            above,
            0.0,
            unit=f"share of right answers more than with {ARMS[arm]}",
        )

    return verdict


DIFFERENCE = f"{ENERGY} of OOD short less that of ID, in the window"
CLAIMS = (
    Claim(
        "short",
        "In the middle of training softmax attention has sparser states on OOD short than on ID.",
        CURVES,
        _graph("short", above, 0.0, unit=DIFFERENCE),
    ),
    Claim(
        "short_lla",
        "In the middle of training LLA has sparser states on OOD short than on ID.",
        OURS,
        _graph("short", above, 0.0, unit=DIFFERENCE, mixer="lla"),
    ),
    Claim(
        "order",
        "In the middle of training states are sparser from ID to OOD long to OOD short.",
        CURVES,
        _graph("order", above, 0.0, unit=f"{ENERGY}, the smaller of the two steps"),
    ),
    Claim(
        "rise",
        "States on ID become sparser at first: top-10 % energy rises by more than 0.02.",
        CURVES,
        _graph("rise", above, RISE, unit=f"{ENERGY} of ID at its highest less that before training"),
    ),
    Claim(
        "end",
        "At the end of training states on ID are as dense as a Gaussian, within 0.02 of top-10 % energy.",
        CURVES,
        _graph("end", within, -RISE, RISE, unit=f"{ENERGY} of ID less that of a Gaussian"),
    ),
    Claim("size", "OOD short differs more from ID in the larger model.", CURVES, _size),
    Claim(
        "precision",
        "With weights in float32 states are sparser on OOD short than on ID, too.",
        OURS,
        _graph("short", above, 0.0, unit=DIFFERENCE, precision=1),
    ),
    *(
        Claim(axis, f"States become sparser where {what}.", SOURCE, _axis(axis))
        for axis, what in AXES.items()
    ),
    Claim(
        "samples",
        "Over single samples difficulty and sparsity are correlated weakly: rho is 0.05 to 0.2.",
        SOURCE,
        _all_axes("rho", within, *SMALL),
    ),
    Claim(
        "levels",
        "Over the means of levels they are correlated strongly: rho is above 0.75.",
        SOURCE,
        _all_axes("rho_levels", above, LARGE),
    ),
    *(
        Claim(
            f"against_{arm.replace('-', '_')}",
            f"Demonstrations guided by sparsity give more right answers than {what}.",
            OURS if arm == "reversed" else SOURCE,
            _arm(arm),
        )
        for arm, what in ARMS.items()
    ),
    Claim("start", "Before training states are as sparse as a Gaussian.", OURS, _controls("start")),
    Claim(
        "rotated",
        "Behind random rotations states are as sparse as a Gaussian, whatever was learned.",
        OURS,
        _controls("rotated"),
    ),
    Claim(
        "matched",
        "Softmax attention has sparser states on OOD short than on ID states that are equally long.",
        OURS,
        _graph("matched", above, 0.0, unit=f"{ENERGY} of OOD short less that of matched ID states"),
    ),
    Claim(
        "deduced",
        "Softmax attention has sparser states on OOD short than on deduced facts of ID.",
        OURS,
        _graph("deduced", above, 0.0, unit=f"{ENERGY} of OOD short less that of these facts"),
    ),
)
