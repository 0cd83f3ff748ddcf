"""From the rows of a table to gains and losses of runs: what claims and figures are made of."""

from __future__ import annotations

import pandas

from ..common.table import Table
from . import formulas
from .domains import DOMAINS

INITIAL = "initial"  # the variant of a policy that was not trained in one world
TRIAL = ["mixer", "thinking", "seed"]
RUN = [*TRIAL, "init", "trained", "variant"]


def evaluations(table: Table, *, scratchpads: bool = False) -> Table:
    """A row for every test world at every evaluation of an arm: ``before``, ``after``, whether the arm was
    trained there (``inside``), and ``gain``, Delta_ID of the arm at this evaluation.

    Args:
        scratchpads: with the arms that have one; by default they are left to the question of scratchpads.
    """
    rows = table[table["kind"] == "arm"]
    if not scratchpads:
        rows = rows[~rows["thinking"].astype(bool)]
    factorial = rows["lines"].notna() if "lines" in rows else pandas.Series(False, rows.index)
    rows = rows.assign(factorial=_of_factorial(rows, factorial))
    at_start, later = rows[rows["variant"] == INITIAL], rows[rows["variant"] != INITIAL]
    key = [*TRIAL, "factorial", "init", "domain"]
    # Trials with ablations have the initial policy of the others once more.
    before = at_start.drop_duplicates(key)[[*key, "success"]].rename(columns={"success": "before"})
    found = later.rename(columns={"success": "after"}).merge(before, on=key)
    found["inside"] = found["domain"] == found["trained"]
    inside = found[found["inside"]].assign(gain=lambda rows: rows["after"] - rows["before"])
    return found.merge(inside[[*RUN, "step", "gain"]], on=[*RUN, "step"])


def _of_factorial(rows: Table, is_cell: pandas.Series) -> pandas.Series:
    """Rows of trials with the factorial, whose initial policies are of their own."""
    return rows["trial"].isin(rows.loc[is_cell, "trial"])


def runs(rows: Table) -> Table:
    """One row a run from the rows of some evaluations: ``gain``, ``ood``, the mean success in the three other
    worlds, ``ood_before``, and ``tax``, how much of it was lost.
    """
    outside = rows[~rows["inside"]].groupby([*RUN, "domain"])[["before", "after", "gain"]].mean()
    found = outside.groupby(RUN).mean().rename(columns={"before": "ood_before", "after": "ood"})
    return found.assign(tax=found["ood_before"] - found["ood"]).reset_index()


def reported(table: Table, *, scratchpads: bool = False) -> Table:
    """The evaluations that are reported."""
    rows = evaluations(table, scratchpads=scratchpads)
    return rows[rows["final"] > 0]


def matched(table: Table) -> Table:
    """Of every plain arm the evaluation whose in-domain gain is nearest to a common value.

    The value, ``common``, is the largest that all training worlds of a trial and initial policy come to: the
    smallest of their largest gains.
    """
    rows = evaluations(table)
    rows = rows[rows["variant"] == "plain"]
    gains = rows.groupby([*RUN, "step"])["gain"].first().reset_index()
    highest = gains.groupby(RUN)["gain"].max()
    common = highest.groupby([*TRIAL, "init"]).min().rename("common").reset_index()
    gains = gains.merge(common, on=[*TRIAL, "init"])
    chosen = [
        part.iloc[formulas.nearest(list(part["gain"]), part["common"].iloc[0])]
        for _, part in gains.groupby(RUN)
    ]
    return rows.merge(pandas.DataFrame(chosen)[[*RUN, "step", "common"]], on=[*RUN, "step"])


def scores(rows: Table) -> Table:
    """The OOD ranking score of every training world, from the rows of one evaluation a run, or of several."""
    means = rows.groupby([*RUN, "domain"])["after"].mean().reset_index()
    found = []
    for key, part in means.groupby([*TRIAL, "init", "variant"]):
        wide = {
            name: dict(zip(group["domain"], group["after"], strict=True))
            for name, group in part.groupby("trained")
        }
        names = dict(zip([*TRIAL, "init", "variant"], key, strict=True))
        found += [{**names, "trained": k, "score": v} for k, v in formulas.ranking_scores(wide).items()]
    return pandas.DataFrame(found, columns=[*TRIAL, "init", "variant", "trained", "score"])


def delta_ood(rows: Table, variant: str, against: str = "plain") -> Table:
    """Delta_OOD of a variant, a row for each run that has a partner; ``delta_id``, its gain less the
    partner's, and ``points``, how much higher its mean success out of domain is.
    """
    outside = rows[~rows["inside"]].groupby([*RUN, "domain"])[["after", "gain"]].mean().reset_index()
    pair = [*TRIAL, "init", "trained"]
    ours, theirs = (outside[outside["variant"] == name] for name in (variant, against))
    both = ours.merge(theirs, on=[*pair, "domain"], suffixes=("", "_base"))
    return _changes(both, pair)


def without_thinking(rows: Table) -> Table:
    """The same of plain arms without a scratchpad against those with one."""
    plain = rows[(rows["variant"] == "plain") & ~rows["inside"]]
    outside = plain.groupby([*RUN, "domain"])[["after", "gain"]].mean().reset_index()
    pair = ["mixer", "seed", "init", "trained"]
    thinks = outside["thinking"].astype(bool)
    return _changes(
        outside[~thinks].merge(outside[thinks], on=[*pair, "domain"], suffixes=("", "_base")), pair
    )


def _changes(both: Table, pair: list[str]) -> Table:
    found = [
        {
            **dict(zip(pair, key, strict=True)),
            "delta_ood": formulas.relative_change(list(part["after_base"]), list(part["after"])),
            "points": part["after"].mean() - part["after_base"].mean(),
            "delta_id": part["gain"].mean() - part["gain_base"].mean(),
        }
        for key, part in both.groupby(pair)
    ]
    return pandas.DataFrame(found, columns=[*pair, "delta_ood", "points", "delta_id"])


def trade_off(rows: Table, tested: tuple[str, ...]) -> Table:
    """The relative change from the initial policy in some test worlds, over all others trained in, by initial
    policy: one row a trial, with columns V1 and V2.
    """
    plain = rows[(rows["variant"] == "plain") & ~rows["inside"] & rows["domain"].isin(tested)]
    pairs = plain.groupby([*RUN, "domain"])[["before", "after"]].mean()
    sums = pairs.groupby([*TRIAL, "init"]).sum()
    return (
        (sums["after"] / sums["before"].where(sums["before"] > 0) - 1)
        .unstack("init")
        .reindex(columns=["V1", "V2"])
    )


def correlates(table: Table) -> Table:
    """What may explain transfer: for every training world and trial ``richness``, ``length``, and
    ``similarity`` to the three others, beside its ranking score.
    """
    domains = table[table["kind"] == "domain"][[*TRIAL, "domain", "richness", "bare_richness", "length"]]
    pairs = table[table["kind"] == "similarity"]
    alike = pairs.groupby([*TRIAL, "domain"])["similarity"].mean().reset_index()
    worlds = domains.drop_duplicates([*TRIAL, "domain"]).merge(alike, on=[*TRIAL, "domain"])
    rows = reported(table)
    found = scores(rows[rows["variant"] == "plain"])
    return found.merge(worlds.rename(columns={"domain": "trained"}), on=[*TRIAL, "trained"])


def complete(rows: Table) -> bool:
    """Have the plain arms been trained in all worlds?"""
    return set(DOMAINS) <= set(rows.loc[rows["variant"] == "plain", "trained"])
