"""Table and figures for readers."""

from __future__ import annotations

from ..common import figures
from ..common.statistics import bootstrap
from ..common.table import Table
from .claims import BY, OPTIMIZERS, at_end, curves, step_seconds


def summary(table: Table) -> Table:
    """Bits a byte at the end, the learning rate that was best, and milliseconds of a step."""
    runs = at_end(table).groupby(BY, sort=False)
    rates = runs["learning_rate"].first().map(lambda rate: f" ({rate:g})")
    bits = (runs["bits"].apply(lambda bits: str(bootstrap(bits))) + rates).unstack()
    milliseconds = (1e3 * step_seconds(table)).unstack()
    return (
        bits.rename(columns=OPTIMIZERS)
        .join(milliseconds.rename(columns=lambda name: f"{OPTIMIZERS[name]}, ms a step"))
        .reset_index()
    )


def draw(table: Table) -> dict:
    """Loss by tokens and by seconds of training, and the gain over softmax attention by tokens."""
    rows = curves(table).join(step_seconds(table).rename("step_seconds"), on=BY)
    rows = rows.assign(seconds=rows["step"] * rows["step_seconds"], kilobytes=rows["tokens"] / 1000)
    names = [name for name in OPTIMIZERS if name in set(rows["optimizer"])]
    drawn = {"loss": _losses(rows, names)}
    if "softmax" in set(rows["mixer"]) and rows["mixer"].nunique() > 1:
        drawn["gain"] = _gains(rows, names)
    return drawn


def _losses(rows: Table, optimizers: list[str]):
    figure, axes = figures.panels(
        len(optimizers),
        2,
        width=3.3,
        height=2.5,
        sharey=True,
        caption="Loss on text that was held out, by bytes and by seconds of training",
    )
    for column, name in enumerate(optimizers):
        part = rows[rows["optimizer"] == name]
        for axis, x, what in zip(axes[:, column], ("kilobytes", "seconds"), ("bytes", "time"), strict=True):
            figures.curves(axis, part, x, "bits")
            axis.set(title=f"{OPTIMIZERS[name]}, by {what}", xlabel=f"{x} of training", xlim=(0, None))
    for axis in axes[:, 0]:
        axis.set_ylabel("bits a byte, validation")
    figures.legend_beside(figure, axes[0][0])
    return figure


def _gains(rows: Table, optimizers: list[str]):
    keys = ["optimizer", "seed", "step"]
    softmax = rows[rows["mixer"] == "softmax"].set_index(keys)["bits"].rename("softmax")
    others = rows[rows["mixer"] != "softmax"].join(softmax, on=keys)
    others = others.assign(gain=others["softmax"] - others["bits"])
    figure, axes = figures.panels(
        len(optimizers),
        width=3.3,
        height=2.6,
        sharey=True,
        caption="Bits a byte that a mixer saves against softmax attention after as many bytes of training",
    )
    for axis, name in zip(axes[0], optimizers, strict=True):
        axis.axhline(0, color=figures.INK, lw=0.8)
        figures.curves(axis, others[others["optimizer"] == name], "kilobytes", "gain")
        axis.set(title=OPTIMIZERS[name], xlabel="kilobytes of training", xlim=(0, None))
    axes[0][0].set_ylabel("bits a byte less than softmax")
    figures.legend_beside(figure, axes[0][0])
    return figure
