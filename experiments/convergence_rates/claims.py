"""What the paper's theory says, dimension by dimension, and why it says so."""

from __future__ import annotations

import numpy as np

from ..common.claims import Claim, Verdict, above, below, unanswered, within
from ..common.figures import label
from ..common.statistics import bootstrap, geometric_mean
from ..common.table import Table

SOURCE = "arXiv 2510.01450, propositions 2.1 and 2.2"
OURS = "asked by us, of the reason given there"
POWERS = {"lla": 4, "softmax": 3}
DIMS = (1, 2, 4)
TOLERANCE = 0.1  # of an exponent; within it, measured and claimed count as the same


def rate(power: int, dim: int) -> float:
    """The exponent of the number of keys, where the squared bias of bandwidth h is ``h^power``."""
    return -power / (dim + power)


def slopes(table: Table, region: str = "domain") -> Table:
    """Slopes of log error over log keys: a row a seed, columns ``(mixer, dim)``.

    The error is that in ``region``, with constants that were chosen for it.
    """
    part = table[(table["region"] == region) & (table["chosen_for"] == region)]
    logs = np.log(part.pivot(index="keys", columns=["mixer", "dim", "seed"], values="error"))
    fitted = logs.apply(lambda errors: np.polyfit(np.log(errors.index), errors, 1)[0])
    return fitted.unstack(["mixer", "dim"])


def boundary_ratios(table: Table) -> Table:
    """Error at the boundary over that in the interior, of one estimator: a column ``ratio``."""
    names = ["mixer", "dim", "keys", "seed"]
    wide = table[table["chosen_for"] == "domain"].pivot(index=names, columns="region", values="error")
    return (wide["boundary"] / wide["interior"]).rename("ratio").reset_index()


def _has_rate(mixer: str, dim: int):
    def judge(table: Table) -> Verdict:
        found = slopes(table)
        if (mixer, dim) not in found:
            return unanswered(f"the table has no {label(mixer)} in d = {dim}")
        claimed = rate(POWERS[mixer], dim)
        ends = sorted((claimed * (1 - TOLERANCE), claimed * (1 + TOLERANCE)))
        return within(bootstrap(found[mixer, dim]), *ends, "slope", f"the theory has {claimed:.3f}")

    return judge


def _falls_faster(dim: int):
    def judge(table: Table) -> Verdict:
        found = slopes(table)
        if ("lla", dim) not in found or ("softmax", dim) not in found:
            return unanswered(f"the table lacks LLA or softmax in d = {dim}")
        claimed = rate(POWERS["lla"], dim) - rate(POWERS["softmax"], dim)
        difference = bootstrap(found["lla", dim] - found["softmax", dim])
        detail = f"the theory has {claimed:.3f}"
        return below(difference, 0.0, "slope of LLA less that of softmax", detail)

    return judge


def _boundary(table: Table) -> Verdict:
    ratios = boundary_ratios(table).pivot(index=["seed", "dim", "keys"], columns="mixer", values="ratio")
    if not {"lla", "softmax"} <= set(ratios):
        return unanswered("the table lacks LLA or softmax")
    means = ratios.groupby("seed").agg(geometric_mean)
    of_softmax, of_lla = means["softmax"], means["lla"]
    detail = f"the ratio is {of_softmax.mean():.2f} for softmax and {of_lla.mean():.2f} for LLA"
    return above(bootstrap(of_softmax / of_lla), 1.0, "ratio of softmax over that of LLA", detail)


CLAIMS = (
    *(
        Claim(
            f"{mixer}_{dim}",
            f"In d = {dim} the error of {label(mixer)} falls as n^(-{power}/{dim + power}), the "
            f"exponent to within {TOLERANCE:.0%}.",
            SOURCE,
            _has_rate(mixer, dim),
        )
        for mixer, power in POWERS.items()
        for dim in DIMS
    ),
    *(
        Claim(
            f"faster_{dim}",
            f"In d = {dim} the error of LLA falls faster than that of softmax.",
            SOURCE,
            _falls_faster(dim),
        )
        for dim in DIMS
    ),
    Claim(
        "boundary",
        "The error at the boundary over that in the interior is larger for softmax than for LLA.",
        OURS,
        _boundary,
    ),
)
