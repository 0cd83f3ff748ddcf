"""Figures of what ``bench/results`` holds."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from flashlla.testing.numerics import ceiling

from .. import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
RESULTS = ("output", "gradients")


# ---- accuracy maps ---------------------------------------------------------------------------------------


def cpu_budget(errors: Rows) -> Figure:
    """Shares of the budget, the worst solver, a map for each backend and dtype."""
    import torch

    cells: dict[tuple, float] = {}
    for row in sorted(errors, key=lambda row: row["backend"] != "cpu"):
        if row["within_budget"] is None:
            continue
        dtype = getattr(torch, row["dtype"])
        for result, field in zip(RESULTS, ("forward", "gradient"), strict=True):
            share = row[field] / ceiling(dtype, row["ridge"], gradient=result != "output")
            key = (f"{row['backend']}, {row['dtype']}", row["data"], result, row["ridge"])
            cells[key] = max(share, cells.get(key, 0.0))
    caption = (
        "Largest error of any solver as a share of the budget, by data and ridge, for each backend and dtype."
    )
    return _maps(cells, caption, columns=3)


def gpu_budget(checks: Rows) -> Figure:
    """Shares of the budget, a map for each dtype; gradients are the worst of all operands."""
    cells: dict[tuple, float] = {}
    for row in checks:
        for name, share in row["over_ceiling"].items():
            key = (row["dtype"], row["data"], RESULTS[name != "out"], row["ridge"])
            cells[key] = max(share, cells.get(key, 0.0))
    return _maps(
        cells, "Largest error as a share of the budget, by data and ridge, for each dtype.", columns=3
    )


def _maps(cells: dict[tuple, float], caption: str, columns: int) -> Figure:
    """``{(panel, data, result, ridge): share}`` as numbers on a ground that is darker for a larger share."""
    panels, data, ridges = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1, 3))
    lines = list(itertools.product(data, RESULTS))
    figure, axes = figures.panels(
        columns,
        len(panels) // columns,
        width=3.1,
        height=0.9 + 0.28 * len(lines),
        caption=caption,
        sharex=True,
        sharey=True,
    )
    for axis, panel in zip(axes.flat, panels, strict=True):
        shares = np.array([[cells.get((panel, *line, ridge), np.nan) for ridge in ridges] for line in lines])
        figures.heatmap(axis, shares)
        axis.set_title(panel)
    axes[0][0].set_yticks(range(len(lines)), [" ".join(line) for line in lines])
    axes[0][0].set_xticks(range(len(ridges)), [f"{ridge:g}" for ridge in ridges])
    for axis in axes[-1]:
        axis.set_xlabel("ridge")
    return figure


def tolerances(rows: Rows) -> Figure:
    """Errors and times by the tolerance of the solver, a line for each ridge."""
    panels = {"forward": "error of the output", "gradient": "worst error of a gradient"}
    panels["time_over_default"] = "time over the default's"
    caption = (
        "What a looser tolerance of the solver costs, and the time of a forward pass: float32, cpu, auto."
    )
    figure, axes = figures.panels(3, width=3.3, height=3.0, caption=caption)
    for axis, (column, title) in zip(axes[0], panels.items(), strict=True):
        for ridge, marker in zip(dict.fromkeys(row["ridge"] for row in rows), "os^D", strict=False):
            part = [row for row in rows if row["ridge"] == ridge]
            x, y = ([row[name] for row in part] for name in ("rtol", column))
            axis.plot(x, y, marker=marker, ms=4.5, lw=1.6, label=f"ridge {ridge:g}")
        axis.set(title=title, xlabel="tolerance", xscale="log")
        axis.invert_xaxis()
    for axis in axes[0][:2]:
        axis.set_yscale("log")
    axes[0][2].set_ylim(0, None)
    figures.legend_beside(figure, axes[0][0])
    return figure


# ---- GPUs ------------------------------------------------------------------------------------------------

WAYS = {"forward": ("#2f78b7", "^"), "forward and backward": ("#d1495b", "o")}


def times(rows: Rows, caption: str) -> Figure:
    """Milliseconds of the longest sequences, a panel for each head dimension, a line for each contender."""
    longest = max(row["n"] for row in rows)
    rows = [row for row in rows if row["n"] == longest and not row["rtol"]]
    names, dims = (list(dict.fromkeys(row[key] for row in rows)) for key in ("contender", "d"))
    caption = f"{caption}, length {longest}."
    figure, axes = figures.panels(len(dims), width=3.9, height=3.6, caption=caption, sharey=True)
    for axis, dim in zip(axes[0], dims, strict=True):
        for way, (color, marker) in WAYS.items():
            part = [row for row in rows if row["d"] == dim and row["direction"] == way]
            places = [names.index(row["contender"]) for row in part]
            axis.plot([row["ms"] for row in part], places, marker, color=color, ms=5, label=way)
        axis.set(title=f"head dimension {dim}", xlabel="milliseconds", xscale="log")
        figures.plain_numbers(axis.xaxis)
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].set_ylim(len(names) - 0.5, -0.5)
    figures.legend_beside(figure, axes[0][0])
    return figure


def decoding(rows: Rows) -> Figure:
    """Time of a step over that of PyTorch, a panel for each batch and number of heads."""
    heads, batches = (sorted({row[key] for row in rows}) for key in ("heads", "batch"))
    lengths = sorted({row["length"] for row in rows})
    caption = "Time of a step of decoding over that of softmax by PyTorch, by the number of keys."
    figure, axes = figures.panels(
        len(batches), len(heads), width=2.5, height=2.5, caption=caption, sharex=True, sharey=True
    )
    for axis, (head, batch) in zip(axes.flat, itertools.product(heads, batches), strict=True):
        for name in dict.fromkeys(row["contender"] for row in rows if row["contender"] != "sdpa"):
            kind, backend = name.split(", ")
            own = [r for r in rows if (r["heads"], r["batch"], r["contender"]) == (head, batch, name)]
            x, y = ([row[key] for row in own] for key in ("length", "over_sdpa"))
            color, marker, text = figures.STYLES[kind]
            line = "-" if backend == "cuda" else ":"
            axis.plot(x, y, color=color, marker=marker, ms=4, ls=line, label=f"{text}, {backend}")
        axis.axhline(1, color=figures.INK, lw=0.8)
        axis.set(title=f"{head}/8 heads, batch {batch}", xscale="log", yscale="log")
    axes[0][0].set_xticks(
        lengths, [f"{length // 1024}k" if length >= 1024 else str(length) for length in lengths]
    )
    axes[0][0].minorticks_off()
    for axis in axes[-1]:
        axis.set_xlabel("keys")
    for axis in axes[:, 0]:
        axis.set_ylabel("time over PyTorch")
        figures.plain_numbers(axis.yaxis)
    figures.legend_beside(figure, axes[0][0])
    return figure
