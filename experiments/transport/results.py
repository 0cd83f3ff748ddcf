"""Tables and figures for readers."""

from __future__ import annotations

import numpy as np

from ..common import figures
from ..common.statistics import bootstrap, geometric_mean
from ..common.table import Table
from .claims import EARLY, FROM, linear_slopes, part, worst_gaps

NAMES = {  # in the order that readers meet them
    "opme": "OPME",
    "uniform": "IV, uniform data",
    "epsilon_greedy": "IV, ε-greedy",
    "ols": "OLS, transported",
    "regression": "regression, transported",
    "no_transport": "IV, not transported",
    "direct": "direct on (s, a)",
    "direct_uniform": "direct, uniform data",
    "source_optimal": "best in the source",
}
COLORS = {
    "opme": "#d1495b",
    "uniform": "#c46f12",
    "epsilon_greedy": "#8d62ab",
    "ols": "#2f78b7",
    "regression": "#2f78b7",
    "no_transport": "#35968a",
    "direct": "#8a8a8a",
    "direct_uniform": "#948718",
    "source_optimal": "#a8592f",
}
ENDS = {"value_error": "value error", "mixture": "mixture lacks", "greedy": "greedy lacks"}
TITLES = {
    "main": "linear",
    "unconfounded": "not confounded",
    "same_population": "one population",
    "context_free": "no contexts",
}


def summary(table: Table) -> Table:
    """By part and method: the slope of the error of values, that error behind the most episodes, and what the
    mixture of policies lacks there. Intervals are over seeds.
    """
    import pandas

    rows = []
    late, early = linear_slopes(table), linear_slopes(table, since=EARLY)
    for case, title in TITLES.items():
        final = _final(part(table, "linear").query("case == @case"))
        for method in _in_order(final):
            own = final[final["method"] == method]
            fitted = {
                f"slope from {since}": str(bootstrap(found[case, method]))
                for since, found in ((FROM, late), (EARLY, early))
                if (case, method) in found.index
            }
            rows.append({"part": title, "method": NAMES[method], **fitted, **_ends(own)})
    final = _final(part(table, "finite"))
    for method in _in_order(final):
        own = final[final["method"] == method].groupby("seed")[["value_error", "mixture"]].mean()
        rows.append({"part": "finite class", "method": NAMES[method], **_ends(own)})
    final = _final(part(table, "forms"))
    for (mixer, method, head), own in final.groupby(["mixer", "method", "head"], sort=False):
        name = f"{NAMES[method].split(',')[0]}, head by {head.upper()}"
        rows.append({"part": f"forms, {figures.label(mixer)}", "method": name, **_ends(own)})
    return pandas.DataFrame(rows).fillna("")


def _final(rows: Table) -> Table:
    return rows[rows["episodes"] == rows["episodes"].max()]


def _in_order(rows: Table) -> list[str]:
    return [method for method in NAMES if method in set(rows["method"])]


def _ends(rows: Table) -> dict[str, str]:
    """The error of values and the suboptimality of policies, where there are such."""
    found = ((name, rows[column].dropna()) for column, name in ENDS.items() if column in rows)
    return {name: str(bootstrap(values)) for name, values in found if len(values)}


def draw(table: Table) -> dict:
    """Errors by episodes, the worst gap, hardness, coverage with the finite class, and transformers."""
    return {
        "value_error": _value_errors(table),
        "gaps": _gaps(table),
        "hardness": _hardness(table),
        "finite": _finite(table),
        "forms": _forms(table),
    }


def _value_errors(table: Table):
    rows = part(table, "linear")
    caption = (
        "Error of values in the target population by episodes, for all methods and in three other settings; "
        "what the mixture of policies lacks; and the share of runs whose confidence sets hold the truth."
    )
    figure, axes = figures.panels(3, 2, width=3.3, height=2.7, caption=caption)
    for axis, (case, title) in zip(axes.flat, TITLES.items(), strict=False):
        part_of = rows[(rows["case"] == case) & rows["value_error"].notna()]
        _lines(axis, part_of, "value_error")
        axis.set(title=title, yscale="log", ylabel="value error")
        _guide(axis, part_of, "value_error")
    main = rows[rows["case"] == "main"]
    mixtures = axes.flat[4]
    _lines(mixtures, main, "mixture")
    mixtures.set(title="linear, mixture of policies", yscale="log", ylabel="suboptimality")
    coverage = axes.flat[5]
    _lines(coverage, main[main["method"].isin(("opme", "uniform", "ols"))], "covered")
    coverage.axhline(0.9, color=figures.INK, ls="--", lw=1)
    coverage.set(title="linear, coverage", ylabel="share of runs", ylim=(-0.03, 1.05))
    _legend(figure, mixtures, axes.flat[2])
    return figure


def _lines(axis, rows: Table, column: str) -> None:
    """A line a method over episodes: means over seeds, with bands."""
    for method in _in_order(rows):
        of_method = rows[rows["method"] == method].groupby(["episodes", "seed"])[column].mean()
        of_method = of_method.dropna()
        if of_method.empty:
            continue
        places = of_method.index.unique("episodes")
        intervals = [bootstrap(of_method[place]) for place in places]
        style = {"ls": ":"} if method == "source_optimal" else {}
        axis.plot(
            places, [i.value for i in intervals], color=COLORS[method], lw=1.6, label=NAMES[method], **style
        )
        low, high = ([getattr(i, end) for i in intervals] for end in ("low", "high"))
        if np.isfinite([low, high]).all():
            axis.fill_between(places, low, high, color=COLORS[method], alpha=0.18, lw=0)
    axis.set_xscale("log", base=2)
    axis.set_xlabel("episodes K")


def _guide(axis, rows: Table, column: str) -> None:
    """The power of the theory, under the line of OPME."""
    own = rows[rows["method"] == "opme"].groupby("episodes")[column].mean()
    if len(own) > 1:
        places = np.array(own.index, dtype=float)
        line = 0.7 * own.iloc[0] * (places / places[0]) ** -0.5
        axis.plot(places, line, color=figures.INK, ls="--", lw=1, label="$K^{-1/2}$")


def _legend(figure, *axes) -> None:
    """One legend with what any of the panels has."""
    found = {}
    for axis in axes:
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(text, handle)
    figure.legend(found.values(), found.keys(), loc="outside right center", fontsize=8)


def _gaps(table: Table):
    columns = {"mixture": "mixture of policies", "greedy": "greedy policy"}
    caption = "The largest suboptimality over gaps by episodes, and the gap that costs OPME most."
    figure, axes = figures.panels(3, width=3.3, height=2.7, caption=caption)
    for axis, (column, title) in zip(axes[0], columns.items(), strict=False):
        worst = worst_gaps(table, column)
        worst = worst[worst[column] > 0]
        _lines(axis, worst, column)
        _guide(axis, worst, column)
        axis.set(title=title, yscale="log", ylabel="largest suboptimality over gaps")
        figures.plain_numbers(axis.yaxis)
        gaps = worst[worst["method"] == "opme"].groupby("episodes")["gap"].agg(geometric_mean)
        line = {"mixture": "-", "greedy": "--"}[column]
        axes[0, 2].plot(gaps.index, gaps, color=COLORS["opme"], ls=line, label=title)
    axes[0, 2].set(title="gap that costs OPME most", xlabel="episodes K", ylabel="gap", yscale="log")
    axes[0, 2].set_xscale("log", base=2)
    axes[0, 2].legend(fontsize=8)
    figures.legend_beside(figure, axes[0, 0])
    return figure


def _hardness(table: Table):
    rows = part(table, "linear")
    rows = rows[rows["case"].str.startswith("hard") & (rows["method"] == "opme")]
    means = rows.groupby("case")[["ill_posedness", "transfer", "value_error"]].agg(geometric_mean)
    caption = (
        "OPME's error at a fixed number of episodes by ill-posedness, and by the distance of populations."
    )
    figure, axes = figures.panels(2, width=3.8, height=2.9, caption=caption)
    spreads = means.index.str.split("_").str[1].astype(float)
    targets = means.index.str.split("_").str[2].astype(float)
    panels = (
        (axes[0, 0], "ill_posedness", targets, "P(t = 1) = {:g}", "ill-posedness τ"),
        (axes[0, 1], "transfer", spreads, "spread {:g}", "transfer multiplier C"),
    )
    for axis, column, by, text, title in panels:
        for i, value in enumerate(sorted(set(by), reverse=True)):
            own = means[by == value].sort_values(column)
            shade = ("#d1495b", "#c46f12", "#8d62ab", "#2f78b7")[i % 4]
            axis.plot(
                own[column], own["value_error"], color=shade, marker="o", ms=4, label=text.format(value)
            )
        axis.set(xscale="log", yscale="log", xlabel=title, ylabel="value error")
        for side in (axis.xaxis, axis.yaxis):
            figures.plain_numbers(side)
        axis.legend(fontsize=8)
    return figure


def _finite(table: Table):
    rows = part(table, "finite")
    columns = {
        "mixture": "mixture of policies lacks",
        "value_error": "error of the optimal value",
        "survivors": "models in the set",
        "covered": "share of runs with the truth",
    }
    caption = "The finite class by episodes: suboptimality, error of the optimal value, survivors, coverage."
    figure, axes = figures.panels(4, width=2.5, height=2.6, caption=caption)
    for axis, (column, title) in zip(axes[0], columns.items(), strict=True):
        _lines(axis, rows, column)
        axis.set(title=title)
        if column == "survivors":
            axis.set_yscale("log", base=2)
        if column == "covered":
            axis.axhline(0.9, color=figures.INK, ls="--", lw=1)
            axis.set_ylim(-0.03, 1.05)
    figures.legend_beside(figure, axes[0, 0])
    return figure


def _forms(table: Table):
    rows = part(table, "forms")
    shown = {
        ("opme", "2sls"): "minimax loss, head by 2SLS",
        ("regression", "2sls"): "regression, head by 2SLS",
        ("regression", "ols"): "regression, head by OLS",
    }
    caption = "Error of values of reward transformers in the target population by episodes, by mixer."
    figure, axes = figures.panels(len(shown), width=3.2, height=2.8, caption=caption, sharey=True)
    for axis, ((method, head), title) in zip(axes[0], shown.items(), strict=True):
        own = rows[(rows["method"] == method) & (rows["head"] == head)]
        figures.curves(axis, own, "episodes", "value_error")
        axis.set_xscale("log", base=2)
        axis.set(title=title, xlabel="episodes K", yscale="log")
    axes[0, 0].set_ylabel("value error")
    figures.plain_numbers(axes[0, 0].yaxis)
    figures.legend_beside(figure, axes[0, 0])
    return figure
