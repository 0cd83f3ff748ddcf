"""Table and figures for readers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..common import figures
from ..common.statistics import bootstrap
from ..common.table import Table
from .claims import ERROR, NOTICED, final_losses, trained, usual, varied
from .measure import CAPS
from .run import LEARNED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODEL = ["learned", "ridge", "bandwidth"]
INVISIBLE = 1e-6  # nats a byte; a loss in float32 has no more digits
LEARNED_COLOR = "#d1495b"


def summary(table: Table) -> Table:
    """For every model: iterations before and behind training, errors of stopping early, and the loss."""
    import pandas

    end, start = trained(table), table[(table["step"] == 0) & (table["length"] <= table["context"])]
    means = {
        "iterations, start": start.groupby(MODEL)["q95"].mean(),
        "end": end.groupby(MODEL)["q95"].mean(),
        "most": end.groupby(MODEL)["max"].max(),
        **{f"error, {cap}": end[end["cap"] == cap].groupby(MODEL)["error"].max() for cap in (8, 32)},
    }
    losses = final_losses(table).groupby(MODEL)["loss"].apply(lambda seeds: str(bootstrap(seeds)))
    found = pandas.DataFrame({**means, "loss": losses}).reset_index()
    return found.rename(columns={"ridge": "ridge, start", "bandwidth": "bandwidth, start"})


def draw(table: Table) -> dict:
    """Iterations by length and by step; what stopping early costs; losses of fixed and learned constants."""
    return {"iterations": _iterations(table), "stopping": _stopping(table), "learning": _learning(table)}


def _iterations(table: Table):
    """A panel for every fixed ridge, by layer; and all of them by training step."""
    fixed = varied(table, "ridge")
    ridges = sorted(fixed["ridge"].unique())
    caption = "Iterations of trained models by number of keys, for each ridge and layer; and by training step"
    figure, axes = figures.panels(len(ridges) + 1, width=2.3, sharey=True, caption=caption)
    *by_length, by_step = axes[0]
    for axis, ridge in zip(by_length, ridges, strict=True):
        end = fixed[(fixed["ridge"] == ridge) & (fixed["step"] == fixed["steps"])]
        named = end.assign(name="layer " + end["layer"].astype(str))
        figures.curves(axis, named, "length", "q95", by="name")
        axis.axvline(end["context"].iloc[0], color=figures.INK, lw=0.8, ls=":")
        axis.set_xscale("log", base=2)
        axis.set(title=f"ridge {ridge:g}, trained", xlabel="keys; dotted: training context")
        axis.set_xticks(sorted(end["length"].unique()), sorted(end["length"].unique()))
    inside = _by_ridge(fixed[fixed["length"] <= fixed["context"]])
    means = inside.groupby(["name", "seed", "step"], as_index=False, sort=False)["q95"].mean()
    figures.curves(by_step, means, "step", "q95", by="name")
    by_step.set(title="mean over layers", xlabel="training step")
    by_length[0].legend(fontsize=8)
    figures.legend_beside(figure, by_step)
    by_length[0].set(ylabel="iterations, 0.95 quantile", yscale="log")
    figures.plain_numbers(by_length[0].yaxis)
    return figure


def _stopping(table: Table):
    """The largest error of a layer, and how the loss changes, by number of iterations."""
    fixed = _by_ridge(varied(trained(table), "ridge"))
    change = (fixed["loss_stopped"] - fixed["loss"]).abs().clip(lower=INVISIBLE)
    models = fixed.assign(change=change).groupby(["name", "seed", "cap"], as_index=False, sort=False)
    worst = models[["error", "change"]].max()
    figure, (axes,) = figures.panels(
        2, caption="Error of the output and change of the loss by the iterations that a solver stops after"
    )
    for axis, column, title, limit in (
        (axes[0], "error", "relative error of the worst layer", ERROR),
        (axes[1], "change", "change of the loss, nats a byte", NOTICED),
    ):
        figures.curves(axis, worst, "cap", column, by="name")
        axis.axhline(limit, color=figures.INK, lw=0.8, ls=":")
        axis.set_xscale("log", base=2)
        axis.set(title=title, xlabel="iterations", yscale="log")
        axis.set_xticks(CAPS, CAPS)
    axes[0].legend(fontsize=8)
    return figure


def _learning(table: Table):
    """Losses by ridge and by bandwidth, less that of the usual model of the same seed."""
    losses = final_losses(table)
    losses["loss"] -= losses["seed"].map(usual(losses).set_index("seed")["loss"])
    figure, (axes,) = figures.panels(
        2, sharey=True, caption="Loss by fixed ridge and bandwidth, and with learned ones"
    )
    for axis, name in zip(axes, LEARNED, strict=True):
        fixed = varied(losses, name)
        figures.curves(axis, fixed.assign(name="fixed"), name, "loss", by="name")
        _level(axis, losses.loc[losses["learned"] == name, "loss"])
        axis.set_xscale("log")
        axis.set(xlabel=f"fixed {name}")
        values = sorted(fixed[name].unique())
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.minorticks_off()
    axes[0].set_ylabel("loss less that at ridge 1, bandwidth 1")
    axes[0].legend(fontsize=8)
    return figure


def _by_ridge(table: Table) -> Table:
    """With names for curves of one ridge each, in the order of the ridges."""
    ordered = table.sort_values("ridge", kind="stable")
    return ordered.assign(name=[f"ridge {ridge:g}" for ridge in ordered["ridge"]])


def _level(axis: Axes, samples) -> None:
    """A horizontal line with a band, for a model that has no place on the axis."""
    if len(samples):
        value, low, high = bootstrap(samples)
        axis.axhline(value, color=LEARNED_COLOR, lw=1.6, ls="--", label="learned, from 1")
    if len(samples) > 1:
        axis.axhspan(low, high, color=LEARNED_COLOR, alpha=0.18, lw=0)
