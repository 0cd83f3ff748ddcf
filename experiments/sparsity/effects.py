"""What the table says of each run, a number for every question."""

from __future__ import annotations

import pandas

from flashlla.models.probes import gaussian_null

from ..common.table import Table
from .graph import ID, LONG, SHORT
from .knowledge import PLACES
from .measures import MAIN

WINDOW = (0.48, 0.96)  # share of the steps: 1200 to 2400 of 2500, where the paper sees the effect
KEY = ["mixer", "seed"]
RUN = [*KEY, "size", "precision"]
OF_GRAPH = ("accuracy", "short", "long", "order", "matched", "deduced", "rise", "end", "start", "rotated")
OF_AXIS = ("rho", "rho_levels", "rho_loss", "rho_rotated", "rho_matched")


def of_graph(table: Table) -> Table:
    """A row for every run on the graph, by mixer and seed, of the main metric behind prompts.

    Its columns, beside size and precision:
        accuracy: of ID at the last evaluation;
        short, long: the mean of OOD short, or long, less that of ID, over the evaluations in the window;
        order: the smaller of ``long`` and ``short - long``, positive where all three are in order;
        matched: as short, against ID states of equal length;
        deduced: as short, against the facts of ID that are deduced, whose relations are those of OOD facts;
        rise: the highest evaluation of ID less the first;
        end: the last evaluation of ID less a Gaussian;
        start, rotated: before training, and in the window behind random rotations, the distance of all
            splits from a Gaussian, in standard deviations of one Gaussian vector.
    """
    rows = table[table["kind"] == "state"].reindex(columns=table.columns.union(["place", *RUN]))
    runs = rows[rows["place"] == PLACES[0]].groupby(RUN, sort=False)
    found = [dict(zip(RUN, key, strict=True)) | _of_run(run) for key, run in runs]
    return pandas.DataFrame(found, columns=[*RUN, *OF_GRAPH]).set_index(KEY)


def _of_run(run: Table) -> dict[str, float]:
    null = gaussian_null(int(run["width"].iloc[0]))[MAIN]
    low, high = (share * run["steps"] for share in WINDOW)
    middle = run[(run["step"] >= low) & (run["step"] <= high)].groupby("split").mean(numeric_only=True)
    learned = run[run["split"] == ID].sort_values("step")
    known = learned[MAIN]
    short, long = (middle[MAIN][split] - middle[MAIN][ID] for split in (SHORT, LONG))
    return {
        "accuracy": learned["accuracy"].iloc[-1],
        "short": short,
        "long": long,
        "order": min(long, short - long),
        "matched": middle["matched"][SHORT],
        "deduced": short + middle[MAIN][ID] - middle["deduced"][ID],
        "rise": known.max() - known.iloc[0],
        "end": known.iloc[-1] - null.mean,
        "start": (run.loc[run["step"] == 0, MAIN].mean() - null.mean) / null.std,
        "rotated": (middle["rotated"].mean() - null.mean) / null.std,
    }


def variant(effects: Table, *, size: int = 0, precision: int = 0) -> Table:
    """Runs of one size and precision: 0 is the first there is, which the claims are about, 1 the second."""
    for column, number in (("size", size), ("precision", precision)):
        values = [*dict.fromkeys(effects[column]), *[None] * 2]
        effects = effects[effects[column] == values[number]]
    return effects


def of_axes(table: Table) -> Table:
    """Correlations on each axis, behind the final norm, by mixer and seed."""
    rows = table[table["kind"] == "axis"].reindex(columns=[*KEY, "axis", "place", *OF_AXIS])
    return rows[rows["place"] == PLACES[0]].set_index(KEY)


def of_arms(table: Table) -> Table:
    """Every way to choose demonstrations, by mixer and seed."""
    columns = [*KEY, "arm", "accuracy", "gain", "low", "high", "rho"]
    return table[table["kind"] == "arm"].reindex(columns=columns).set_index(KEY)
