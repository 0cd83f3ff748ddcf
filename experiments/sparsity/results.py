"""Table and figures for readers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from flashlla.models.probes import gaussian_null

from ..common import figures
from ..common.statistics import bootstrap
from ..common.table import Table
from .claims import AXES
from .demonstrations import ARMS, GUIDED
from .effects import of_arms, of_axes, of_graph, variant
from .knowledge import PLACES
from .measures import MAIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENERGY = "top-10 % energy"


def summary(table: Table) -> Table:
    """Right answers and gaps on the graph, correlations on the axes, right answers with shots, by mixer."""
    import pandas

    graph, axes, arms = variant(of_graph(table)), of_axes(table), of_arms(table)
    measured = {
        "ID, right at the end": graph["accuracy"],
        "OOD short less ID": graph["short"],
        "OOD long less ID": graph["long"],
        **{f"{axis}, rho": axes.loc[axes["axis"] == axis, "rho"] for axis in AXES},
        **{f"{arm}, right": arms.loc[arms["arm"] == arm, "accuracy"] for arm in ARMS},
    }
    cells = {
        name: values.groupby("mixer", sort=False).apply(lambda v: str(bootstrap(v)))
        for name, values in measured.items()
        if len(values)
    }
    wide = pandas.DataFrame(cells).T.reindex(columns=list(dict.fromkeys(table["mixer"]))).fillna("")
    return wide.rename_axis("measured").reset_index()


def draw(table: Table) -> Mapping[str, Figure]:
    """A figure for each part that was computed."""
    parts = {"state": ("dynamics", _dynamics), "level": ("levels", _levels), "arm": ("shots", _shots)}
    kinds = set(table["kind"])
    return {name: figure(table) for kind, (name, figure) in parts.items() if kind in kinds}


def _dynamics(table: Table) -> Figure:
    """The main metric by split over training, a panel for each mixer."""
    rows = variant(table[(table["kind"] == "state") & (table["place"] == PLACES[0])])
    mixers = list(dict.fromkeys(rows["mixer"]))
    caption = f"{ENERGY} behind prompts by steps of training; dashed: a Gaussian of the same width"
    figure, axes = figures.panels(len(mixers), width=1.9, height=2.5, caption=caption, sharey=True)
    for axis, mixer in zip(axes[0], mixers, strict=True):
        part = rows[rows["mixer"] == mixer]
        figures.curves(axis, part, "step", MAIN, by="split")
        _null_line(axis, part)
        axis.set(title=figures.label(mixer), xlabel="step")
    axes[0][0].set_ylabel(ENERGY)
    figures.legend_beside(figure, axes[0][0])
    return figure


def _levels(table: Table) -> Figure:
    """The main metric by level, a panel for each axis."""
    rows = table[(table["kind"] == "level") & (table["place"] == PLACES[0])]
    names = [name for name in AXES if name in set(rows["axis"])]
    titles = {"depth": "links of the chain", "context": "examples", "distractors": "distractors"}
    caption = f"{ENERGY} behind prompts by level of each axis; dashed: a Gaussian of the same width"
    figure, axes = figures.panels(len(names), width=2.5, height=2.7, caption=caption, sharey=True)
    for axis, name in zip(axes[0], names, strict=True):
        part = rows[rows["axis"] == name]
        figures.curves(axis, part, "level", MAIN)
        _null_line(axis, part)
        axis.set(title=name, xlabel=titles.get(name, "wrong examples of three"))
    axes[0][0].set_ylabel(ENERGY)
    figures.legend_beside(figure, axes[0][0])
    return figure


def _null_line(axis: Axes, rows: Table) -> None:
    null = gaussian_null(int(rows["width"].iloc[0]))[MAIN].mean
    axis.axhline(null, color=figures.INK, lw=1, ls="--", label="Gaussian")


def _shots(table: Table) -> Figure:
    """Right answers of every arm, and what guided demonstrations are ahead of the others."""
    rows = of_arms(table).reset_index()
    caption = "Right answers by the way demonstrations are chosen, and the paired differences in each seed"
    figure, (axes,) = figures.panels(2, width=3.6, height=2.9, caption=caption)
    mixers = list(dict.fromkeys(rows["mixer"]))
    for i, mixer in enumerate(mixers):
        part, shift = rows[rows["mixer"] == mixer], 0.3 * (i - (len(mixers) - 1) / 2)
        intervals = [bootstrap(part.loc[part["arm"] == arm, "accuracy"]) for arm in ARMS]
        _bars(axes[0], np.arange(len(ARMS)) + shift, np.array(intervals), mixer)
        for seed, runs in part.groupby("seed"):
            runs = runs.set_index("arm").loc[[arm for arm in ARMS if arm != GUIDED]]
            places = np.arange(len(runs)) + shift + 0.06 * seed
            _bars(axes[1], places, runs[["gain", "low", "high"]].to_numpy(), mixer)
    axes[0].set(title="right answers", ylim=(0, 1))
    axes[0].set_xticks(range(len(ARMS)), ARMS, rotation=30)
    axes[1].set(title=f"{GUIDED} less the others, every seed")
    axes[1].set_xticks(range(len(ARMS) - 1), [arm for arm in ARMS if arm != GUIDED], rotation=30)
    axes[1].axhline(0, color=figures.INK, lw=1)
    figures.legend_beside(figure, axes[0])
    return figure


def _bars(axis: Axes, places: np.ndarray, intervals: np.ndarray, mixer: str) -> None:
    """Values with both ends of their intervals, ``[n, 3]``."""
    color, marker, text = figures.STYLES[mixer]
    value, low, high = intervals.T
    bars = [value - low, high - value] if np.isfinite(intervals).all() else None
    axis.errorbar(places, value, bars, color=color, marker=marker, ms=4.5, ls="", capsize=2, label=text)
