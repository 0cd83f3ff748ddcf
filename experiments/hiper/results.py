"""Table and figures for readers."""

from __future__ import annotations

import pandas

from ..common import figures
from ..common.statistics import bootstrap
from ..common.table import Table, numbers_as_text
from .arms import ARMS
from .claims import gain, theory, values, variance_ratios

NAMES = {"base_plan": "base + plan", "base": "base", **{key: arm.name for key, arm in ARMS.items()}}
ESTIMATES = {
    "hae": "HAE",
    "hae_code": "HAE, switch of the code",
    "flat": "flat GAE, V(state, subgoal)",
    "flat_state": "flat GAE, V(state)",
}
PARTS = {"actions": "HAE, actions", "subgoals": "HAE, subgoals", "flat": "flat GAE"}
CURVES = ("hiper", "hiper_code", "hiper_shaped", "turn_plan", "turn", "ppo", "grpo_plan", "gigpo")
SUBTASKS = {"one": 1, "main": 2, "three": 3}
LEADS = {("hiper", "turn_plan"): "HiPER over turn GAE + plan", ("hiper", "turn"): "HiPER over turn GAE"}
BINS = 5  # of the draws of a curve


def summary(table: Table) -> Table:
    """Share of successes in the test by cell, arm and mixer; means over mixers of the switch rate and of the
    steps an episode in the last draws, and of the environment's steps a second. Means over seeds.
    """
    rows = table[table["kind"] == "arm"]
    order = {name: i for i, name in enumerate(NAMES)}
    success = rows.groupby(["cell", "arm", "mixer"])["success"].mean().unstack("mixer")
    success = success[list(dict.fromkeys(rows["mixer"]))].rename(columns=figures.label)
    beside = {
        "switch rate": rows["sampled_switch_rate"].astype(float),
        "steps": rows["sampled_turns"],
        "steps a second": rows["steps_per_second"],
    }
    others = rows[["cell", "arm"]].assign(**beside).groupby(["cell", "arm"]).mean()
    wide = success.join(others).reset_index()
    cells = {cell: i for i, cell in enumerate(dict.fromkeys(rows["cell"]))}
    wide = wide.sort_values(
        ["cell", "arm"], key=lambda names: names.map(cells if names.name == "cell" else order)
    )
    numbers = wide.columns[2:]
    wide[numbers] = numbers_as_text(wide[numbers])
    return wide.assign(arm=wide["arm"].map(NAMES)).reset_index(drop=True)


def draw(table: Table) -> dict:
    """The theory, learning curves, leads by subtasks, and all arms in the test."""
    drawn = {}
    if len(theory(table, "decay")):
        drawn["theory"] = _theory(table)
    if (table["kind"] == "arm").any():
        drawn |= {"learning": _learning(table), "subtasks": _subtasks(table), "arms": _arms(table)}
    return drawn


def _theory(table: Table):
    caption = (
        "Left: variance of HAE over that of flat GAE with a value of state and subgoal, by lambda. Middle: "
        "relative bias with exact values. Right: relative bias at lambda 1 under noise in V_high."
    )
    figure, axes = figures.panels(3, width=3.7, height=3.3, caption=caption)
    ratios, (left, middle, right) = variance_ratios(table), axes[0]
    for process, part in ratios.groupby("process"):
        means = part.mean()
        text = "16 turns, sampled" if process == "long" else process
        left.plot(means.index, means, marker="o", ms=4, label=text)
    left.axhline(1, color=figures.INK, ls="--", lw=1)
    left.set(title="variance, HAE over flat", xlabel="λ")
    rows = theory(table, "decay")
    _lines(middle, rows[rows["bias"].notna()], "decay", ESTIMATES)
    middle.set(title="relative bias, exact values", xlabel="λ")
    middle.set_yscale("symlog", linthresh=1e-15)
    middle.set_yticks([0, 1e-12, 1e-9, 1e-6, 1e-3, 1])
    _lines(right, theory(table, "error"), "error", PARTS)
    right.set(title="relative bias, wrong V_high", xlabel="size of the error")
    for axis in axes[0]:
        axis.legend(fontsize=8)
    return figure


def _lines(axis, rows: Table, x: str, names: dict[str, str]) -> None:
    """Means over processes and instances, a line an estimate."""
    for (name, text), marker in zip(names.items(), "os^v", strict=False):
        means = rows[rows["estimate"] == name].groupby(x)["bias"].mean()
        axis.plot(means.index, means, marker=marker, ms=4, label=text)


def _learning(table: Table):
    """Of the first mixer that has most arms."""
    rows = table[(table["kind"] == "draw") & (table["cell"] == "main")]
    mixer = rows.groupby("mixer", sort=False)["arm"].nunique().idxmax()
    rows = rows[(rows["mixer"] == mixer) & rows["arm"].isin(CURVES)]
    count = int(rows["draw"].max()) + 1
    width = max(1, -(-count // BINS))
    place = (rows["draw"] // width + 0.5) * width
    columns = ["success", "switch_rate"]
    means = (
        rows.assign(place=place)[["arm", "seed", "place", *columns]].groupby(["arm", "seed", "place"]).mean()
    )
    means = means.reset_index().sort_values("arm", key=lambda arms: arms.map(list(NAMES).index))
    means["arm"] = means["arm"].map(NAMES)
    caption = f"Episodes of the draws, temperature 1, {figures.label(mixer)}: successes and switch rates."
    figure, axes = figures.panels(2, width=4.2, height=3.2, caption=caption)
    figures.curves(axes[0][0], means, "place", "success", by="arm")
    plans = means[means["switch_rate"].notna()]
    colors = {line.get_label(): line.get_color() for line in axes[0][0].get_lines()}
    for arm, part in plans.groupby("arm", sort=False):
        found = part.groupby("place")["switch_rate"].mean()
        axes[0][1].plot(found.index, found, marker="o", ms=4.5, lw=1.6, color=colors[arm])
    axes[0][1].margins(y=0.3)
    axes[0][0].set(title="share of successes", xlabel="draws", ylim=(0, None))
    axes[0][1].set(title="share of turns with SWITCH", xlabel="draws", ylim=(0, None))
    figures.legend_beside(figure, axes[0][0])
    return figure


def _subtasks(table: Table):
    caption = "How much more often HiPER succeeds, by the number of subtasks in a row; bars are intervals."
    figure, axes = figures.panels(1, width=4.6, height=3.0, caption=caption)
    axis = axes[0][0]
    for i, ((arm, other), text) in enumerate(LEADS.items()):
        found = {m: gain(table, arm, other, cell) for cell, m in SUBTASKS.items()}
        found = {m: _of_full(table, series) for m, series in found.items()}
        found = {m: bootstrap(series) for m, series in found.items() if len(series)}
        means, reach = figures.bars(found.values())
        places = [m + 0.06 * i for m in found]
        axis.errorbar(places, means, yerr=reach, marker="os"[i], ms=5, lw=1.3, label=text)
    axis.axhline(0, color=figures.INK, ls="--", lw=1)
    axis.set(xlabel="subtasks", ylabel="difference of shares", xticks=list(SUBTASKS.values()))
    axis.legend(fontsize=8, loc="lower right")
    return figure


def _of_full(table: Table, numbers: pandas.Series) -> pandas.Series:
    """Those of mixers that are in other cells as well, or of all where there are no others."""
    other = set(table.loc[(table["kind"] == "arm") & (table["cell"] != "main"), "mixer"])
    return numbers[numbers.index.get_level_values("mixer").isin(other)] if other else numbers


def _arms(table: Table):
    """A panel for the main cell, with all mixers, and one for the others."""
    main = values(table)
    shown = [arm for arm in NAMES if arm in main]
    rows = table[table["kind"] == "arm"]
    others = [cell for cell in dict.fromkeys(rows["cell"]) if cell != "main"]
    few = [arm for arm in NAMES if arm in set(rows.loc[rows["cell"] != "main", "arm"])]
    caption = "Share of successes in the test, temperature 0.4, by arm; bars are intervals over seeds."
    width, height = 4.9, 0.27 * len(shown) + 1.2
    figure, axes = figures.panels(1 + bool(others), width=width, height=height, caption=caption, sharex=True)
    left, right = axes[0][0], axes[0][-1]
    for i, mixer in enumerate(mixers := list(dict.fromkeys(rows["mixer"]))):
        color, marker, text = figures.STYLES.get(mixer, (None, "o", mixer))
        part = main.xs(mixer, level="mixer")
        _dots(left, part, shown, (i + 0.5) / len(mixers) - 0.5, color=color, marker=marker, label=text)
    for i, cell in enumerate(others):
        part = values(table, cell=cell).groupby("seed").mean()
        _dots(right, part, few, (i + 0.5) / len(others) - 0.5, marker="osDv^"[i % 5], label=cell)
    titles = ((left, shown, "main cell"), (right, few, "other cells"))
    for axis, names, title in titles[: axes.size]:
        axis.set(title=title, xlabel="share of successes", ylim=(len(names) - 0.4, -0.6))
        axis.set_yticks(range(len(names)), [NAMES[arm] for arm in names])
        axis.legend(fontsize=8)
    return figure


def _dots(axis, wide: Table, shown: list[str], shift: float, **style) -> None:
    """A dot an arm, over seeds."""
    found = {arm: bootstrap(wide[arm].dropna()) for arm in shown if arm in wide and wide[arm].notna().any()}
    means, reach = figures.bars(found.values())
    places = [shown.index(arm) + 0.6 * shift for arm in found]
    axis.errorbar(means, places, xerr=reach, ms=4.5, lw=1.2, ls="", **style)
