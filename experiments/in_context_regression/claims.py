"""What the paper says of this experiment, and what its reviewers asked."""

from __future__ import annotations

import numpy as np

from ..common.claims import Claim, Verdict, above, unanswered
from ..common.figures import label
from ..common.statistics import bootstrap, geometric_mean
from ..common.table import Table
from ..common.training import at_best_rate

SOURCE = "arXiv 2510.01450, in-context regression"
REVIEWS = "public reviews of arXiv 2510.01450"
OURS = "asked by us"
OTHERS = {  # whom LLA is compared with, and who says so
    "softmax": SOURCE,
    "mamba2": SOURCE,
    "gla": SOURCE,
    "hyena": SOURCE,
    "gated_deltanet": SOURCE,
    "mesanet": OURS,
}


def best(table: Table) -> Table:
    """The rows of each mixer at the learning rate that is best for the kind of data."""
    return at_best_rate(table, ["mixer", "target", "segment"], "error")


def totals(table: Table) -> Table:
    """Error over whole sequences of every mixer, target, segment length and seed, at the best rate."""
    names = ["mixer", "target", "segment", "seed", "learning_rate"]
    return best(table).groupby(names, as_index=False, sort=False)["error"].mean()


def _ratios(table: Table, target: str, other: str) -> Table:
    """Error of ``other`` over that of LLA: a row a seed, a column a segment length; empty without them."""
    found = totals(table)
    part = found[found["target"] == target]
    wide = part.pivot(index=["seed", "segment"], columns="mixer", values="error")
    wide = wide.reindex(columns=["lla", other]).dropna()
    return (wide[other] / wide["lla"]).unstack("segment")


def _lowest(other: str):
    """It is so at every segment length if it is where ``other`` comes closest to LLA."""

    def judge(table: Table) -> Verdict:
        ratios = _ratios(table, "linear", other)
        if ratios.empty:
            return unanswered(f"the table lacks LLA or {label(other)} on linear maps")
        means = ratios.agg(geometric_mean)
        closest = means.idxmin()
        detail = "; ".join(f"{mean:.3g} at S = {segment}" for segment, mean in means.items())
        unit = f"error of {label(other)} over that of LLA at S = {closest}, where it is least"
        return above(bootstrap(ratios[closest], geometric_mean), 1.0, unit, detail)

    return judge


def _gap(table: Table) -> Verdict:
    """The gap is a ratio of errors, as in the paper's comparison of dimensions."""
    found = [ratios for other in OTHERS if not (ratios := _ratios(table, "linear", other)).empty]
    if not found or len(found[0].columns) < 2:
        return unanswered("the table lacks LLA, another mixer or a second segment length")
    gaps = geometric_mean(np.stack(found))
    first, *_, last = found[0].columns
    ends = geometric_mean(gaps)
    detail = f"the others have {ends[0]:.3g} times the error of LLA at S = {first}, {ends[-1]:.3g} at {last}"
    unit = f"this ratio at S = {first} over that at {last}, geometric mean over mixers"
    return above(bootstrap(gaps[:, 0] / gaps[:, -1], geometric_mean), 1.0, unit, detail)


def _nonlinear(target: str):
    def judge(table: Table) -> Verdict:
        ratios = _ratios(table, target, "softmax")
        if ratios.empty:
            return unanswered(f"the table lacks LLA or softmax on {target} targets")
        segment = ratios.columns[-1]
        found = totals(table)
        means = found[found["target"] == target].groupby("mixer")["error"].mean()
        detail = f"the error is {means['lla']:.3g} for LLA and {means['softmax']:.3g} for softmax"
        unit = f"error of softmax over that of LLA at S = {segment}"
        return above(bootstrap(ratios[segment], geometric_mean), 1.0, unit, detail)

    return judge


CLAIMS = (
    *(
        Claim(
            other,
            f"LLA has a lower error than {label(other)} at every segment length S.",
            source,
            _lowest(other),
        )
        for other, source in OTHERS.items()
    ),
    Claim("gap", "The error of the others over that of LLA is larger for short segments.", SOURCE, _gap),
    Claim(
        "fourier",
        "Where the map is a random sum of waves, LLA has a lower error than softmax.",
        REVIEWS,
        _nonlinear("fourier"),
    ),
    Claim(
        "spline",
        "Where the map is a random cubic spline of projections, LLA has a lower error than softmax.",
        REVIEWS,
        _nonlinear("spline"),
    ),
)
