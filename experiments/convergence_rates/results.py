"""Table and figures for readers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..common import figures
from ..common.statistics import bootstrap, geometric_mean
from ..common.table import Table
from .claims import POWERS, boundary_ratios, rate, slopes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def summary(table: Table) -> Table:
    """Slopes in the whole ball and in its interior, and how much larger the error is at the boundary."""
    import pandas

    everywhere, interior, ratios = slopes(table), slopes(table, "interior"), boundary_ratios(table)
    rows = []
    for dim in dict.fromkeys(table["dim"]):
        for mixer in dict.fromkeys(table["mixer"]):
            own = ratios[(ratios["mixer"] == mixer) & (ratios["dim"] == dim)]
            by_seed = own.groupby("seed")["ratio"].agg(geometric_mean)
            rows.append(
                {
                    "dim": dim,
                    "mixer": mixer,
                    "theory": rate(POWERS[mixer], dim),
                    "slope": str(bootstrap(everywhere[mixer, dim])),
                    "theory, interior": rate(4, dim),
                    "slope, interior": str(bootstrap(interior[mixer, dim])),
                    "boundary / interior": str(bootstrap(by_seed)),
                }
            )
    return pandas.DataFrame(rows)


def draw(table: Table) -> dict:
    """Error by number of keys, a panel a dimension; slopes by dimension."""
    return {"errors": _errors(table), "slopes": _slopes(table)}


def _errors(table: Table):
    everywhere = table[(table["region"] == "domain") & (table["chosen_for"] == "domain")]
    dims = list(dict.fromkeys(table["dim"]))
    figure, axes = figures.panels(
        len(dims), width=3.4, caption="Squared error by number of keys, for each dimension"
    )
    for panel, dim in zip(axes[0], dims, strict=True):
        part = everywhere[everywhere["dim"] == dim]
        figures.curves(panel, part, "keys", "error")
        panel.set_xscale("log", base=2)
        panel.set(title=f"d = {dim}", xlabel="keys n", yscale="log")
        for mixer in dict.fromkeys(part["mixer"]):
            means = part[part["mixer"] == mixer].groupby("keys")["error"].mean()
            keys, exponent = means.index, rate(POWERS[mixer], dim)
            _reference(panel, mixer, keys, means.iloc[-1] * (keys / keys[-1]) ** exponent)
        figures.plain_numbers(panel.yaxis)
    axes[0, 0].set_ylabel("squared error; dashed: rate of the theory")
    axes[0, -1].legend()
    return figure


def _slopes(table: Table):
    caption = "Slopes by dimension, whole ball and interior; error at the boundary over that in the interior"
    figure, axes = figures.panels(3, width=3.4, caption=caption)
    whole, interior, boundary = axes[0]
    _by_dim(whole, slopes(table), POWERS.get)
    _by_dim(interior, slopes(table, "interior"), lambda mixer: 4)
    whole.set(title="whole ball", ylabel="slope; dashed: theory")
    interior.set(title="interior, constants chosen for it")
    ratios = boundary_ratios(table)
    over_dims = ratios.groupby(["mixer", "keys", "seed"], as_index=False)["ratio"].mean()
    figures.curves(boundary, over_dims, "keys", "ratio")
    boundary.set_xscale("log", base=2)
    boundary.set(title="boundary over interior", xlabel="keys n", ylabel="ratio of errors, mean over d")
    boundary.legend()
    return figure


def _by_dim(panel: Axes, found: Table, power: Callable[[str], int]) -> None:
    long = found.melt(value_name="slope")
    figures.curves(panel, long, "dim", "slope")
    dims = np.unique(long["dim"])
    for mixer in dict.fromkeys(long["mixer"]):
        _reference(panel, mixer, dims, [rate(power(mixer), dim) for dim in dims])
    panel.set(xlabel="dimension d", xticks=dims)


def _reference(panel: Axes, mixer: str, x, y) -> None:
    panel.plot(x, y, color=figures.STYLES[mixer][0], ls="--", lw=1)
