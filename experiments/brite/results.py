"""Table and figures for readers."""

from __future__ import annotations

from ..common import figures
from ..common.statistics import bootstrap
from ..common.table import Table, numbers_as_text
from .claims import arms

NAMES = {  # in the order that readers meet them
    "base": "base",
    "sft": "human rationales",
    "rs_1": "rejection, 1 round",
    "rs_3": "rejection, 3 rounds",
    "psi": "BRiTE-ψ",
    "theta": "BRiTE-θ",
    "psi_2": "BRiTE-ψ, 2nd",
    "theta_2": "BRiTE-θ, 2nd",
    "psi_verifier": "BRiTE-ψ, verifier",
    "psi_ppo": "BRiTE-ψ, PPO",
    "psi_grpo": "BRiTE-ψ, GRPO",
    "dpo": "iterative DPO",
    "brite_dpo": "BRiTE-DPO",
}
SHOWN = {"coverage": "coverage", "true_share": "true"}  # beside greedy accuracy, means over mixers
WAYS = {"rs_1": "#2f78b7", "theta": "#d1495b", "sft": "#8a8a8a"}  # colours that figures.STYLES knows


def summary(table: Table) -> Table:
    """Greedy accuracy of every arm by mixer; of its data, the share of problems that have a text in it, and
    that of true rationales. Means over seeds.
    """
    rows, by = table[table["kind"] == "arm"], ["task", "arm"]
    accuracy = rows.groupby([*by, "mixer"])["accuracy"].mean().unstack()[list(dict.fromkeys(rows["mixer"]))]
    wide = rows.groupby(by, sort=False)[list(SHOWN)].mean().rename(columns=SHOWN)
    wide = accuracy.rename(columns=figures.label).join(wide, how="right")
    return numbers_as_text(wide).reset_index()


def draw(table: Table) -> dict:
    """Accuracy by arm, the bound and the evidence, losses of supervised training, and the ablation."""
    return {
        "accuracy": _accuracy(table),
        "bound": _bound(table),
        "loss": _losses(table),
        "ablation": _ablation(table),
    }


def _accuracy(table: Table):
    rows = arms(table)
    shown = [arm for arm in NAMES if arm in set(rows["arm"])]
    caption = "Greedy accuracy of the answer, and exact rationales, by arm; bars are intervals over seeds."
    figure, axes = figures.panels(2, width=4.0, height=0.3 * len(shown) + 1.0, caption=caption, sharey=True)
    panels = {"accuracy": "right answers, greedy", "exact_rationales": "exact rationales, greedy"}
    for axis, (column, title) in zip(axes[0], panels.items(), strict=True):
        _dots(axis, rows, column, "mixer", shown)
        axis.set(title=title, xlabel="share of new problems", xlim=(-0.02, 1.03))
    axes[0][0].set_yticks(range(len(shown)), [NAMES[arm] for arm in shown])
    axes[0][0].invert_yaxis()
    figures.legend_beside(figure, axes[0][0])
    return figure


def _dots(axis, rows: Table, column: str, by: str, shown: list[str]) -> None:
    """Means with intervals, a line an arm, the values of ``by`` one below the other in it."""
    names = list(dict.fromkeys(rows[by]))
    for i, name in enumerate(names):
        color, marker, label = figures.STYLES[name]
        part = rows[rows[by] == name]
        found = {arm: bootstrap(values) for arm, values in part.groupby("arm")[column] if arm in shown}
        places = [shown.index(arm) + 0.6 * ((i + 0.5) / len(names) - 0.5) for arm in found]
        means, reach = figures.bars(found.values())
        axis.errorbar(
            means, places, xerr=reach, color=color, marker=marker, ms=4.5, lw=1.2, ls="", label=label
        )


def _bound(table: Table):
    rows = table[(table["kind"] == "psi") & (table["task"] == "hard")]
    first = rows[rows["arm"] == "psi"]
    variants = [arm for arm in ("psi", "psi_ppo", "psi_grpo", "psi_verifier") if arm in set(rows["arm"])]
    caption = (
        "The lower bound of log P(y* | x) during the psi-step, by mixer and, for one mixer, by estimator; "
        "dashed: log P(y* | x)."
    )
    figure, axes = figures.panels(2, width=3.6, height=2.9, caption=caption, sharey=True)
    figures.curves(axes[0][0], first, "step", "elbo")
    for mixer, part in first.groupby("mixer"):
        axes[0][0].axhline(part["evidence_high"].mean(), color=figures.STYLES[mixer][0], ls="--", lw=1)
    several = rows[rows["arm"].isin(variants)]
    extra = several[several["arm"] != "psi"]["mixer"].unique()
    several = several[several["mixer"].isin(extra[:1] if len(extra) else several["mixer"].unique()[:1])]
    figures.curves(axes[0][1], several.assign(arm=several["arm"].map(NAMES)), "step", "elbo", by="arm")
    axes[0][1].axhline(several["evidence_high"].mean(), color=figures.INK, ls="--", lw=1)
    mixer = figures.label(several["mixer"].iloc[0])
    for axis, title in zip(axes[0], ("BRiTE-ψ by mixer", f"estimators, {mixer}"), strict=True):
        axis.set(title=title, xlabel="draws")
    axes[0][0].set_ylabel("nats a problem")
    for axis in axes[0]:
        axis.legend(fontsize=8, loc="lower right")
    return figure


def _losses(table: Table):
    rows = table[(table["kind"] == "tuning") & (table["task"] == "hard")]
    mixers = list(dict.fromkeys(rows["mixer"]))
    caption = "Loss of supervised training on three sets of texts, by steps."
    figure, axes = figures.panels(len(mixers), width=2.3, height=2.5, caption=caption, sharey=True)
    for axis, mixer in zip(axes[0], mixers, strict=True):
        for arm, color in WAYS.items():
            part = rows[(rows["mixer"] == mixer) & (rows["arm"] == arm)]
            means = part.groupby("step")["loss"].mean()
            axis.plot(means.index, means, color=color, marker="o", ms=3.5, label=NAMES[arm])
        axis.set(title=figures.label(mixer), xlabel="steps")
    axes[0][0].set_ylim(0, None)
    axes[0][0].set_ylabel("nats a token")
    figures.legend_beside(figure, axes[0][0])
    return figure


def _ablation(table: Table):
    """The gap to rejection sampling and its coverage, where it is short and where it is not."""
    rows = table[table["kind"] == "arm"]
    rows = rows[rows["mixer"].isin(rows.loc[rows["task"] == "easy", "mixer"])]
    shown = [arm for arm in ("base", "rs_1", "theta", "sft") if arm in set(rows["arm"])]
    tasks = [task for task in ("hard", "easy") if task in set(rows["task"])]
    caption = "The same arms where rejection sampling lacks texts and where it covers everything."
    figure, axes = figures.panels(max(1, len(tasks)), width=3.4, height=2.2, caption=caption, sharey=True)
    for axis, task in zip(axes[0], tasks, strict=False):
        part = rows[rows["task"] == task]
        _dots(axis, part, "accuracy", "mixer", shown)
        coverage = part.loc[part["arm"] == "rs_1", "coverage"].mean()
        axis.set(
            title=f"{task} task, coverage {coverage:.2f}", xlabel="right answers, greedy", xlim=(0, 1.03)
        )
    axes[0][0].set_yticks(range(len(shown)), [NAMES[arm] for arm in shown])
    axes[0][0].invert_yaxis()
    figures.legend_beside(figure, axes[0][0])
    return figure
