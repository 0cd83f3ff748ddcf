"""Table and figures for readers."""

from __future__ import annotations

from ..common import figures
from ..common.statistics import bootstrap
from ..common.table import Table
from .claims import best, totals


def summary(table: Table) -> Table:
    """Error of every mixer on every kind of data, and the learning rate that was best."""
    kinds = ["target", "segment"]
    groups = totals(table).groupby(["mixer", *kinds], sort=False)
    cells = groups["error"].apply(lambda e: str(bootstrap(e))) + groups["learning_rate"].first().map(
        lambda rate: f" ({rate:g})"
    )
    columns = table[kinds].drop_duplicates()
    wide = cells.unstack(kinds)[list(columns.itertuples(index=False, name=None))]
    wide = wide.loc[list(dict.fromkeys(table["mixer"]))].fillna("")
    wide.loc["predicting zero"] = [f"{zero:.3g}" for zero in table.groupby(kinds, sort=False)["zero"].mean()]
    wide.columns = [f"{target}, S = {segment}" for target, segment in wide.columns]
    parameters = table.groupby("mixer")["parameters"].first().astype(str)
    wide.insert(0, "parameters", parameters.reindex(wide.index).fillna(""))
    return wide.reset_index()


def draw(table: Table) -> dict:
    """Error by place in the segment, a panel for each kind of data."""
    rows = best(table)
    kinds = table[["target", "segment"]].drop_duplicates()
    caption = "Squared error by place in the segment, for each kind of map and length S of segments"
    figure, axes = figures.panels(len(kinds), width=2.7, height=2.9, caption=caption, sharey=True)
    for axis, (target, segment) in zip(axes[0], kinds.itertuples(index=False), strict=True):
        part = rows[(rows["target"] == target) & (rows["segment"] == segment)]
        figures.curves(axis, part, "place", "error")
        axis.set(title=f"{target}, S = {segment}", xlabel="place in the segment", yscale="log")
    figures.plain_numbers(axes[0, 0].yaxis)
    axes[0, 0].set_ylabel("squared error")
    figures.legend_beside(figure, axes[0, 0])
    return {"errors": figure}
