"""Table and figures for readers."""

from __future__ import annotations

import math

import numpy as np

from ..common import figures
from ..common.statistics import bootstrap
from ..common.table import Table, numbers_as_text
from .mixture import DEFAULT_BORDER

ARMS = {  # in the order that readers meet them
    "base": "base",
    "best": "best of K",
    "tfg": "TFG",
    "svdd": "SVDD",
    "fk": "FK-SMC",
    "practical": "DOIT-Practical",
    "free": "DOIT, no Jacobian",
    "proto": "DOIT-Proto",
}
SHOWN = {
    "distance": "distance",
    "floor": "floor",
    "mode_kl": "mode KL",
    "paid": "reward",
    "score": "score",
    "return": "return",
    "q": "Q",
    "network_calls": "network calls",
    "products": "products",
    "reward_calls": "reward calls",
}
PANELS = (  # of samples: name, grid
    ("target", None),
    ("base", "fine"),
    ("exact h", "fine"),
    ("Proto", "coarse"),
    ("Practical", "fine"),
    ("Practical, gamma=0.5", "fine"),
    ("FK-SMC", "fine"),
    ("best of 4", "fine"),
)
COLORS = tuple(color for color, *_ in figures.STYLES.values())  # of cells; more than any preset has


def summary(table: Table) -> Table:
    """Means over seeds, and over mixers and data sets of an environment, of every sampler and arm."""
    named = table[table["kind"].isin(["sampler", "offline", "masked"])].copy()
    for column in ("arm", "sampler", "grid", "rho", "environment", "critic"):
        if column not in named:
            named[column] = None
    named["sampler"] = named["sampler"].fillna(named["arm"].map(ARMS))
    named["of"] = [_part(row) for row in named.to_dict("records")]
    columns = [column for column in SHOWN if column in named]
    seconds = [column for column in ("sampling_seconds", "play_seconds") if column in named]
    named["seconds"] = named[seconds].bfill(axis=1).iloc[:, 0]
    means = named.groupby(["of", "sampler"], sort=False)[[*columns, "seconds"]].mean()
    return numbers_as_text(means.rename(columns=SHOWN)).reset_index()


def _part(row: dict) -> str:
    if row["kind"] == "masked":
        return "strings"
    if row["kind"] == "offline":
        return f"{row['environment']}, {row['critic']}"
    tilted = row["rho"] is None or math.isnan(row["rho"])
    return f"law, {row['grid']}" if tilted else f"event {row['rho']:g}"


def draw(table: Table) -> dict:
    """Samples against the target, scores by arm, and the strings; of what the table has."""
    kinds = set(table["kind"])
    makers = {"sampler": _samples, "offline": _scores, "masked": _strings}
    return {make.__name__[1:]: make(table) for kind, make in makers.items() if kind in kinds}


def _samples(table: Table):
    caption = "Samples of the first seed, and of the tilted law; right of the line is the reward."
    columns = 4
    figure, axes = figures.panels(
        columns, len(PANELS) // columns, width=2.3, height=2.3, caption=caption, sharex=True, sharey=True
    )
    rows = table[table["points"].notna()]
    for axis, (name, grid) in zip(axes.flat, PANELS, strict=True):
        part = rows[rows["kind"] == "target"] if grid is None else rows[rows["sampler"] == name]
        part = part if grid is None else part[(part["grid"] == grid) & part["rho"].isna()]
        axis.axvline(DEFAULT_BORDER, color=figures.INK, lw=0.8)
        axis.set(title=name, aspect="equal", xlim=(-5.5, 5.5), ylim=(-5.5, 5.5))
        if len(part):
            x, y = np.reshape(part["points"].iloc[0], (-1, 2)).T
            axis.scatter(x, y, s=3, lw=0, color=COLORS[2], alpha=0.5)
    return figure


def _scores(table: Table):
    rows = table[table["kind"] == "offline"]
    rows = rows.assign(cell=[_cell(row) for row in rows.to_dict("records")])
    shown = [arm for arm in ARMS if arm in set(rows["arm"])]
    caption = "Score of every arm, 0 the poor and 100 the expert controller; bars are intervals over seeds."
    figure, axes = figures.panels(2, width=4.0, height=0.42 * len(shown) + 0.9, caption=caption, sharey=True)
    cells = list(dict.fromkeys(rows["cell"]))
    for axis, critic in zip(axes[0], ("smooth", "quantised"), strict=True):
        part = rows[(rows["critic"] == critic) | (rows["arm"] == "base")]
        _dots(axis, part, "score", "arm", shown, "cell", dict(zip(cells, COLORS, strict=False)))
        axis.set(title=f"{critic} critic", xlabel="score")
    axes[0][0].set_yticks(range(len(shown)), [ARMS[arm] for arm in shown])
    axes[0][0].invert_yaxis()
    figures.legend_beside(figure, axes[0][0])
    return figure


def _cell(row: dict) -> str:
    name = row["quality"] if row["environment"] == "pointmass" else row["environment"]
    return f"{name}, {figures.label(row['mixer'])}"


def _strings(table: Table):
    rows = table[table["kind"] == "masked"]
    shown = list(dict.fromkeys(rows["sampler"]))
    caption = "Total variation to the tilted law of strings, and the reward; dashed: draws of the law itself."
    figure, axes = figures.panels(2, width=3.8, height=0.34 * len(shown) + 0.9, caption=caption, sharey=True)
    colors = {mixer: figures.STYLES[mixer][0] for mixer in dict.fromkeys(rows["mixer"])}
    for axis, (column, line, title) in zip(
        axes[0],
        (("distance", "floor", "total variation"), ("paid", "target_paid", "reward")),
        strict=True,
    ):
        _dots(axis, rows, column, "sampler", shown, "mixer", colors)
        axis.axvline(rows[line].mean(), color=figures.INK, ls="--", lw=1)
        axis.set(xlabel=title, xlim=(0, None))
    axes[0][0].set_yticks(range(len(shown)), shown)
    axes[0][0].invert_yaxis()
    figures.legend_beside(figure, axes[0][0])
    return figure


def _dots(axis, rows: Table, column: str, by: str, shown: list[str], cells: str, colors: dict) -> None:
    """Means with intervals, a line for every value of ``by``, the cells one below the other in it."""
    for i, (cell, color) in enumerate(colors.items()):
        part = rows[rows[cells] == cell]
        found = {name: bootstrap(values) for name, values in part.groupby(by)[column] if name in shown}
        places = [shown.index(name) + 0.6 * ((i + 0.5) / len(colors) - 0.5) for name in found]
        means, reach = figures.bars(found.values())
        label = figures.label(cell)
        axis.errorbar(means, places, xerr=reach, color=color, marker="o", ms=4, lw=1.2, ls="", label=label)
