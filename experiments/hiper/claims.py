"""What the paper says of this experiment, and what our notes on it ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas

from ..common.claims import Claim, Verdict, above, below, by_mixer, unanswered, within
from ..common.statistics import bootstrap, exact, over_seeds
from ..common.table import Table

SOURCE = "arXiv 2602.16165"
OURS = "asked by us"
EXACT = 1e-9  # a relative bias, or a difference, of what should be equal
EQUAL = 0.05  # shares of successes: "nothing from the format alone", "as good"
INTERIOR = 0.05, 0.95  # a switch rate that is neither 0 nor 1
NEAR_ONE = 0.95  # lambdas from here on
FLAT = ("turn_plan_1", "turn_plan", "turn_plan_08")  # turn GAE with a plan, at all its lambdas


def values(table: Table, column: str = "success", cell: str = "main") -> Table:
    """One row for each mixer and seed, one column an arm."""
    rows = table[(table["kind"] == "arm") & (table["cell"] == cell)]
    return rows.pivot(index=["mixer", "seed"], columns="arm", values=column)


def theory(table: Table, part: str) -> Table:
    """The exact rows of a part."""
    rows = table[table["kind"] == "theory"]
    return rows[rows["part"] == part] if "part" in rows else rows


def variance_ratios(table: Table) -> Table:
    """The variance of HAE over that of flat GAE with a value of state and subgoal: a row for each process and
    instance, a column for each lambda.
    """
    rows = theory(table, "decay")
    if rows.empty:
        return rows
    wide = rows.pivot(index=["process", "instance", "decay"], columns="estimate", values="variance")
    return (wide["hae"] / wide["flat"]).unstack("decay")


def crossing(ratios: pandas.Series) -> float:
    """Where a ratio, by lambda, last goes through 1, between the lambdas beside it; NaN if nowhere."""
    places, over = ratios.index.to_numpy(), ratios.to_numpy() - 1
    for i in range(len(over) - 2, -1, -1):
        if over[i] > 0 >= over[i + 1]:
            return float(places[i] + (places[i + 1] - places[i]) * over[i] / (over[i] - over[i + 1]))
    return float("nan")


def gain(table: Table, arm: str, other: str, cell: str = "main", column: str = "success") -> pandas.Series:
    """``column`` of an arm less that of another, by mixer and seed, where both are there."""
    wide = values(table, column, cell).reindex(columns=[arm, other]).dropna().astype(float)
    return wide[arm] - wide[other]


def _judged(
    found: pandas.Series, judge: Callable[..., Verdict], bounds: Sequence[float], unit: str, lacks: str
):
    if found.empty:
        return unanswered(f"the table lacks {lacks}")
    return judge(over_seeds(found), *bounds, unit, by_mixer(found))


def _difference(arm: str, other: str, judge: Callable[..., Verdict], *bounds: float):
    """The success of an arm less that of another in the main cell, held against the bounds of a judge."""

    def verdict(table: Table) -> Verdict:
        unit = f"share of successes of {arm} less that of {other}"
        return _judged(gain(table, arm, other), judge, bounds, unit, f"{arm} or {other}")

    return verdict


def _grows(arm: str, other: str, cells: tuple[str, str]):
    """How much more an arm is ahead of another in the first of two cells."""

    def verdict(table: Table) -> Verdict:
        first, second = (gain(table, arm, other, cell) for cell in cells)
        unit = f"lead of {arm} over {other}, {cells[0]} less {cells[1]}"
        return _judged((first - second).dropna(), above, (0.0,), unit, f"{arm} or {other} in two cells")

    return verdict


def _unbiased(table: Table) -> Verdict:
    rows = theory(table, "decay")
    rows = rows[rows["estimate"].isin(("hae", "hae_code")) & rows["bias"].notna()] if len(rows) else rows
    if rows.empty:
        return unanswered("the table lacks the theory")
    worst = float(rows["bias"].max())
    detail = f"the largest of {len(rows)} processes, lambdas and kinds of switch advantages"
    return below(exact(worst), EXACT, "relative bias", detail)


def _variance(least: float):
    """Instances take the place of seeds; each has its worst process and lambda."""

    def verdict(table: Table) -> Verdict:
        ratios = variance_ratios(table)
        if ratios.empty:
            return unanswered("the table lacks the theory")
        worst = ratios.loc[:, ratios.columns >= least].max(axis=1).groupby("instance").max()
        crossings = ratios.groupby("process").mean().apply(crossing, axis=1)
        detail = "ratio 1 at lambda: " + "; ".join(
            f"{p} {'nowhere' if np.isnan(x) else f'{x:.2f}'}" for p, x in crossings.items()
        )
        return below(bootstrap(worst), 1.0, "variance of HAE over that of flat GAE, the largest", detail)

    return verdict


def _wrong(estimates: Sequence[str], judge: Callable[..., Verdict], bound: float, unit: str, steps: bool):
    """Biases under wrong values, or how much they grow from one size of the error to the next."""

    def verdict(table: Table) -> Verdict:
        rows = theory(table, "error")
        if rows.empty:
            return unanswered("the table lacks the theory")
        rows = rows[rows["estimate"].isin(estimates)]
        wide = rows.pivot(index=["process", "instance", "estimate"], columns="error", values="bias")
        found = wide.diff(axis=1).iloc[:, 1:] if steps else wide
        worst = float(found.min().min() if judge is above else found.max().max())
        return judge(exact(worst), bound, unit, f"the worst of {found.size}")

    return verdict


def _limits(table: Table) -> Verdict:
    rows = theory(table, "limit")
    if rows.empty:
        return unanswered("the table lacks the theory")
    worst = float(rows["difference"].max())
    return below(exact(worst), EXACT, "largest difference of advantages")


def _mask(table: Table) -> Verdict:
    rows = table[table["kind"] == "mask"]
    if rows.empty:
        return unanswered("the table lacks HiPER")
    worst = float(rows["copied"].max())
    detail = f"at subgoals that were written it is {rows['written'].min():.2g} or more"
    return within(exact(worst), 0.0, 0.0, "largest gradient at copied tokens", detail)


def _best_flat(table: Table) -> Verdict:
    """Turn GAE at the lambda that is best for the mixer, by the same seeds that are reported."""
    wide = values(table).reindex(columns=["hiper", *FLAT]).dropna().astype(float)
    if wide.empty:
        return unanswered("the table lacks HiPER, or turn GAE with a plan at three lambdas")
    best = wide[list(FLAT)].groupby("mixer").mean().idxmax(axis=1)
    flat = pandas.Series({at: wide.loc[at, best[at[0]]] for at in wide.index})
    flat.index = wide.index
    detail = "; ".join(f"{mixer}: {arm}" for mixer, arm in best.items())
    unit = "share of successes of HiPER less that of the best turn GAE"
    return above(over_seeds(wide["hiper"] - flat), 0.0, unit, detail)


def _switch_falls(table: Table) -> Verdict:
    rows = table[(table["kind"] == "draw") & (table["cell"] == "main") & (table["arm"] == "hiper")]
    if rows.empty:
        return unanswered("the table lacks the draws of HiPER")
    runs = rows.sort_values("draw").groupby(["mixer", "seed"])["switch_rate"]
    quarter = max(1, int(runs.size().min()) // 4)
    found = runs.apply(lambda r: r.iloc[:quarter].mean() - r.iloc[-quarter:].mean())
    unit = "switch rate in the first quarter of the draws less that in the last"
    return above(over_seeds(found), 0.0, unit, by_mixer(found))


def _interior(arm: str):
    def verdict(table: Table) -> Verdict:
        found = values(table, "sampled_switch_rate").reindex(columns=[arm])[arm].dropna().astype(float)
        return _judged(found, within, INTERIOR, "switch rate in the last quarter of the draws", arm)

    return verdict


CLAIMS = (
    Claim(
        "unbiased",
        "With exact values the mean of HAE is the exact gradient, at every lambda.",
        f"{SOURCE}, Theorem 4.2",
        _unbiased,
    ),
    Claim(
        "variance",
        "At lambda 0.95 and 1 the variance of HAE is less than that of flat GAE with the same lambda.",
        f"{SOURCE}, Theorem 4.3",
        _variance(NEAR_ONE),
    ),
    Claim(
        "variance_everywhere",
        "It is so at every lambda.",
        f"{SOURCE}, Theorem 4.3",
        _variance(0.0),
    ),
    Claim(
        "wrong_actions",
        "Errors of V_high bias the part of the actions, at lambda 1 too, and larger ones more.",
        OURS,
        _wrong(("actions",), above, 0.0, "smallest growth of the relative bias", steps=True),
    ),
    Claim(
        "wrong_subgoals",
        "They bias neither the part of the subgoals at lambda 1 nor flat GAE.",
        OURS,
        _wrong(("subgoals", "flat"), below, EXACT, "largest relative bias", steps=False),
    ),
    Claim(
        "limits",
        "With one segment, and with a segment in every turn, HAE is flat GAE.",
        SOURCE,
        _limits,
    ),
    Claim(
        "mask",
        "The gradient at copied subgoal tokens is exactly zero.",
        SOURCE,
        _mask,
    ),
    Claim(
        "turn",
        "HiPER succeeds more often than turn GAE with the same plans, at lambda 0.95.",
        SOURCE,
        _difference("hiper", "turn_plan", above, 0.0),
    ),
    Claim(
        "best_turn",
        "HiPER succeeds more often than turn GAE with the same plans at the best of three lambdas.",
        SOURCE,
        _best_flat,
    ),
    Claim(
        "plan",
        "Turn GAE succeeds more often with plans than without.",
        SOURCE,
        _difference("turn_plan", "turn", above, 0.0),
    ),
    Claim(
        "ppo",
        "HiPER succeeds more often than PPO without plans.",
        f"{SOURCE}, main table",
        _difference("hiper", "ppo", above, 0.0),
    ),
    Claim(
        "grpo",
        "HiPER succeeds more often than GRPO without plans.",
        f"{SOURCE}, main table",
        _difference("hiper", "grpo", above, 0.0),
    ),
    Claim(
        "gigpo",
        "HiPER succeeds more often than GiGPO without plans.",
        f"{SOURCE}, main table",
        _difference("hiper", "gigpo", above, 0.0),
    ),
    Claim(
        "ppo_format",
        "PPO gains from plans in its prompts and answers.",
        f"{SOURCE}, ablation of the prompt",
        _difference("ppo_plan", "ppo", above, 0.0),
    ),
    Claim(
        "grpo_format",
        "GRPO gains nothing from them: its share of successes changes by at most 0.05.",
        f"{SOURCE}, ablation of the prompt; the margin is ours",
        _difference("grpo_plan", "grpo", within, -EQUAL, EQUAL),
    ),
    Claim(
        "subtasks",
        "The lead of HiPER over turn GAE with plans is larger with three subtasks than with one.",
        OURS,
        _grows("hiper", "turn_plan", ("three", "one")),
    ),
    Claim(
        "few",
        "HiPER is ahead of turn GAE with plans where there are few episodes a draw.",
        OURS,
        _difference("hiper_few", "turn_plan_few", above, 0.0),
    ),
    Claim(
        "memory",
        "The lead of HiPER over turn GAE without plans is larger where prompts show nothing of the past.",
        OURS,
        _grows("hiper", "turn", ("main", "history")),
    ),
    Claim(
        "meaning",
        "The lead of HiPER over turn GAE without plans is larger where subgoals have a meaning.",
        OURS,
        _grows("hiper", "turn", ("main", "shuffled")),
    ),
    Claim(
        "boundary",
        "HiPER succeeds more often with V_high behind its segments than with nothing there.",
        SOURCE,
        _difference("hiper", "hiper_boundary", above, 0.0),
    ),
    Claim(
        "switch_of_the_code",
        "With the switch advantage of the released code HiPER is as good as with the paper's, to 0.05.",
        OURS,
        _difference("hiper_code", "hiper", within, -EQUAL, EQUAL),
    ),
    Claim(
        "switch_falls",
        "The switch rate of HiPER falls.",
        SOURCE,
        _switch_falls,
    ),
    Claim(
        "switch_interior",
        "It ends between 0.05 and 0.95, without the shaping of the released code.",
        f"{SOURCE}; the bounds are ours",
        _interior("hiper"),
    ),
    Claim(
        "switch_interior_shaped",
        "It ends between 0.05 and 0.95 with it.",
        f"{SOURCE}; the bounds are ours",
        _interior("hiper_shaped"),
    ),
)
