"""What the paper says of this experiment, and what our notes on it ask for."""

from __future__ import annotations

from collections.abc import Callable

from ..common.claims import Claim, Verdict, above, below, by_mixer, unanswered, within
from ..common.statistics import exact, over_seeds
from ..common.table import Table

SOURCE = "arXiv 2501.18858"
OURS = "asked by us"
EXACT = 1e-6  # error of an equality
ROUNDING = 1e-12  # by which an inequality between exact numbers may fail
MARGIN = 0.2  # of BRiTE over one round of rejection sampling, where coverage is short
EQUAL = 0.03  # accuracies: "matches", "no gap"
PLATEAU = 0.02
ERRORS = 3  # standard errors of a sampled bound


def arms(table: Table, task: str = "hard") -> Table:
    """The rows of the arms on a task."""
    return table[(table["kind"] == "arm") & (table["task"] == task)]


def values(table: Table, column: str, task: str = "hard") -> Table:
    """One row for each mixer and seed, one column an arm."""
    return arms(table, task).pivot(index=["mixer", "seed"], columns="arm", values=column)


def _difference(
    arm: str,
    other: str,
    judge: Callable[..., Verdict],
    *bounds: float,
    column: str = "accuracy",
    unit: str = "accuracy",
    task: str = "hard",
):
    """``column`` of an arm less that of another, held against the bounds of a judge."""

    def verdict(table: Table) -> Verdict:
        wide = values(table, column, task).reindex(columns=[arm, other]).dropna()
        if wide.empty:
            return unanswered(f"the table lacks {arm} or {other} on the {task} task")
        found = wide[arm] - wide[other]
        return judge(over_seeds(found), *bounds, f"{unit} of {arm} less that of {other}", by_mixer(found))

    return verdict


def _theory(column: str, judge: Callable[..., Verdict], bound: float, unit: str, **where: bool):
    """The worst of all instances, without an interval: exact numbers have no seeds to vary over."""

    def verdict(table: Table) -> Verdict:
        rows = table[table["kind"] == "theory"]
        for name, value in where.items():
            rows = rows[rows[name] == value]
        if rows.empty:
            return unanswered("the table lacks the theory")
        worst = float(rows[column].min() if judge is above else rows[column].max())
        return judge(exact(worst), bound, unit, f"the worst of {len(rows)} instances")

    return verdict


def _bound_rises(table: Table) -> Verdict:
    rows = table[(table["kind"] == "psi") & (table["task"] == "hard") & (table["arm"] == "psi")]
    if rows.empty:
        return unanswered("the table lacks psi on the hard task")
    runs = rows.sort_values("step").groupby(["mixer", "seed"])["elbo"]
    found = runs.last() - runs.first()
    return above(over_seeds(found), 0.0, "nats that the bound rises by", by_mixer(found))


def _bound_holds(table: Table) -> Verdict:
    rows = table[(table["kind"] == "psi") & (table["task"] == "hard")]
    if rows.empty:
        return unanswered("the table lacks psi on the hard task")
    excess = rows["elbo"] - ERRORS * rows["elbo_error"] - rows["evidence_high"]
    worst = excess.groupby([rows["mixer"], rows["seed"]]).max()
    loose = (rows["evidence_high"] - rows["evidence_low"]).max()
    unit = f"nats of the bound, less {ERRORS} standard errors, above the evidence, at most"
    return below(over_seeds(worst), 0.0, unit, f"the evidence is known to {loose:.2g} nats")


def _coverage_short(table: Table) -> Verdict:
    wide = values(table, "coverage")
    if "rs_1" not in wide:
        return unanswered("the table lacks rs_1 on the hard task")
    return below(over_seeds(wide["rs_1"]), 1.0, "share of problems with a right text", by_mixer(wide["rs_1"]))


def _coverage_falls(table: Table) -> Verdict:
    """The coverage at no or one unknown fact less that at more."""
    rows = table[(table["kind"] == "coverage") & (table["task"] == "hard") & (table["arm"] == "rs_1")]
    if rows.empty:
        return unanswered("the table lacks rs_1 on the hard task")
    rows = rows.assign(many=rows["unknown"] > 1, covered=rows["coverage"] * rows["problems"])
    sums = rows.groupby(["mixer", "seed", "many"])[["covered", "problems"]].sum()
    shares = (sums["covered"] / sums["problems"]).unstack("many").dropna()
    if len(shares.columns) < 2 or shares.empty:
        return unanswered("the table lacks problems with few or with many unknown facts")
    found = shares[False] - shares[True]
    unit = "coverage at no or one unknown fact less that at more"
    return above(over_seeds(found), 0.0, unit, by_mixer(found))


CLAIMS = (
    Claim(
        "lemma",
        "Lemma 3.1: log sum P = max_q E_q[log P - log q], with the optimum q ~ P.",
        f"{SOURCE}, Lemma 3.1",
        _theory("lemma_error", below, EXACT, "largest error"),
    ),
    Claim(
        "proposition",
        "Proposition 3.7: the best policy of the regularised MDP draws texts ~ exp(sum of rewards / beta).",
        f"{SOURCE}, Proposition 3.7",
        _theory("proposition_error", below, EXACT, "largest error of a probability"),
    ),
    Claim(
        "monotone",
        "With exact steps the objective L never falls.",
        f"{SOURCE}, Theorem D.3",
        _theory("smallest_gain", above, -ROUNDING, "smallest gain in a step"),
    ),
    Claim(
        "gain",
        "With exact steps L rises by KL(P_t+1 || P_t) in every step, or more.",
        f"{SOURCE}, Theorem D.3",
        _theory("smallest_slack", above, -ROUNDING, "smallest gain less the KL"),
    ),
    Claim(
        "sum",
        "The smallest KL(P_t+1 || P_t) of T steps is at most (L_T+1 - L_1) / T.",
        f"{SOURCE}, Theorem D.3",
        _theory("largest_sum", below, 1 + ROUNDING, "largest ratio of both sides"),
    ),
    Claim(
        "rate",
        "Where L is concave, L* - max L_t is at most KL(P* || P_1) / T after T steps.",
        f"{SOURCE}, Theorem 3.3",
        _theory("largest_rate", below, 1 + ROUNDING, "largest ratio of both sides", concave=True),
    ),
    Claim(
        "bound_rises",
        "In the psi-step the mean return, a lower bound of log P(y* | x), rises.",
        f"{SOURCE}, section 3",
        _bound_rises,
    ),
    Claim(
        "bound_holds",
        "It never exceeds log P(y* | x), by more than the error of sampling it.",
        f"{SOURCE}, Lemma 3.1",
        _bound_holds,
    ),
    Claim(
        "rejection",
        "Where coverage is short, BRiTE-theta is more accurate than one round of rejection sampling, by 0.2.",
        f"{SOURCE}, Tables 1 and 3; the margin is ours, of the toy",
        _difference("theta", "rs_1", above, MARGIN),
    ),
    Claim(
        "rounds",
        "BRiTE-theta is more accurate than three rounds of rejection sampling.",
        OURS,
        _difference("theta", "rs_3", above, 0.0),
    ),
    Claim(
        "human",
        "BRiTE-theta is at most 0.03 less accurate than training on human rationales.",
        f"{SOURCE}, Table 1",
        _difference("theta", "sft", above, -EQUAL),
    ),
    Claim(
        "true_share",
        "More rationales are true among those of Q than among those that rejection sampling keeps.",
        OURS,
        _difference("theta", "rs_1", above, 0.0, column="true_share", unit="share of true rationales"),
    ),
    Claim(
        "coverage",
        "Rejection sampling leaves problems without a right text.",
        f"{SOURCE}, Figure 3",
        _coverage_short,
    ),
    Claim(
        "coverage_falls",
        "It leaves more of them where more facts are unknown.",
        OURS,
        _coverage_falls,
    ),
    Claim(
        "loss",
        "The loss of supervised training ends lower on Q's data than on that of rejection sampling.",
        f"{SOURCE}, Figure 3",
        _difference("theta", "rs_1", below, 0.0, column="loss", unit="loss"),
    ),
    Claim(
        "second",
        "A second iteration is not worse than the first, by more than 0.02.",
        f"{SOURCE}, Table 3",
        _difference("theta_2", "theta", above, -PLATEAU),
    ),
    Claim(
        "dpo",
        "BRiTE-DPO is at least as accurate as iterative DPO.",
        f"{SOURCE}, Figure 2",
        _difference("brite_dpo", "dpo", above, 0.0),
    ),
    Claim(
        "ablation",
        "Where rejection sampling covers everything, it is as accurate as BRiTE-theta, to 0.03.",
        OURS,
        _difference("theta", "rs_1", within, -EQUAL, EQUAL, task="easy"),
    ),
)
