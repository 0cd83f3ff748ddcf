"""What is judged: numbers of each seed, from the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..common.table import Table

if TYPE_CHECKING:
    import pandas

Effect = Callable[[Table], "pandas.Series"]  # a number a seed

PAPERS_MODEL = "softmax"
CELL = ["chain", "fragment", "depth", "heads"]
SOLVED, UNSOLVED = 0.9, 0.5  # whole-chain accuracy of fragments that suffice, and that do not


def main_cell(table: Table) -> dict[str, int]:
    """The cell that most mixers are in; of several the first."""
    mixers = table[table["heads"] > 0].groupby(CELL, sort=False)["mixer"].nunique()
    return dict(zip(CELL, mixers.idxmax(), strict=True))


def at_end(table: Table) -> Table:
    """Rows behind the last step."""
    return table[table["step"] == table["steps"]]


def seeds(table: Table, column: str, mixer: str, shots: int | None = None, **cell: int) -> pandas.Series:
    """A number a seed at the end of training, in the main cell but for what ``cell`` says."""
    where = {**main_cell(table), **cell, "mixer": mixer} | ({} if shots is None else {"shots": shots})
    rows = at_end(table)
    for name, value in where.items():
        rows = rows[rows[name] == value]
    return rows.groupby("seed")[column].mean().dropna()


def at_shots(column: str, shots: int, mixer: str = PAPERS_MODEL, **cell: int) -> Effect:
    """A column at the end, with so many shots."""
    return lambda table: seeds(table, column, mixer, shots, **cell)


# ---- one shot suffices ------------------------------------------------------------------------------


def lift(mixer: str) -> Effect:
    """What whole-chain accuracy gains by one shot."""
    return lambda table: seeds(table, "whole", mixer, 1) - seeds(table, "whole", mixer, 0)


def least_known(table: Table) -> pandas.Series:
    """Values accuracy without or with one shot, the lower."""
    zero, one = (seeds(table, "values", PAPERS_MODEL, shots) for shots in (0, 1))
    return zero.combine(one, min).dropna()


def least_missing(table: Table) -> pandas.Series:
    """What the longest fragment of any line lacks of a complete chain, vertices."""
    rows = at_end(table)
    return (rows["chain"] - rows["longest"]).groupby(rows["seed"]).min()


# ---- fragments --------------------------------------------------------------------------------------


def by_fragment(table: Table) -> Table:
    """Whole-chain accuracy with one shot of the paper's model: a row a seed, a column (N, M)."""
    main = main_cell(table)
    rows = at_end(table)
    rows = rows[(rows["mixer"] == PAPERS_MODEL) & (rows["shots"] == 1)]
    rows = rows[(rows["depth"] == main["depth"]) & (rows["heads"] == main["heads"])]
    return rows.pivot(index="seed", columns=["chain", "fragment"], values="whole").sort_index(axis=1)


def over_fragments(choose: Callable[[int, int], bool], reduce: str) -> Effect:
    """The least or greatest accuracy of a seed over chosen pairs (N, M)."""

    def effect(table: Table) -> pandas.Series:
        wide = by_fragment(table)
        return wide[[pair for pair in wide if choose(*pair)]].agg(reduce, axis=1)

    return effect


def least_gain(table: Table) -> pandas.Series:
    """The least gain of a seed from one M to the next at the same N."""
    wide = by_fragment(table).T
    return wide.groupby(level="chain").diff().T.min(axis=1)


def correlations(table: Table) -> Table:
    """Per seed the rank correlation of accuracy, at the best number of shots, with M/N and with M."""
    import pandas
    from scipy.stats import spearmanr

    main, rows = main_cell(table), at_end(table)
    rows = rows[(rows["mixer"] == PAPERS_MODEL) & (rows["depth"] == main["depth"])]
    rows = rows[rows["heads"] == main["heads"]]
    best = rows.groupby(["seed", "chain", "fragment"], as_index=False)["whole"].max()
    found = {}
    for seed, cells in best.groupby("seed"):
        if len(cells) >= 4 and cells["chain"].nunique() > 1 and cells["whole"].nunique() > 1:
            ratio, fragment = cells["fragment"] / cells["chain"], cells["fragment"]
            found[seed] = [spearmanr(known, cells["whole"]).statistic for known in (ratio, fragment)]
    return pandas.DataFrame.from_dict(found, orient="index", columns=["ratio", "fragment"], dtype=float)


def _drop(table: Table, fragment: int, chain: int) -> pandas.Series:
    """What whole-chain accuracy loses from one shot to four."""
    one, four = (
        seeds(table, "whole", PAPERS_MODEL, shots, chain=chain, fragment=fragment) for shots in (1, 4)
    )
    return (one - four).dropna()


def drops_more(table: Table) -> pandas.Series:
    """At the N of the main cell: the drop at the least M solved at one shot less that at the greatest."""
    main, wide = main_cell(table), by_fragment(table).mean()
    solved = [m for (n, m), share in wide.items() if n == main["chain"] and share > UNSOLVED]
    few, many = min(solved, default=0), max(solved, default=0)
    found = _drop(table, few, main["chain"]) - _drop(table, many, main["chain"])
    return found if few < many else found.iloc[:0]


# ---- sizes, and what is inside ----------------------------------------------------------------------


def over_sizes(
    choose: Callable[[int, int], bool], column: str, reduce: str, mixer: str = PAPERS_MODEL
) -> Effect:
    """The least or greatest number of a seed, with one shot, over chosen sizes (layers, heads)."""

    def effect(table: Table) -> pandas.Series:
        main, rows = main_cell(table), at_end(table)
        rows = rows[(rows["mixer"] == mixer) & (rows["shots"] == 1)]
        rows = rows[(rows["chain"] == main["chain"]) & (rows["fragment"] == main["fragment"])]
        sizes = zip(rows["depth"], rows["heads"], strict=True)
        chosen = np.array([choose(*size) for size in sizes], dtype=bool)
        return rows[chosen].groupby("seed")[column].agg(reduce)

    return effect


def is_small(depth: int, heads: int) -> bool:
    """One layer or one head."""
    return depth == 1 or heads == 1


def probe_gap(mixer: str) -> Effect:
    """How much more often the parent's value is read, on training lines or test lines, where it is less."""

    def effect(table: Table) -> pandas.Series:
        part = {
            name: seeds(table, f"probe_{name}", mixer, 1)
            for name in ("parent", "others", "train_parent", "train_others")
        }
        test, train = part["parent"] - part["others"], part["train_parent"] - part["train_others"]
        return test.combine(train, min).dropna()

    return effect


# ---- mixers -----------------------------------------------------------------------------------------


def lead(effect: Callable[[str], Effect], mixer: str = "lla") -> Effect:
    """Per seed: the number of ``mixer`` less that of softmax attention."""
    return lambda table: (effect(mixer)(table) - effect("softmax")(table)).dropna()


def solved_share(mixer: str) -> Effect:
    """The share of the evaluations of a run at which whole chains are solved with one shot."""

    def effect(table: Table) -> pandas.Series:
        rows = table[(table["mixer"] == mixer) & (table["shots"] == 1)]
        for name, value in main_cell(table).items():
            rows = rows[rows[name] == value]
        return (rows["whole"] >= SOLVED).groupby(rows["seed"]).mean()

    return effect


def mean_beyond(mixer: str) -> Effect:
    """Whole-chain accuracy over the numbers of shots that training never shows."""

    def effect(table: Table) -> pandas.Series:
        rows = at_end(table)
        beyond = rows[rows["shots"] >= rows["lines"]]
        return seeds(beyond, "whole", mixer) if len(beyond) else beyond["whole"]

    return effect
