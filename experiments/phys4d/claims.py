"""What the paper says of its stages, as claims 1 to 6 of our notes put it; thresholds are older than runs."""

from __future__ import annotations

import numpy as np
import pandas

from ..common.claims import Claim, Verdict, above, below, by_mixer, unanswered
from ..common.statistics import over_seeds
from ..common.table import Table

SOURCE = "arXiv 2603.03485"
FIRST, SECOND, THIRD = f"{SOURCE}, stage 1", f"{SOURCE}, stage 2", f"{SOURCE}, stage 3"
OURS = "asked by us"
WELL = 0.5  # share of a constant predictor's error that is "well below" it
DEPTH_COST = 1.1  # AbsRel with the warp term over that without
QUALITY_COST = 1.05  # MSE behind stage 3 over that before
ORDER = ("base", "sft", "rl")  # stages whose frames differ


def arms(table: Table) -> Table:
    """The rows of the arms."""
    return table[table["kind"] == "arm"]


def values(table: Table, column: str) -> Table:
    """One row for each mixer and seed, one column an arm or reference."""
    rows = table[table["kind"].isin(("arm", "reference"))]
    return rows.pivot(index=["mixer", "seed"], columns="arm", values=column)


def _two(table: Table, column: str, arm: str, other: str) -> tuple[pandas.Series, pandas.Series] | None:
    """A column for two arms, over the same beginnings and noise; None where the table lacks one."""
    wide = values(table, column).reindex(columns=[arm, other]).dropna()
    return None if wide.empty else (wide[arm], wide[other])


def _difference(arm: str, other: str, column: str, judge, unit: str, bound: float = 0.0):
    """``column`` of an arm less that of another, of one seed and mixer each."""

    def verdict(table: Table) -> Verdict:
        if (two := _two(table, column, arm, other)) is None:
            return unanswered(f"the table lacks {arm} or {other}")
        found = two[0] - two[1]
        return judge(over_seeds(found), bound, f"{unit} of {arm} less that of {other}", by_mixer(found))

    return verdict


def _ratio(arm: str, other: str, column: str, bound: float, unit: str):
    """The same as a ratio, which must be below the bound."""

    def verdict(table: Table) -> Verdict:
        if (two := _two(table, column, arm, other)) is None:
            return unanswered(f"the table lacks {arm} or {other}")
        found = two[0] / two[1]
        return below(over_seeds(found), bound, f"{unit} of {arm} over that of {other}", by_mixer(found))

    return verdict


def _head(column: str, bound: float, unit: str, arm: str = "heads"):
    """The error of a head on true clips over that of the constant predictor."""

    def verdict(table: Table) -> Verdict:
        found, constant = values(table, f"true_{column}"), values(table, column)
        if arm not in found or "constant" not in constant:
            return unanswered(f"the table lacks {arm} or the constant predictor")
        ratio = found[arm] / constant["constant"]
        return below(over_seeds(ratio), bound, f"{unit} over that of a constant", by_mixer(ratio))

    return verdict


def _untouched(table: Table) -> Verdict:
    changed = arms(table).pivot(index=["mixer", "seed"], columns="arm", values="changed")
    if "heads" not in changed:
        return unanswered("the table lacks heads")
    return below(over_seeds(changed["heads"]), 0.5, "share of trials with any other bit in a frame")


def _ordered(table: Table) -> Verdict:
    """The smallest fall of the 4DCD from one stage to the next."""
    wide = values(table, "chamfer").reindex(columns=ORDER).dropna()
    if wide.empty:
        return unanswered(f"the table lacks one of {', '.join(ORDER)}")
    falls = -np.diff(wide[list(ORDER)], axis=1)
    found = pandas.Series(falls.min(1), index=wide.index)
    return above(over_seeds(found), 0.0, "smallest fall of the 4DCD in a stage", by_mixer(found))


def _every_mixer(arm: str, other: str):
    """The fall of the 4DCD for the mixer for which it is smallest in the mean over seeds."""

    def verdict(table: Table) -> Verdict:
        if (two := _two(table, "chamfer", arm, other)) is None:
            return unanswered(f"the table lacks {arm} or {other}")
        found = two[1] - two[0]
        least = found.groupby("mixer").mean().idxmin()
        mine = found[found.index.get_level_values("mixer") == least]
        unit = f"fall of the 4DCD from {other} to {arm} for the mixer with the smallest"
        return above(over_seeds(mine), 0.0, unit, by_mixer(found))

    return verdict


CLAIMS = (
    Claim(
        "frozen",
        "1. Stage 1 changes no bit of what the backbone generates.",
        FIRST,
        _untouched,
    ),
    Claim(
        "depth_head",
        "1. After stage 1 the AbsRel of depth is at most half of that of a constant.",
        f"{FIRST}; the half is ours",
        _head("abs_rel", WELL, "AbsRel"),
    ),
    Claim(
        "motion_head",
        "1. After stage 1 the EPE of flow is at most half of that of no motion.",
        f"{FIRST}; the half is ours",
        _head("epe", WELL, "EPE"),
    ),
    Claim(
        "motion_counts",
        "After stage 2 the EPE of flow is below that of no motion, without which the warp term means little.",
        OURS,
        _head("epe", 1.0, "EPE", arm="sft"),
    ),
    Claim(
        "tuning_mse",
        "2. Stage 2 lowers the MSE of frames.",
        SECOND,
        _difference("sft", "base", "mse", below, "MSE"),
    ),
    Claim(
        "tuning_overlap",
        "2. Stage 2 raises the ST-IoU.",
        SECOND,
        _difference("sft", "base", "st_iou", above, "ST-IoU"),
    ),
    Claim(
        "warp",
        "2. The warp term lowers the Depth-Warp L1 of generated clips, at equal steps.",
        SECOND,
        _difference("sft", "sft_plain", "warp_l1", below, "Depth-Warp L1"),
    ),
    Claim(
        "warp_depth",
        "2. It raises the AbsRel of depth by at most 10 %.",
        SECOND,
        _ratio("sft", "sft_plain", "abs_rel", DEPTH_COST, "AbsRel"),
    ),
    Claim(
        "reward",
        "3. Stage 3 lowers the 4DCD, which is measured without the learned depth.",
        THIRD,
        _difference("rl", "sft", "chamfer", below, "4DCD"),
    ),
    Claim(
        "drift",
        "3. Stage 3 lowers the drift.",
        THIRD,
        _difference("rl", "sft", "drift", below, "drift"),
    ),
    Claim(
        "compute",
        "3. Its 4DCD is lower than with the same compute in stage 2.",
        THIRD,
        _difference("rl", "more_sft", "chamfer", below, "4DCD"),
    ),
    Claim(
        "shuffled",
        "3. Its 4DCD is lower than with shuffled rewards.",
        THIRD,
        _difference("rl", "rl_shuffled", "chamfer", below, "4DCD"),
    ),
    Claim(
        "order",
        "4. The 4DCD falls in stage 2 and again in stage 3; stage 1 cannot change it.",
        SOURCE,
        _ordered,
    ),
    Claim(
        "quality",
        "4. Stage 3 raises the MSE by at most 5 %.",
        THIRD,
        _ratio("rl", "sft", "mse", QUALITY_COST, "MSE"),
    ),
    Claim(
        "horizon",
        "5. Stage 3 lowers the slope of the drift in time.",
        THIRD,
        _difference("rl", "sft", "drift_slope", below, "slope of the drift"),
    ),
    Claim(
        "every_mixer_tuning",
        "6. Stage 2 lowers the 4DCD with every mixer.",
        OURS,
        _every_mixer("sft", "base"),
    ),
    Claim(
        "every_mixer_reward",
        "6. Stage 3 lowers the 4DCD with every mixer.",
        OURS,
        _every_mixer("rl", "sft"),
    ),
)
