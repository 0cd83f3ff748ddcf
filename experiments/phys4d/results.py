"""Tables and figures for readers."""

from __future__ import annotations

import pandas

from ..common import figures
from ..common.statistics import bootstrap
from ..common.table import Table, numbers_as_text
from .claims import arms

NAMES = {  # in the order that readers meet them
    "base": "0 broken physics",
    "heads": "1 heads",
    "sft_plain": "2 tuned, no warp",
    "sft": "2 tuned",
    "rl": "3 rewards",
    "more_sft": "control: more tuning",
    "rl_shuffled": "control: shuffled",
    "still": "last frame repeated",
    "retake": "second take",
    "truth": "truth, lifted",
}
SHOWN = {  # columns of the summary; the table has more
    "mse": "MSE",
    "st_iou": "ST-IoU",
    "score": "score",
    "chamfer": "4DCD",
    "drift": "drift",
    "free_flight": "fall",
    "abs_rel": "AbsRel",
    "epe": "EPE",
    "warp_l1": "warp L1",
}
PANELS = {  # of the figure by stage
    "chamfer": "4-D Chamfer distance",
    "drift": "drift",
    "mse": "MSE of frames",
    "score": "Physics-IQ score, %",
    "abs_rel": "AbsRel of depth",
    "warp_l1": "Depth-Warp L1",
}
FINAL = {"base": "#8a8a8a", "sft": "#2f78b7", "more_sft": "#5b8c2a", "rl": "#d1495b"}  # colours of drifts


def summary(table: Table) -> Table:
    """The main metrics by mixer and stage, means over seeds; references are those of all mixers."""
    rows = table[table["kind"].isin(("arm", "reference"))]
    rows = rows.assign(mixer=rows["mixer"].where(rows["kind"] == "arm", ""))
    wide = rows.groupby(["mixer", "arm"], sort=False)[list(SHOWN)].mean().rename(columns=SHOWN)
    order = [mixer for mixer in dict.fromkeys(table["mixer"])] + [""]
    names = [*NAMES, "constant"]
    wide = wide.loc[sorted(wide.index, key=lambda key: (order.index(key[0]), names.index(key[1])))]
    text = numbers_as_text(wide).reset_index()
    text["mixer"] = text["mixer"].map(figures.label)
    text["arm"] = text["arm"].map(lambda arm: NAMES.get(arm, "constant depth, no flow"))
    return text


def draw(table: Table) -> dict:
    """Metrics by stage, the drift along a clip, and what the reward was worth during stage 3."""
    return {"stages": _stages(table), "drift": _drift(table), "reward": _reward(table)}


def _stages(table: Table):
    rows = arms(table)
    shown = [arm for arm in NAMES if arm in set(rows["arm"])]
    mixers = list(dict.fromkeys(rows["mixer"]))
    caption = "Metrics of every stage and control; bars are intervals over seeds."
    figure, axes = figures.panels(3, 2, width=3.3, height=2.6, caption=caption, sharey=True)
    for axis, (column, title) in zip(axes.flat, PANELS.items(), strict=True):
        for i, mixer in enumerate(mixers):
            color, marker, label = figures.STYLES[mixer]
            part = rows[rows["mixer"] == mixer]
            found = {arm: bootstrap(part.loc[part["arm"] == arm, column]) for arm in shown}
            means, reach = figures.bars(found.values())
            places = [k + 0.6 * ((i + 0.5) / len(mixers) - 0.5) for k in range(len(shown))]
            axis.errorbar(
                means, places, xerr=reach, color=color, marker=marker, ms=4.5, lw=1.2, ls="", label=label
            )
        axis.set(title=title)
    axes[0][0].set_yticks(range(len(shown)), [NAMES[arm] for arm in shown])
    axes[0][0].invert_yaxis()
    figures.legend_beside(figure, axes[0][0])
    return figure


def _drift(table: Table):
    rows = table[table["kind"] == "drift"]
    mixers = list(dict.fromkeys(rows["mixer"]))
    caption = "How far balls are from where they should be, by frame; bands are intervals over seeds."
    figure, axes = figures.panels(len(mixers), width=3.1, height=2.7, caption=caption, sharey=True)
    for axis, mixer in zip(axes[0], mixers, strict=True):
        for arm, color in FINAL.items():
            _band(axis, rows[(rows["mixer"] == mixer) & (rows["arm"] == arm)], "frame", "drift", color, arm)
        taken = rows[(rows["mixer"] == mixer) & (rows["arm"] == "retake")].groupby("frame")["drift"].mean()
        axis.plot(taken.index, taken, color=figures.INK, ls="--", lw=1, label=NAMES["retake"])
        axis.set(title=figures.label(mixer), xlabel="frame")
        axis.set_xticks(sorted(rows["frame"].astype(int).unique()))
    axes[0][0].set(ylabel="half-widths of the box", ylim=(0, None))
    figures.legend_beside(figure, axes[0][0])
    return figure


def _band(axis, rows: Table, x: str, y: str, color: str, arm: str) -> None:
    """Means over seeds, and their intervals."""
    found = {place: bootstrap(values) for place, values in rows.groupby(x)[y]}
    axis.plot(
        list(found), [i.value for i in found.values()], color=color, marker="o", ms=3.5, label=NAMES[arm]
    )
    ends = pandas.DataFrame(found.values(), index=list(found))
    if len(rows["seed"].unique()) > 1:
        axis.fill_between(ends.index, ends["low"], ends["high"], color=color, alpha=0.18, lw=0)


def _reward(table: Table):
    """The reward reads learned depth, the evaluation does not: if they part, the reward is being cheated."""
    rows = table[table["kind"] == "reward"]
    panels = {"reward": "reward, by learned depth", "chamfer": "4DCD, by areas", "mse": "MSE of frames"}
    caption = "Stage 3: the reward, and what an evaluation without learned depth says of the same clips."
    figure, axes = figures.panels(3, width=3.1, height=2.7, caption=caption)
    for axis, (column, title) in zip(axes[0], panels.items(), strict=True):
        for mixer in dict.fromkeys(rows["mixer"]):
            color, marker, label = figures.STYLES[mixer]
            for arm, line in {"rl": "-", "rl_shuffled": ":"}.items():
                part = rows[(rows["mixer"] == mixer) & (rows["arm"] == arm)]
                means = part.groupby("step")[column].mean()
                text = label if arm == "rl" else f"{label}, shuffled"
                axis.plot(means.index, means, color=color, marker=marker, ms=4, ls=line, label=text)
        axis.set(title=title, xlabel="draws")
    figures.legend_beside(figure, axes[0][0])
    return figure
