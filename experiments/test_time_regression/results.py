"""Table and figures for readers."""

from __future__ import annotations

from ..common import figures
from ..common.statistics import bootstrap
from ..common.table import Table
from .claims import sums

SHOWN = (16, 128)  # dimension and segment of the curve by position, or the nearest there are


def summary(table: Table) -> Table:
    """Error of every method by segment length, averaged over dimensions."""
    means = sums(table).groupby(["method", "segment", "seed"], as_index=False)["error"].mean()
    wide = means.groupby(["method", "segment"])["error"].apply(lambda e: str(bootstrap(e))).unstack()
    wide = wide.loc[list(dict.fromkeys(table["method"]))]
    wide.columns = [f"segment {segment}" for segment in wide.columns]
    return wide.reset_index()


def draw(table: Table) -> dict:
    """Error by position for one kind of data, and by dimension and segment length."""
    dim, segment = (
        min(set(table[n]), key=lambda v, w=w: abs(v - w))
        for n, w in zip(("dim", "segment"), SHOWN, strict=True)
    )
    figure, axes = figures.panels(2, caption="Squared error by position in the sequence, and by dimension")
    by_position, by_dim = axes[0]
    part = table[(table["dim"] == dim) & (table["segment"] == segment)]
    figures.curves(by_position, part, "position", "error", by="method")
    by_position.set(
        title=f"by position, d = {dim}, segments of {segment}",
        xlabel="position",
        ylabel="squared error",
        yscale="log",
    )
    figures.curves(
        by_dim,
        sums(table).groupby(["method", "dim", "seed"], as_index=False, sort=False)["error"].mean(),
        "dim",
        "error",
        by="method",
    )
    by_dim.set(
        title="by dimension, mean over segment lengths", xlabel="dimension d", xscale="log", yscale="log"
    )
    dims = sorted(set(table["dim"]))
    by_dim.set_xticks(dims, map(str, dims))
    by_dim.minorticks_off()
    for axis in axes[0]:
        figures.plain_numbers(axis.yaxis)
    figures.legend_beside(figure, by_position)
    return {"errors": figure}
