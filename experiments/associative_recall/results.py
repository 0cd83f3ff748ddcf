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
    """Accuracy by the number of pairs, a panel a width, and by width, a panel a number of pairs."""
    shown = best(table)
    return {
        "pairs": _panels(shown, "pairs", "dim", "width {}", "pairs in a sequence"),
        "widths": _panels(shown, "dim", "pairs", "{} pairs", "width of the model"),
    }


def _panels(shown: Table, x: str, by: str, title: str, xlabel: str):
    """Accuracy by ``x``, a panel for each value of ``by``; dashed: any of the values that were there."""
    values = sorted(shown[by].unique())
    figure, axes = figures.panels(len(values), width=3.0, sharey=True)
    for axis, value in zip(axes[0], values, strict=True):
        part = shown[shown[by] == value]
        figures.curves(axis, part, x, "accuracy")
        places = np.sort(part[x].unique())
        chance = 1 / part.groupby(x)["pairs"].first()
        axis.plot(places, chance[places], color=figures.INK, ls="--", lw=1, label="any value of the sequence")
        axis.set_xscale("log", base=2)
        axis.set_xticks(places, places)
        axis.set(title=title.format(value), xlabel=xlabel, ylim=(0, 1.03))
    axes[0][0].set_ylabel("share of right values")
    figures.legend_beside(figure, axes[0][0])
    return figure
