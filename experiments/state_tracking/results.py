"""Table and figures for readers."""

from __future__ import annotations

from ..common import figures
from ..common.statistics import bootstrap
from ..common.table import Table
from ..common.training import at_best_rate
from .claims import ends


def summary(table: Table) -> Table:
    """Accuracy at the end of the sequences, and the learning rate that was best."""
    final = ends(table)
    tasks = final.groupby(["mixer", "positions", "length"])
    cells = tasks["accuracy"].apply(lambda a: str(bootstrap(a))) + tasks["learning_rate"].first().map(
        lambda rate: f" ({rate:g})"
    )
    wide = cells.unstack(["positions", "length"]).loc[list(dict.fromkeys(table["mixer"]))]
    wide.columns = [f"{positions} positions, {length} swaps" for positions, length in wide.columns]
    return wide.reset_index()


def draw(table: Table) -> dict:
    """Accuracy by position, a panel for each task of the longest length."""
    longest = table[table["length"] == table["length"].max()]
    shown = at_best_rate(longest, ["mixer", "positions", "length"], "accuracy", highest=True)
    tasks = sorted(shown["positions"].unique())
    caption = "Share of right permutations by the number of swaps so far, for every number of positions."
    figure, axes = figures.panels(len(tasks), width=3.4, caption=caption, sharey=True)
    for axis, positions in zip(axes[0], tasks, strict=True):
        figures.curves(axis, shown[shown["positions"] == positions], "position", "accuracy")
        axis.set(title=f"{positions} positions", xlabel="swaps so far", ylim=(0, 1.03))
    axes[0][0].set_ylabel("share of right permutations")
    figures.legend_beside(figure, axes[0][0])
    return {"accuracy": figure}
