"""Table and figures for readers."""

from __future__ import annotations

from ..common import figures
from ..common.statistics import Interval
from ..common.table import Table
from .claims import mean_ratio, ratio
from .data import CONTROL, FORMS, SERIES
from .methods import TITLES

MEAN = "mean"
ROWS = {name: series.title for name, series in SERIES.items()}  # of the figures
ROWS |= {MEAN: "geometric mean of these", CONTROL: "control: diabetes"}
STYLES = {  # colour and marker
    "lla": figures.STYLES["lla"][:2],
    "softmax": figures.STYLES["softmax"][:2],
    "ridge": ("#8d62ab", "D"),
    "k-nn": ("#8a8a8a", "v"),
    "gp": ("#35968a", "s"),
}


def summary(table: Table) -> Table:
    """Error over that of the naive predictor: means over series by method and form, and the control."""
    import pandas

    def cells(method: str) -> dict[str, str]:
        found = {form: mean_ratio(table, method, "naive", form) for form in FORMS}
        found[CONTROL] = ratio(table[table["series"] == CONTROL], method, "naive")
        return {"method": TITLES[method], **{name: str(i) for name, i in found.items() if i}}

    return pandas.DataFrame([cells(method) for method in dict.fromkeys(table["method"])])


def draw(table: Table) -> dict:
    """Errors of all series over those of the naive predictor, and over those of LLA."""
    drawn = {"errors": _by_series(table, "naive", "error over that of the naive predictor")}
    if {"lla"} < set(table["method"]):
        drawn["ratios"] = _by_series(table, "lla", "error over that of LLA")
    return drawn


def _by_series(table: Table, over: str, text: str):
    """A panel for each form, a row for each series, a marker and an interval for each method."""
    forms = [form for form in FORMS if form in set(table["form"])] or ["rows"]
    methods = [method for method in dict.fromkeys(table["method"]) if method != over]
    there = set(table["series"])
    rows = [row for row in ROWS if row in there or (row == MEAN and there != {CONTROL})]
    width = 3.4 + 3 / len(forms)  # names of series and methods stand beside the panels
    figure, axes = figures.panels(
        len(forms),
        width=width,
        height=1.2 + 0.4 * len(rows),
        caption=f"Series by series: {text}",
        sharey=True,
    )
    for form, axis in zip(forms, axes[0], strict=True):
        part = table[table["form"].isin((form, "rows"))]
        for i, method in enumerate(methods):
            offset = 0.7 * ((i + 0.5) / len(methods) - 0.5)
            found = {row: _interval(part, row, method, over, form) for row in rows}
            places = {rows.index(row) + offset: interval for row, interval in found.items() if interval}
            _markers(axis, places, method)
        _bands(axis, len(rows))
        axis.axvline(1, color=figures.INK, lw=0.8)
        axis.set(xscale="log", xlabel=text, title=f"features: {form}")
        figures.plain_numbers(axis.xaxis)
    axes[0, 0].set_yticks(range(len(rows)), [ROWS[row] for row in rows])
    axes[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    figures.legend_beside(figure, axes[0, 0])
    return figure


def _interval(table: Table, row: str, method: str, over: str, form: str) -> Interval | None:
    if row == MEAN:
        return mean_ratio(table, method, over, form)
    return ratio(table[table["series"] == row], method, over)


def _markers(axis, intervals: dict[float, Interval], method: str) -> None:
    """One a row, ``{place: interval}``; ends of intervals that are not finite are left out."""
    color, marker = STYLES[method]
    values = [interval.value for interval in intervals.values()]
    axis.plot(values, list(intervals), marker, color=color, ms=4.5, label=TITLES[method])
    for place, interval in intervals.items():
        axis.plot(interval[1:], (place, place), color=color, lw=1.2)


def _bands(axis, rows: int) -> None:
    """Every second row on a ground of its own, in place of lines."""
    axis.grid(False, axis="y")
    for place in range(0, rows, 2):
        axis.axhspan(place - 0.5, place + 0.5, color=figures.INK, alpha=0.08, lw=0)
