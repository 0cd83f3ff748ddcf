"""Table and figures for readers."""

from __future__ import annotations

from ..common import figures
from ..common.statistics import bootstrap
from ..common.table import Table
from .claims import exponents
from .memory import MEASURED
from .methods import PHASES

NAMES = {"lla, blockwise": "LLA, blockwise", "lla, naive": "LLA, naive"}
COLORS = ("#a8592f", "#c266b0")  # of the forms of LLA beside the compiled one, which has the style of LLA


def summary(table: Table) -> Table:
    """Time over that of torch SDPA at the longest length of each method, and how its memory grows."""
    longest = table[table["length"] == table.groupby("method")["length"].transform("max")]
    factors = longest.groupby(["method", "length", "phase"], sort=False)["ratio"].apply(
        lambda ratios: str(bootstrap(ratios))
    )
    wide = factors.unstack("phase").reset_index()
    wide.columns = [f"time, {name}" if name in PHASES else name for name in wide]
    for phase in MEASURED:
        wide[f"exponent of memory, {phase}"] = [_exponent(table, name, phase) for name in wide["method"]]
    return wide


def _exponent(table: Table, method: str, phase: str) -> str:
    slopes = exponents(table, method, phase)
    return str(bootstrap(slopes)) if slopes else ""


def draw(table: Table) -> dict:
    """Time over that of torch SDPA, and peak memory, by length: a panel for each phase."""
    table = table.assign(mebibytes=table["peak"] / 2**20, method=table["method"].replace(NAMES))
    return {
        "time": _panels(
            table, PHASES, "ratio", "time over that of torch SDPA", "Time of a call by the number of keys"
        ),
        "memory": _panels(
            table, MEASURED, "mebibytes", "peak memory, MiB", "Peak memory of a call by the number of keys"
        ),
    }


def _panels(table: Table, phases: tuple[str, ...], y: str, words: str, caption: str):
    figure, axes = figures.panels(len(phases), width=3.1, height=2.9, sharey=True, caption=caption)
    lengths = sorted(set(table["length"]))
    for axis, phase in zip(axes[0], phases, strict=True):
        axis.set_prop_cycle(color=COLORS)
        figures.curves(axis, table[table["phase"] == phase], "length", y, by="method")
        axis.set(title=phase, xlabel="keys", xscale="log", yscale="log")
        axis.set_xticks(lengths, map(str, lengths))
        axis.minorticks_off()
    axes[0][0].set_ylabel(words)
    figures.legend_beside(figure, axes[0][0])
    return figure
