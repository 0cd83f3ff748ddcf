"""Table and figures for readers."""

from __future__ import annotations

from ..common import figures
from ..common.table import Table
from .effects import CELL, at_end, main_cell
from .mlp import MLP

PAIRED = {  # columns for readers, of one or two of the table
    "vertices": ["vertices"],
    "values": ["values"],
    "held-out values": ["held_out_values"],
    "parent, others read": ["probe_parent", "probe_others"],
    "induction in noise, in chains": ["induction", "induction_chain"],
}


def summary(table: Table) -> Table:
    """Whole-chain accuracy by shots, and what else is measured with one; a row for every mixer and cell."""
    rows = at_end(table)
    by = ["mixer", *CELL]
    most = rows["shots"].max()
    means = rows.groupby([*by, "shots"], sort=False).mean(numeric_only=True)
    whole = means["whole"].unstack("shots").apply(_together, axis=1).rename(f"whole, 0 to {most} shots")
    one = means.xs(1, level="shots")
    others = {name: one[columns].apply(_together, axis=1) for name, columns in PAIRED.items()}
    shown = whole.to_frame().join(one[[]].assign(**others)).reset_index()
    sizes = (shown[pair].astype(str).agg(", ".join, axis=1) for pair in (CELL[:2], CELL[2:]))
    for place, (name, size) in enumerate(zip(("N, M", "layers, heads"), sizes, strict=True), 1):
        shown.insert(place, name, size)
    return shown.drop(columns=CELL)


def _together(shares) -> str:
    return ", ".join("" if share != share else f"{share:.2f}" for share in shares).strip(", ")


def draw(table: Table) -> dict:
    """The main cell by shots and by steps; others over fragments and over sizes."""
    main = main_cell(table)
    cell = table[(table[CELL[:2]] == [main[name] for name in CELL[:2]]).all(axis=1)]
    size = (table[CELL[2:]] == [main[name] for name in CELL[2:]]).all(axis=1)
    compared = cell[size[cell.index] | (cell["mixer"] == MLP)]
    drawn = {"shots": _by_shots(compared, main), "steps": _by_steps(compared, main)}
    others = table[size]
    if len(others[CELL[:2]].drop_duplicates()) > 1:
        drawn["fragments"] = _grids(others, "chain", "fragment", "N, vertices of a chain", "M, of a fragment")
    others = cell[cell["mixer"] != MLP]
    if len(others[CELL[2:]].drop_duplicates()) > 1:
        drawn["sizes"] = _grids(others, "depth", "heads", "layers", "heads")
    return drawn


def _by_shots(table: Table, main: dict[str, int]):
    rows = at_end(table)
    caption = (
        "Accuracies on complete chains by the number of examples in front, for every mixer; grey: more "
        "of them than a training sequence has."
    )
    figure, axes = figures.panels(3, width=3.0, caption=caption, sharey=True)
    shots = sorted(rows["shots"].unique())
    for axis, name in zip(axes[0], ("whole", "vertices", "values"), strict=True):
        _curves(axis, rows, "shots", name)
        axis.set(title=f"{name} {_cell(main)}", xlabel="shots", ylim=(-0.03, 1.03))
        axis.set_xticks(shots)
        beyond = rows["lines"].iloc[0] - 0.5
        if beyond < shots[-1]:
            axis.axvspan(beyond, shots[-1] + 0.2, color=figures.INK, alpha=0.1, lw=0)
    axes[0][0].set_ylabel("share of right answers")
    figures.legend_beside(figure, axes[0][0])
    return figure


def _by_steps(table: Table, main: dict[str, int]):
    caption = "Whole-chain accuracy without and with one example, by the steps of training, for every mixer."
    figure, axes = figures.panels(2, width=3.4, caption=caption, sharey=True)
    for axis, shots in zip(axes[0], (0, 1), strict=True):
        _curves(axis, table[table["shots"] == shots], "step", "whole")
        title = f"{shots} shot{'s' * (shots != 1)} {_cell(main)}"
        axis.set(title=title, xlabel="steps", xlim=(0, None), ylim=(-0.03, 1.03))
    axes[0][0].set_ylabel("whole chains that are right")
    figures.legend_beside(figure, axes[0][0])
    return figure


def _cell(main: dict[str, int]) -> str:
    return f"(N = {main['chain']}, M = {main['fragment']})"


def _curves(axis, table: Table, x: str, y: str) -> None:
    """A line for each mixer, and a dashed one for the MLP."""
    figures.curves(axis, table[table["mixer"] != MLP], x, y)
    baseline = table[table["mixer"] == MLP].groupby(x)[y].mean()
    if len(baseline):
        axis.plot(baseline.index, baseline, color=figures.INK, ls="--", lw=1.2, label="MLP")


def _grids(table: Table, row: str, column: str, row_label: str, column_label: str):
    """A grid of numbers for each mixer that is in more than one cell: whole-chain accuracy with one shot."""
    rows = at_end(table)
    rows = rows[rows["shots"] == 1]
    cells = rows.groupby("mixer", sort=False)[[row, column]].apply(lambda part: len(part.drop_duplicates()))
    mixers = list(cells[cells > 1].index)
    caption = f"Whole-chain accuracy with one example, by {row_label} and {column_label}."
    figure, axes = figures.panels(len(mixers), width=2.8, height=2.6, caption=caption)
    for axis, mixer in zip(axes[0], mixers, strict=True):
        means = rows[rows["mixer"] == mixer].groupby([row, column])["whole"].mean().unstack()
        axis.pcolormesh(means.to_numpy(), cmap="viridis", vmin=0, vmax=1, edgecolor="white", lw=1)
        for i, line in enumerate(means.to_numpy()):
            for j, share in enumerate(line):
                if share == share:
                    color = "black" if share > 0.6 else "white"
                    axis.text(j + 0.5, i + 0.5, f"{share:.2f}", ha="center", va="center", color=color)
        axis.set_xticks([j + 0.5 for j in range(len(means.columns))], means.columns)
        axis.set_yticks([i + 0.5 for i in range(len(means.index))], means.index)
        axis.grid(False)
        axis.set(title=f"{figures.label(mixer)}: whole, 1 shot", xlabel=column_label)
    axes[0][0].set_ylabel(row_label)
    return figure
