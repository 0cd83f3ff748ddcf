"""What the paper's theory says of these interactions, and what our notes on it ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..common.claims import Claim, Verdict, above, below, by_mixer, unanswered, within
from ..common.statistics import bootstrap, geometric_mean, over_seeds
from ..common.table import Table
from .linear import DELTA

SOURCE = "arXiv 2506.09940"
THEOREM = f"{SOURCE}, theorem 5.4"
OURS = "asked by us"
FROM, EARLY = 2048, 128  # episodes from which slopes are fitted; the second is reported beside
LEAST_POINTS = 3  # of a fit
RATE, SLACK = -0.5, 0.1  # of the theory, and how far from it counts as the same
PLATEAU = -0.15  # a slope above is none
ROOT = (0.25, 0.75)  # slopes that count as a square root
SCORES = (0.8, 1.2)  # standard errors, root mean square: where a mean is zero it is 1
SURE = 1 - 1e-9  # a share of 1
WHERE = ["case", "method", "seed"]


def part(table: Table, name: str) -> Table:
    """The rows of a part of the experiment."""
    return table[table["part"] == name]


def slopes(rows: Table, column: str, by: Sequence[str], since: int = FROM):
    """Slopes of the logarithm of a column over that of episodes, a series with ``by`` as its index.

    Groups with fewer than three numbers of episodes from ``since`` on, or with a zero among them, have none.
    """
    late = rows[rows["episodes"] >= since].dropna(subset=[column])

    def fit(group: Table) -> float:
        if len(group) < LEAST_POINTS or not (group[column] > 0).all():
            return np.nan
        return float(np.polyfit(np.log(group["episodes"]), np.log(group[column]), 1)[0])

    return late.groupby(list(by))[["episodes", column]].apply(fit).astype(float).dropna()


def linear_slopes(table: Table, column: str = "value_error", since: int = FROM):
    """Slopes of the linear interaction by case, method and seed."""
    rows = part(table, "linear")
    return slopes(rows[~rows["case"].str.startswith("hard")], column, WHERE, since)


def worst_gaps(table: Table, column: str) -> Table:
    """The largest of a column over the gaps, with the ``gap`` that has it: a row a method, seed and number
    of episodes.
    """
    rows = part(table, "gaps")
    found = rows.loc[rows.groupby(["method", "seed", "episodes"])[column].idxmax()]
    return found[["method", "seed", "episodes", "gap", column]]


def hard_slopes(table: Table):
    """By seed, the slopes of the log error over the logs of ill-posedness times transfer multiplier, of both
    in one regression, and of each alone: columns ``product``, ``ill_posedness``, ``transfer``.
    """
    import pandas

    rows = part(table, "linear")
    rows = rows[rows["case"].str.startswith("hard") & (rows["method"] == "opme")]
    found = {}
    for seed, group in rows.groupby("seed"):
        tau, transfer, error = np.log(group[["ill_posedness", "transfer", "value_error"]].to_numpy().T)
        both = np.stack([np.ones_like(tau), tau, transfer], 1)
        separate = np.linalg.lstsq(both, error, rcond=None)[0]
        found[seed] = (np.polyfit(tau + transfer, error, 1)[0], separate[1], separate[2])
    names = ["product", "ill_posedness", "transfer"]
    index = pandas.Index(list(found), name="seed")
    return pandas.DataFrame(list(found.values()), index=index, columns=names)


def last_forms(table: Table):
    """Errors of the reward transformers behind the last round: columns ``(method, head)``."""
    rows = part(table, "forms")
    rows = rows[rows["episodes"] == rows["episodes"].max()]
    return rows.pivot(index=["mixer", "seed"], columns=["method", "head"], values="value_error")


# ---- judges -----------------------------------------------------------------------------------------


def _moment(column: str, judge: Callable[..., Verdict], *bounds: float, unit: str):
    def verdict(table: Table) -> Verdict:
        rows = part(table, "moments")
        return judge(bootstrap(rows[column]), *bounds, unit) if len(rows) else unanswered("no moments")

    return verdict


def _slope(
    method: str,
    judge: Callable[..., Verdict],
    *bounds: float,
    case: str = "main",
):
    """The slope from 2048 episodes on; in the detail that from 128 on, and that of plain means."""

    def verdict(table: Table) -> Verdict:
        found = linear_slopes(table)
        if (case, method) not in found.index:
            return unanswered(f"the table lacks {method} in {case} with {LEAST_POINTS} numbers of episodes")
        early = bootstrap(linear_slopes(table, since=EARLY)[case, method])
        plain = bootstrap(linear_slopes(table, "value_error_mean")[case, method])
        detail = f"{early} from {EARLY} episodes on; {plain} with plain means over instances"
        return judge(bootstrap(found[case, method]), *bounds, "slope", detail)

    return verdict


def _worst_gap(column: str):
    def verdict(table: Table) -> Verdict:
        worst = worst_gaps(table, column)
        found, early = (slopes(worst, column, ["method", "seed"], since) for since in (FROM, EARLY))
        if "opme" not in found.index:
            return unanswered(f"the table lacks gaps with {LEAST_POINTS} numbers of episodes")
        others = ", ".join(f"{name} {found[name].mean():.2f}" for name in ("ols", "direct") if name in found)
        detail = f"{bootstrap(early['opme'])} from {EARLY} episodes on; {others}"
        return within(bootstrap(found["opme"]), RATE - SLACK, RATE + SLACK, "slope", detail)

    return verdict


def _lower_variance(table: Table) -> Verdict:
    rows = part(table, "linear")
    rows = rows[(rows["case"] == "unconfounded") & (rows["episodes"] == rows["episodes"].max())]
    wide = rows.pivot(index="seed", columns="method", values="value_error")
    if wide.empty:
        return unanswered("the table lacks the case without confounding")
    ratio = bootstrap(wide["ols"] / wide["opme"], geometric_mean)
    return below(ratio, 1.0, "error of OLS over that of OPME at the most episodes")


def _harder(column: str):
    def verdict(table: Table) -> Verdict:
        found = hard_slopes(table)
        if found.empty:
            return unanswered("the table lacks instances of growing hardness")
        unit = f"slope of log error over log {column}, the other held fast"
        return above(bootstrap(found[column]), 0.0, unit)

    return verdict


def _root(table: Table) -> Verdict:
    found = hard_slopes(table)
    if found.empty:
        return unanswered("the table lacks instances of growing hardness")
    return within(bootstrap(found["product"]), *ROOT, "slope of log error over log (tau C)")


def _share(name: str, column: str, least: float, unit: str):
    """The share of OPME's runs in which something held up to the end."""

    def verdict(table: Table) -> Verdict:
        rows = part(table, name)
        if name == "linear":
            rows = rows[rows["case"] == "main"]
        rows = rows[(rows["method"] == "opme") & (rows["episodes"] == rows["episodes"].max())]
        if rows.empty:
            return unanswered(f"the table lacks OPME in the {name} interaction")
        return above(bootstrap(rows.groupby("seed")[column].mean()), least, unit)

    return verdict


def _adaptive(table: Table) -> Verdict:
    found = linear_slopes(table)
    if ("main", "opme") not in found.index or ("main", "uniform") not in found.index:
        return unanswered("the table lacks OPME or uniform data")
    difference = bootstrap(found["main", "opme"] - found["main", "uniform"])
    detail = f"uniform data alone has {bootstrap(found['main', 'uniform'])}"
    return within(difference, -SLACK, SLACK, "slope of OPME less that with uniform data", detail)


def _finite_better(other: str):
    def verdict(table: Table) -> Verdict:
        rows = part(table, "finite")
        rows = rows[rows["episodes"] == rows["episodes"].max()]
        means = rows.pivot_table(index="seed", columns="method", values="mixture")
        if means.empty:
            return unanswered("the table lacks the finite class")
        detail = ", ".join(f"{name} {means[name].mean():.2g}" for name in means)
        unit = f"suboptimality of the mixture of OPME less that of {other}"
        return below(bootstrap(means["opme"] - means[other]), 0.0, unit, detail)

    return verdict


def _forms_ratio(above_: tuple[str, str], below_: tuple[str, str], unit: str):
    """The ratio of two errors behind the last round."""

    def verdict(table: Table) -> Verdict:
        found = last_forms(table)
        if found.empty:
            return unanswered("the table lacks reward transformers")
        ratio = found[above_] / found[below_]
        return below(over_seeds(ratio, geometric_mean), 1.0, unit, by_mixer(ratio))

    return verdict


def _forms_fall(table: Table) -> Verdict:
    rows = part(table, "forms")
    rows = rows[(rows["method"] == "opme") & (rows["head"] == "2sls")]
    if rows.empty:
        return unanswered("the table lacks reward transformers")
    wide = rows.pivot(index=["mixer", "seed"], columns="episodes", values="value_error")
    ratio = wide[wide.columns.max()] / wide[wide.columns.min()]
    unit = "error behind the last round over that behind the first"
    return below(over_seeds(ratio, geometric_mean), 1.0, unit, by_mixer(ratio))


CLAIMS = (
    Claim(
        "moment_zero",
        "The noise of rewards has mean zero given (s, a) in the source population.",
        f"{SOURCE}, section 3; by construction",
        _moment("noise_mean", within, *SCORES, unit="means by cell in standard errors, root mean square"),
    ),
    Claim(
        "endogenous",
        "It goes with the feedback all the same.",
        f"{SOURCE}, section 3; by construction",
        _moment("correlation", above, 0.1, unit="correlation of noise and feedback given (s, a)"),
    ),
    Claim(
        "rate",
        "The error of OPME's values falls as K^(-1/2), the exponent to within 0.1.",
        THEOREM,
        _slope("opme", within, RATE - SLACK, RATE + SLACK),
    ),
    Claim(
        "ols_stalls",
        "The error of least squares on the feedback does not fall, though it transports.",
        SOURCE,
        _slope("ols", above, PLATEAU),
    ),
    Claim(
        "no_transport_stalls",
        "The error of OPME's estimate does not fall where it is not transported.",
        SOURCE,
        _slope("no_transport", above, PLATEAU),
    ),
    Claim(
        "direct_stalls",
        "The error of direct regression on (s, a) does not fall.",
        SOURCE,
        _slope("direct", above, PLATEAU),
    ),
    Claim(
        "worst_mixture",
        "Over the gaps, the largest suboptimality of OPME's mixture of policies falls as K^(-1/2), to 0.1.",
        THEOREM,
        _worst_gap("mixture"),
    ),
    Claim(
        "worst_greedy",
        "So does that of the policy that its estimate prefers.",
        THEOREM,
        _worst_gap("greedy"),
    ),
    Claim(
        "unconfounded",
        "Without confounding the error of least squares falls as K^(-1/2), to 0.1.",
        OURS,
        _slope("ols", within, RATE - SLACK, RATE + SLACK, case="unconfounded"),
    ),
    Claim(
        "lower_variance",
        "Without confounding least squares has a lower error than OPME.",
        OURS,
        _lower_variance,
    ),
    Claim(
        "same_population",
        "If both populations are the same, direct regression on uniform data falls as K^(-1/2), to 0.1.",
        OURS,
        _slope("direct_uniform", within, RATE - SLACK, RATE + SLACK, case="same_population"),
    ),
    Claim(
        "ill_posedness",
        "At a fixed number of episodes the error grows with ill-posedness.",
        THEOREM,
        _harder("ill_posedness"),
    ),
    Claim(
        "transfer",
        "It grows with the transfer multiplier.",
        THEOREM,
        _harder("transfer"),
    ),
    Claim(
        "root",
        "It grows as the square root of the product of both, the exponent between 0.25 and 0.75.",
        f"{THEOREM}, an upper bound; the band is ours",
        _root,
    ),
    Claim(
        "coverage",
        "The truth is in all confidence sets of a run with probability 0.9 or more.",
        f"{SOURCE}; the radius is ours",
        _share("linear", "covered", 1 - DELTA, "share of runs, linear interaction"),
    ),
    Claim(
        "optimism",
        "As long as it is, the largest value in the set is at least the true optimum.",
        SOURCE,
        _share("linear", "optimistic", SURE, "share of runs, linear interaction"),
    ),
    Claim(
        "finite_coverage",
        "With three steps and a finite class the truth survives with probability 0.9 or more.",
        f"{SOURCE}; the radius is ours",
        _share("finite", "covered", 1 - DELTA, "share of runs, finite class"),
    ),
    Claim(
        "finite_optimism",
        "As long as it does, the largest value among the survivors is at least the true optimum.",
        SOURCE,
        _share("finite", "optimistic", SURE, "share of runs, finite class"),
    ),
    Claim(
        "finite_regression",
        "With a finite class OPME's mixture ends closer to the optimum than that of regression.",
        OURS,
        _finite_better("regression"),
    ),
    Claim(
        "finite_transport",
        "It ends closer than that of the same sets where policies are planned for the source population.",
        OURS,
        _finite_better("no_transport"),
    ),
    Claim(
        "context_free",
        "Without contexts the error of OPME does not fall.",
        OURS,
        _slope("opme", above, PLATEAU, case="context_free"),
    ),
    Claim(
        "adaptive",
        "Data that OPME gathers gives the same slope as uniform data, to 0.1.",
        f"{SOURCE}: data need not be independent",
        _adaptive,
    ),
    Claim(
        "forms",
        "A reward transformer has a lower error in the target population by the minimax loss than by "
        "regression.",
        OURS,
        _forms_ratio(("opme", "2sls"), ("regression", "ols"), "error of minimax over that of regression"),
    ),
    Claim(
        "forms_head",
        "On the features of the transformer that regression trains, a head by two-stage least squares has "
        "a lower error than one by least squares.",
        OURS,
        _forms_ratio(
            ("regression", "2sls"), ("regression", "ols"), "error of the head by 2SLS over that by OLS"
        ),
    ),
    Claim(
        "forms_loss",
        "With such heads on both, features of the minimax loss have a lower error than those of regression.",
        OURS,
        _forms_ratio(
            ("opme", "2sls"), ("regression", "2sls"), "error with minimax features over regression features"
        ),
    ),
    Claim(
        "forms_fall",
        "The error of the minimax transformer falls from the first round to the last.",
        OURS,
        _forms_fall,
    ),
)
