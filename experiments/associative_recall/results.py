"""Table and figures for readers."""

from __future__ import annotations

import numpy as np

from ..common import figures
from ..common.statistics import bootstrap
from ..common.table import Table
from .claims import best


def summary(table: Table) -> Table:
    """Accuracy by width and number of pairs, and the learning rate that was best."""
    shown = best(table)
    cells = shown.groupby(["dim", "mixer", "pairs"])["accuracy"].apply(lambda a: str(bootstrap(a)))
    wide = cells.unstack("pairs")
    wide.columns = [f"{pairs} pairs" for pairs in wide]
    wide["rate"] = shown.groupby(["dim", "mixer"])["learning_rate"].first()
    mixers = list(dict.fromkeys(table["mixer"]))
    return wide.reindex(mixers, level="mixer").reset_index()


def draw(table: Table) -> dict:
    """Accuracy by the number of pairs, a panel a width; dashed: any of the values that were there."""
    shown = best(table)
    widths, places = (np.sort(shown[name].unique()) for name in ("dim", "pairs"))
    caption = "Share of queries answered with the right value by the number of pairs, for each width"
    figure, axes = figures.panels(len(widths), width=3.0, sharey=True, caption=caption)
    for axis, width in zip(axes[0], widths, strict=True):
        figures.curves(axis, shown[shown["dim"] == width], "pairs", "accuracy")
        axis.plot(places, 1 / places, color=figures.INK, ls="--", lw=1, label="any value of the sequence")
        axis.set_xscale("log", base=2)
        axis.set_xticks(places, places)
        axis.set(title=f"width {width}", xlabel="pairs in a sequence", ylim=(0, 1.03))
    axes[0][0].set_ylabel("share of right values")
    figures.legend_beside(figure, axes[0][0])
    return {"pairs": figure}
