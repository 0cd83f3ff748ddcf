"""Table, figures and sampled episodes for readers."""

from __future__ import annotations

import numpy as np
import pandas
import torch

from ..common import figures
from ..common.statistics import bootstrap
from ..common.table import Table, numbers_as_text
from .claims import BARL, BLIND, WIDE, prompts, reached
from .posterior import posterior_weights
from .triplets import REPEATS, completions

NAMES = {  # in the order that readers meet them
    "random": "random tokens",
    "reinforce": "REINFORCE",
    "entropy": "with entropy bonus",
    "progress": "progress reward",
    "meta": "meta-RL",
    "barl_3_beta_0": "BARL 3, β = 0",
    "barl_3_beta_1": "BARL 3, β = 1",
    "barl_3_beta_5": "BARL 3, β = 5",
    "barl_fixed": "BARL 3, eq. 5.4",
    "barl_first": "BARL 3, paid once",
    "barl_27_beta_0": "BARL 27, β = 0",
    "barl_27_beta_1": "BARL 27, β = 1",
    "barl_27_beta_5": "BARL 27, β = 5",
    "base": "base",
    "grpo": "GRPO",
    "answer_progress": "progress",
    "answer_barl": "BARL",
}
CURVES = ("reinforce", "progress", "meta", BLIND, BARL, WIDE)
SHOWN = {  # columns of the summary: name, column, prompts
    "seen": ("success", False),
    "unseen": ("success", True),
    "in 9": ("success_9", True),
    "steps": ("steps", True),
    "tried per 9": ("distinct_per_9", True),
    "re-tests": ("retests", True),
    "Bayes value": ("bayes_value", True),
}


def summary(table: Table) -> Table:
    """Means over seeds of every arm of triplets by mixer: success on seen prompts and, with all that follows,
    on the unseen one; updates to 90 % on seen prompts. The last line is the floor.
    """
    by = ["arm", "mixer"]
    columns = {
        name: prompts(table, unseen=unseen).groupby(by)[column].mean()
        for name, (column, unseen) in SHOWN.items()
    }
    fast = reached(table).rename_axis(["mixer", "seed", "arm"]).groupby(by).mean()
    found = pandas.DataFrame({**columns, "updates to 0.9": fast}).reset_index()
    found = found.sort_values("arm", key=_places, kind="stable")
    floor = table[table["kind"] == "floor"]
    if len(floor):
        chances = floor.iloc[0]
        row = {"seen": chances["success"], "unseen": chances["success"], "in 9": chances["success_9"]}
        found = pandas.concat(
            [found, pandas.DataFrame([{"arm": "random", "mixer": "", **row}])], ignore_index=True
        )
    cells = numbers_as_text(found[[*SHOWN, "updates to 0.9"]])
    return found[by].assign(arm=found["arm"].map(NAMES)).join(cells).reset_index(drop=True)


def transcript(table: Table, count: int = 3) -> str:
    """Sampled episodes as text, ``count`` for every prompt of each arm and mixer, those of the first seed.

    An episode of triplets ends with the first success, or with the last token.
    """
    rows = table[(table["kind"] == "episode") & (table["seed"] == table["seed"].min())]
    rows = rows[rows["episode"] < count]
    lines = []
    for (arm, mixer), part in rows.groupby(["arm", "mixer"], sort=False):
        lines.append(f"{NAMES[arm]}, {figures.label(mixer)}")
        for prompt, text in zip(part["prompt"], part["text"], strict=True):
            lines.append(f"    {text}" if np.isnan(prompt) else f"    {prompt:.0f}: {text}")
    return "\n".join(lines) + "\n"


def draw(table: Table) -> dict:
    """Learning curves, success by arm, the posterior in an episode, trees; of sums, tries against tokens."""
    drawn = {"curves": _curves(table), "success": _success(table), "ratio": _ratio(table)}
    if (shown := _explored(table)) is not None:
        drawn["posterior"] = _posterior(*shown)
    if (table["kind"] == "pass").any():
        drawn["tries"] = _tries(table)
    return drawn


def _places(arms: pandas.Series) -> pandas.Series:
    """Where arms stand in NAMES."""
    return arms.map(list(NAMES).index)


def _side(rows: Table) -> Table:
    """Rows of the first mixer with the most arms."""
    arms = rows.groupby("mixer", sort=False)["arm"].nunique()
    return rows[rows["mixer"] == arms.idxmax()]


def _curves(table: Table):
    rows = table[table["kind"] == "curve"]
    one = _side(rows)
    barl = rows[rows["arm"] == BARL]
    caption = (
        "Success within all steps during training: arms with one mixer, and BARL with 3 hypotheses and beta "
        "5 by mixer; dashed: random tokens."
    )
    figure, axes = figures.panels(2, 2, width=4.0, height=2.6, caption=caption, sharey=True, sharex=True)
    for line, (column, what) in zip(
        axes, {"seen": "seen prompts", "unseen": "unseen prompt"}.items(), strict=True
    ):
        arms = one[one["arm"].isin(CURVES)].sort_values("arm", key=_places, kind="stable")
        figures.curves(line[0], arms.assign(arm=arms["arm"].map(NAMES)), "step", column, by="arm")
        figures.curves(line[1], barl, "step", column)
        mixer = figures.label(one["mixer"].iloc[0])
        for axis, title in zip(line, (f"{what}, {mixer}", f"{what}, {NAMES[BARL]}"), strict=True):
            _floor_line(axis.axhline, table)
            axis.set(title=title, ylim=(-0.03, 1.05))
        line[0].set_ylabel("success")
    for axis in axes[1]:
        axis.set_xlabel("updates")
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
    return figure


def _success(table: Table):
    rows = prompts(table)
    shown = [arm for arm in NAMES if arm in set(rows["arm"])]
    mixers = list(dict.fromkeys(rows["mixer"]))
    caption = "Success at the end of training by arm; bars are intervals over seeds; dashed: random tokens."
    figure, axes = figures.panels(3, width=2.85, height=0.3 * len(shown) + 1.0, caption=caption, sharey=True)
    panels = (
        ("success", False, "seen prompts, 29 tokens"),
        ("success", True, "unseen prompt, 29 tokens"),
        ("success_9", True, "unseen prompt, 9 tokens"),
    )
    for axis, (column, unseen, title) in zip(axes[0], panels, strict=True):
        part = prompts(table, unseen=unseen).groupby(["mixer", "arm", "seed"])[column].mean().reset_index()
        for i, mixer in enumerate(mixers):
            _dots(axis, part[part["mixer"] == mixer], column, shown, 0.6 * ((i + 0.5) / len(mixers) - 0.5))
        _floor_line(axis.axvline, table, column)
        axis.set(title=title, xlabel="share of episodes", xlim=(-0.03, 1.03))
    axes[0][0].set_yticks(range(len(shown)), [NAMES[arm] for arm in shown])
    axes[0][0].set_ylim(len(shown) - 0.5, -0.5)
    figures.legend_beside(figure, axes[0][0])
    return figure


def _dots(axis, rows: Table, column: str, shown: list[str], shift: float) -> None:
    """Means of one mixer with intervals, a line an arm."""
    color, marker, name = figures.STYLES[rows["mixer"].iloc[0]]
    found = {arm: bootstrap(values) for arm, values in rows.groupby("arm")[column]}
    means, reach = figures.bars(found.values())
    places = [shown.index(arm) + shift for arm in found]
    axis.errorbar(means, places, xerr=reach, color=color, marker=marker, ms=4.5, lw=1.2, ls="", label=name)


def _floor_line(line, table: Table, column: str = "success") -> None:
    for value in table.loc[table["kind"] == "floor", column]:
        line(value, color=figures.INK, ls="--", lw=1)


def _explored(table: Table) -> tuple[str, str] | None:
    """The first episode of BARL on the unseen prompt, and its mixer: one that tries several hypotheses, if
    there is such.
    """
    rows = table[(table["kind"] == "episode") & (table["arm"] == BARL)]
    rows = rows[rows["unseen"].astype(bool)]
    if rows.empty:
        return None
    tried = rows["text"].map(lambda text: sum(str(n) * 3 in text for n in range(3)))
    row = rows.loc[tried.idxmax()]
    return row["text"], row["mixer"]


def _posterior(text: str, mixer: str):
    """Weights in front of every token; with beta 0 they would stay at a third."""
    actions = torch.tensor([[int(token) for token in text]])
    found = completions(actions, REPEATS).double()
    observed = torch.zeros_like(found[:, 0])
    caption = (
        "The posterior over the three hypotheses in front of every token of an episode that BARL has written "
        "on the unseen prompt."
    )
    figure, axes = figures.panels(2, width=4.2, height=2.3, caption=caption, sharey=True)
    for axis, beta in zip(axes[0], (1.0, 5.0), strict=True):
        weights = posterior_weights(torch.zeros_like(found), observed, found, beta)[0]
        for number, (line, color) in enumerate(zip(weights, ("#2f78b7", "#c46f12", "#35968a"), strict=True)):
            places = np.arange(len(text)) - 0.06 + 0.06 * number
            axis.step(places, line, where="mid", color=color, lw=1.8, label=str(number) * 3)
        axis.set_xticks(range(len(text)), list(text))
        axis.set(title=f"β = {beta:.0f}", xlabel="tokens", ylim=(-0.03, 1.03))
    axes[0][0].set_ylabel(f"weight ({figures.label(mixer)})")
    figures.legend_beside(figure, axes[0][0])
    return figure


def _ratio(table: Table):
    rows = table[table["kind"] == "tree"]
    caption = "Return of the best adaptive policy over that of memoryless ones, exact."
    figure, axes = figures.panels(2, width=4.0, height=2.8, caption=caption)
    parts = (
        ("children", rows[rows["depth"] == 1], "arms, one level"),
        ("depth", rows[rows["children"] == 2], "levels, two branches"),
    )
    lines = {
        "deterministic": ("one path for ever", "#8a8a8a", "v"),
        "stochastic": ("every branch alike", "#2f78b7", "o"),
        "bound": ("any memoryless policy, at least", "#d1495b", "s"),
    }
    for axis, (x, part, title) in zip(axes[0], parts, strict=True):
        part = part.sort_values(x)
        for column, (name, color, marker) in lines.items():
            ratio = part["adaptive"] / part[column]
            axis.plot(part[x], ratio, color=color, marker=marker, ms=4.5, lw=1.6, label=f"against {name}")
        axis.set(xlabel=title, yscale="log")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0][0].set_ylabel("ratio of returns")
    figures.legend_beside(figure, axes[0][0])
    return figure


def _tries(table: Table):
    rows = table[table["kind"] == "pass"]
    mixers = list(dict.fromkeys(rows["mixer"]))
    caption = "Sums: problems that are solved in k tries against the tokens of these."
    figure, axes = figures.panels(len(mixers), width=4.0, height=2.8, caption=caption, sharey=True)
    for axis, mixer in zip(axes[0], mixers, strict=True):
        for arm, run in rows[rows["mixer"] == mixer].groupby("arm", sort=False):
            means = run.groupby("k")[["tokens", "passed"]].mean()
            axis.plot(means["tokens"], means["passed"], marker="o", ms=4, lw=1.6, label=NAMES[arm])
        axis.set(title=figures.label(mixer), xlabel="tokens a problem", xscale="log")
    axes[0][0].set_ylabel("share solved")
    figures.legend_beside(figure, axes[0][0])
    return figure
