"""What the papers say of this experiment, and what their reviewers would like to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..common.claims import Claim, Verdict, above, unanswered
from ..common.figures import label
from ..common.statistics import bootstrap
from ..common.table import Table
from ..common.training import at_best_rate

if TYPE_CHECKING:
    import pandas

PARALLAX = "arXiv 2605.29157, language modelling with Muon and AdamW"
REVIEWS = "reviews of arXiv 2510.01450: no language modelling, no comparison of time"
OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon"}
BY = ["mixer", "optimizer"]


def at_end(table: Table) -> Table:
    """The rows behind the last step, each mixer and optimizer at its best learning rate."""
    return at_best_rate(table[table["step"] == table["steps"]], BY, "bits")


def curves(table: Table) -> Table:
    """All rows of the learning rates that are best at the end."""
    return table.merge(at_end(table)[[*BY, "learning_rate"]].drop_duplicates())


def step_seconds(table: Table) -> pandas.Series:
    """Seconds of a training step by mixer and optimizer.

    The median over the stretches between evaluations of all runs: a step costs the same at every learning
    rate and seed, and other work on the machine makes some stretches longer.
    """
    runs = table.groupby([*BY, "learning_rate", "seed"])[["step", "training_seconds"]]
    stretches = table[["step", "training_seconds"]] - runs.shift(fill_value=0)
    each = stretches["training_seconds"] / stretches["step"]
    return each.groupby([table[name] for name in BY]).median()


def _gains(table: Table, mixer: str, optimizer: str) -> pandas.Series:
    """Per seed: bits a byte of softmax attention less those of ``mixer``, at the end; empty without both."""
    final = at_end(table)
    wide = final[final["optimizer"] == optimizer].pivot(index="seed", columns="mixer", values="bits")
    wide = wide.reindex(columns=["softmax", mixer])
    return (wide["softmax"] - wide[mixer]).dropna()


def _leads_in_time(table: Table, mixer: str, optimizer: str) -> list[float]:
    """Per seed: bits a byte of ``mixer`` less those of softmax attention, once that has done its steps."""
    rows = curves(table)
    rows = rows[rows["optimizer"] == optimizer].sort_values("step")
    runs = {key: (run["step"], run["bits"]) for key, run in rows.groupby(["mixer", "seed"])}
    seeds = [seed for name, seed in runs if name == "softmax" and (mixer, seed) in runs]
    if not seeds:
        return []
    seconds = step_seconds(table)
    steps = rows["steps"].iloc[0] * seconds["softmax", optimizer] / seconds[mixer, optimizer]
    return [np.interp(steps, *runs[mixer, seed]) - runs["softmax", seed][1].iloc[-1] for seed in seeds]


def _gain(mixer: str, optimizer: str) -> Callable[[Table], Verdict]:
    def judge(table: Table) -> Verdict:
        gains = _gains(table, mixer, optimizer)
        if gains.empty:
            return _lacking(mixer, optimizer)
        unit = f"bits a byte of softmax less those of {label(mixer)}, {OPTIMIZERS[optimizer]}"
        return above(bootstrap(gains), 0.0, unit)

    return judge


def _muon_gains_more(mixer: str) -> Callable[[Table], Verdict]:
    def judge(table: Table) -> Verdict:
        muon, adamw = (_gains(table, mixer, optimizer) for optimizer in ("muon", "adamw"))
        more = (muon - adamw).dropna()
        if more.empty:
            return _lacking(mixer, "adamw", "muon")
        detail = f"the gain is {bootstrap(muon)} with Muon, {bootstrap(adamw)} with AdamW"
        return above(bootstrap(more), 0.0, "bits a byte that the gain is larger with Muon", detail)

    return judge


def _softmax_leads_in_time(mixer: str, optimizer: str) -> Callable[[Table], Verdict]:
    def judge(table: Table) -> Verdict:
        leads = _leads_in_time(table, mixer, optimizer)
        if not leads:
            return _lacking(mixer, optimizer)
        seconds = step_seconds(table)
        ratio = seconds[mixer, optimizer] / seconds["softmax", optimizer]
        detail = f"a step of {label(mixer)} takes {ratio:.2f} times as long"
        unit = f"bits a byte of {label(mixer)} less those of softmax when softmax has done its steps"
        return above(bootstrap(leads), 0.0, unit, detail)

    return judge


def _lacking(mixer: str, *optimizers: str) -> Verdict:
    needed = " and ".join(OPTIMIZERS[optimizer] for optimizer in optimizers)
    return unanswered(f"the table lacks {label(mixer)} or softmax with {needed}")


CLAIMS = (
    Claim(
        "parallax_muon",
        "Trained with Muon, Parallax reaches a lower validation loss than softmax attention.",
        PARALLAX,
        _gain("parallax", "muon"),
    ),
    Claim(
        "parallax_optimizer",
        "What Parallax gains over softmax attention is more with Muon than with AdamW.",
        PARALLAX,
        _muon_gains_more("parallax"),
    ),
    *(
        Claim(
            f"lla_{optimizer}",
            f"Trained with {name}, LLA reaches a lower validation loss than softmax attention after as many "
            "tokens.",
            REVIEWS,
            _gain("lla", optimizer),
        )
        for optimizer, name in OPTIMIZERS.items()
    ),
    *(
        Claim(
            f"time_{optimizer}",
            f"Trained with {name} for the same time, softmax attention is ahead of LLA.",
            REVIEWS,
            _softmax_leads_in_time("lla", optimizer),
        )
        for optimizer, name in OPTIMIZERS.items()
    ),
)
