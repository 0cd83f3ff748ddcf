"""Table and figures for readers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas

from ..common import figures
from ..common.statistics import bootstrap
from ..common.table import Table, numbers_as_text
from . import effects
from .arms import LINES, SUBTASKS
from .claims import dose_curve, factorial_cells
from .domains import DOMAINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLAIN, AUGMENTED = "#2f78b7", "#d1495b"  # colours that figures.STYLES knows
ROW_KEY = ["thinking", "init", "variant", "trained"]


def summary(table: Table) -> Table:
    """Success in every world, means over mixers and seeds, by initial policy and arm; Delta_ID and the change
    of the mean out of domain, the ranking score, and steps of the worlds a second.
    """
    rows = effects.reported(table, scratchpads=True)
    wide = rows.groupby([*ROW_KEY, "domain"], sort=False)["after"].mean().unstack("domain")[list(DOMAINS)]
    found = effects.runs(rows).groupby(ROW_KEY)[["gain", "tax"]].mean()
    scores = (
        effects.scores(rows[rows["variant"].isin(("plain", "augmented"))]).groupby(ROW_KEY)["score"].mean()
    )
    speed = rows.groupby(ROW_KEY)["steps_per_second"].mean().round()
    about = pandas.DataFrame(
        {"Delta_ID": found["gain"], "OOD": -found["tax"], "score": scores, "steps/s": speed}
    )
    initial = table[(table["kind"] == "arm") & (table["variant"] == effects.INITIAL)]
    before = initial.groupby([*ROW_KEY, "domain"])["success"].mean().unstack("domain")[list(DOMAINS)]
    shown = pandas.concat([before, wide.join(about)])
    shown = numbers_as_text(shown)
    arms = [
        f"{init}{', thinking' if thinking else ''}: {' '.join(filter(None, (trained, variant)))}"
        for thinking, init, variant, trained in shown.index
    ]
    return shown.reset_index(drop=True).assign(arm=arms)[["arm", *shown.columns]]


def draw(table: Table) -> Mapping[str, Figure]:
    """Success by training and test world and on the way, and what else there is."""
    rows = effects.reported(table)
    found = {"transfer": _transfer(rows), "training": _training(table)}
    if (rows["variant"] == "augmented").any():
        found["augmentation"] = _augmentation(rows)
    if rows["variant"].str.startswith("dose").any():
        found["doses"] = _doses(rows)
    if "lines" in rows and rows["lines"].notna().any():
        found["factorial"] = _factorial(table)
    return found


def _transfer(rows: Table) -> Figure:
    """A matrix for each initial policy and variant: first line before, then trained in each of the worlds."""
    rows = rows[rows["variant"].isin(("plain", "augmented")) & ~rows["factorial"]]
    inits, variants = (list(dict.fromkeys(rows[name])) for name in ("init", "variant"))
    caption = "Success by training world (lines) and test world (columns), means over mixers and seeds."
    figure, axes = figures.panels(
        len(inits), len(variants), width=4.2, height=2.9, caption=caption, sharey=True
    )
    for line, variant in zip(axes, variants, strict=True):
        for axis, init in zip(line, inits, strict=True):
            part = rows[(rows["init"] == init) & (rows["variant"] == variant)]
            _matrix(axis, part)
            axis.set_title(f"{init}, {variant}")
    for line in axes:
        line[0].set_ylabel("trained in")
    return figure


def _matrix(axis: Axes, rows: Table) -> None:
    before = rows.groupby("domain")["before"].mean().reindex(DOMAINS)
    after = rows.groupby(["trained", "domain"])["after"].mean().unstack().reindex(DOMAINS)[list(DOMAINS)]
    values = np.vstack([before.to_numpy(), after.to_numpy()])
    for (line, column), text in figures.heatmap(axis, values, ".2f").items():
        if line == column + 1:
            text.set_weight("bold")
    axis.set_xticks(range(len(DOMAINS)), DOMAINS)
    axis.set_yticks(range(len(DOMAINS) + 1), ["before", *DOMAINS])


def _training(table: Table) -> Figure:
    """Success in and out of domain by draws, a panel for each training world, plain arms."""
    rows = effects.evaluations(table)
    rows = rows[(rows["variant"] == "plain") & ~rows["factorial"]]
    start = rows.drop_duplicates([*effects.RUN, "domain"]).assign(step=0, after=lambda first: first["before"])
    rows = pandas.concat([start, rows]).assign(
        where=lambda all: np.where(all["inside"], "own world", "others")
    )
    means = rows.groupby(["mixer", "seed", "init", "trained", "where", "step"])["after"].mean().reset_index()
    caption = "Success in the own world and in the three others by draws; bands are intervals over runs."
    worlds = [domain for domain in DOMAINS if domain in set(means["trained"])]
    figure, axes = figures.panels(len(worlds), width=2.25, height=2.6, caption=caption, sharey=True)
    for axis, trained in zip(axes[0], worlds, strict=True):
        figures.curves(axis, means[means["trained"] == trained], "step", "after", by="where")
        axis.set(title=f"trained in {trained}", xlabel="draws", ylim=(0, 1))
    axes[0][0].set_ylabel("success")
    figures.legend_beside(figure, axes[0][0])
    return figure


def _augmentation(rows: Table) -> Figure:
    """Changes out of domain and in the own world, with and without distractors."""
    part = rows[rows["variant"].isin(("plain", "augmented")) & ~rows["factorial"]]
    found = effects.runs(part).assign(change=lambda found: -found["tax"])
    paired = found.groupby([*effects.TRIAL, "init", "trained"])["variant"].transform("nunique") > 1
    found = found[paired]
    lines = [
        (init, trained)
        for init in dict.fromkeys(found["init"])
        for trained in DOMAINS
        if ((found["init"] == init) & (found["trained"] == trained)).any()
    ]
    caption = "Changes of success by training with and without distractors; bars are intervals over runs."
    figure, axes = figures.panels(2, width=3.9, height=0.3 * len(lines) + 1.1, caption=caption, sharey=True)
    for axis, column, title in (
        (axes[0][0], "change", "mean of the other worlds"),
        (axes[0][1], "gain", "own world"),
    ):
        for variant, color, shift in (("plain", PLAIN, -0.14), ("augmented", AUGMENTED, 0.14)):
            _changes(axis, found[found["variant"] == variant], column, lines, color, shift, variant)
        axis.axvline(0, color=figures.INK, lw=0.8)
        axis.set(title=title, xlabel="change of success")
        axis.locator_params(axis="x", nbins=5)
    axes[0][0].set_yticks(range(len(lines)), [f"{init}, {trained}" for init, trained in lines])
    axes[0][0].invert_yaxis()
    figures.legend_beside(figure, axes[0][0])
    return figure


def _changes(axis, rows: Table, column: str, lines, color: str, shift: float, label: str) -> None:
    """Means with intervals, a line each."""
    groups = rows.groupby(["init", "trained"])[column]
    means, reach = figures.bars(bootstrap(groups.get_group(line)) for line in lines)
    places = np.arange(len(lines)) + shift
    axis.errorbar(means, places, xerr=reach, color=color, marker="o", ms=4.5, lw=1.2, ls="", label=label)


def _doses(rows: Table) -> Figure:
    curve = dose_curve(rows).assign(change=lambda found: -found["tax"])
    caption = (
        "Changes of success by the dose of distractors in training; 1 is the dose of the augmented arms."
    )
    figure, axes = figures.panels(2, width=3.6, height=2.8, caption=caption, sharey=True)
    titles = {"change": "mean of the other worlds", "gain": "own world"}
    for axis, (column, title) in zip(axes[0], titles.items(), strict=True):
        figures.curves(axis, curve, "dose", column)
        axis.axhline(0, color=figures.INK, lw=0.8)
        axis.set(title=title, xlabel="dose")
    axes[0][0].set_ylabel("change of success")
    figures.legend_beside(figure, axes[0][0])
    return figure


def _factorial(table: Table) -> Figure:
    cells = factorial_cells(table)
    caption = "Changes of success by training in MiniHouse with and without distractors, by subtasks."
    figure, axes = figures.panels(2, width=3.6, height=2.8, caption=caption)
    titles = {"change": "mean of the other worlds", "gain": "own world"}
    for axis, (column, title) in zip(axes[0], titles.items(), strict=True):
        for lines, color, shift in zip(LINES, (PLAIN, AUGMENTED), (-0.06, 0.06), strict=True):
            part = cells[cells["lines"] == lines]
            means, reach = figures.bars(bootstrap(part.loc[part["subtasks"] == m, column]) for m in SUBTASKS)
            places = np.arange(len(SUBTASKS)) + shift
            axis.errorbar(
                places, means, yerr=reach, color=color, marker="o", ms=4.5, label=f"{lines} distractors"
            )
        axis.axhline(0, color=figures.INK, lw=0.8)
        axis.set(title=title, xlabel="subtasks")
        axis.set_xticks(range(len(SUBTASKS)), SUBTASKS)
    axes[0][0].set_ylabel("change of success")
    figures.legend_beside(figure, axes[0][0])
    return figure
