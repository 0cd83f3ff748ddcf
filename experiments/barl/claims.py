"""What the paper says of this experiment, and what our notes on it ask for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas

from ..common.claims import Claim, Verdict, above, below, by_mixer, unanswered, within
from ..common.statistics import exact, geometric_mean, over_seeds
from ..common.table import Table
from .objectives import barl_name

SOURCE = "arXiv 2505.20561"
OURS = "asked by us"
BARL, WIDE, BLIND = barl_name(3, 5), barl_name(27, 5), barl_name(3, 0)
ADAPTIVE = 0.9  # success of BARL on the unseen prompt, and its Bayes value, at least
NEAR_FLOOR = 0.1  # of REINFORCE over the floor there, at most
FAST = 0.9  # success that learning is timed to
EQUAL = 0.1  # successes: "equals"
WEAK = 0.3  # correlation, the usual limit of a weak one
EXACT = 1e-6  # error of an equality


def prompts(table: Table, *, unseen: bool | None = None) -> Table:
    """Rows of the last test on triplets, of the prompt that was kept for it, of the others, or of all."""
    rows = table[table["kind"] == "prompt"]
    return rows if unseen is None else rows[rows["unseen"].astype(bool) == unseen]


def by_arm(table: Table, column: str, *, unseen: bool | None = None) -> Table:
    """Means over prompts: one row for each mixer and seed, one column an arm."""
    rows = prompts(table, unseen=unseen)
    return rows.pivot_table(index=["mixer", "seed"], columns="arm", values=column)


def reached(table: Table, share: float = FAST) -> pandas.Series:
    """Updates until the success on seen prompts was first measured at ``share``, by mixer, seed and arm.

    A run that never was counts as the last measurement and the time between two of them.
    """
    rows = table[table["kind"] == "curve"].sort_values("step")

    def first(run: Table) -> float:
        fast = run.loc[run["seen"] >= share, "step"]
        return float(fast.iloc[0] if len(fast) else run["step"].iloc[-1] + run["every"].iloc[-1])

    return pandas.Series(
        {key: first(run) for key, run in rows.groupby(["mixer", "seed", "arm"])}, dtype=float
    )


def correlation(rows: Table) -> float:
    """Of switches and success over the texts of all rows, which have equally many; 0 if one of them is the
    same in all texts.
    """
    mean, variance = rows["switches"], rows["switch_variance"]
    chance = rows["success"]
    between = ((mean - mean.mean()) * (chance - chance.mean())).mean()
    spread = (variance + np.square(mean - mean.mean())).mean() * chance.mean() * (1 - chance.mean())
    return float((rows["switch_success"].mean() + between) / np.sqrt(spread)) if spread > 0 else 0.0


def tokens_needed(table: Table) -> Table:
    """Tokens that the arms of sums need for the same share of passed problems, in as many tries as it takes.

    The share is the largest that all arms reach. Between two numbers of tries the logarithm of tokens is
    linear in the share; an arm that exceeds it with one try counts with the tokens of that.

    Returns:
        One row for each mixer and seed, one column an arm.
    """
    found = {}
    for key, rows in table[table["kind"] == "pass"].groupby(["mixer", "seed"]):
        curves = {arm: run.sort_values("k") for arm, run in rows.groupby("arm") if arm != "base"}
        share = min(run["passed"].iloc[-1] for run in curves.values())
        found[key] = {
            arm: float(np.exp(np.interp(share, run["passed"], np.log(run["tokens"]))))
            for arm, run in curves.items()
        }
    return pandas.DataFrame.from_dict(found, orient="index")


def _judged(numbers: pandas.Series, judge: Callable[..., Verdict], *bounds_and_unit) -> Verdict:
    return judge(over_seeds(numbers), *bounds_and_unit, by_mixer(numbers))


def _lacking(wide: Table, *arms: str) -> Verdict | None:
    """An answer if the table does not have these arms of the triplets."""
    missing = [arm for arm in arms if arm not in wide or wide[arm].dropna().empty]
    return unanswered(f"the table lacks {' and '.join(missing)}") if missing else None


def _floor(table: Table, column: str = "success") -> float:
    rows = table[table["kind"] == "floor"]
    return float(rows[column].iloc[0]) if len(rows) else float("nan")


def _barl_adapts(table: Table) -> Verdict:
    wide = by_arm(table, "success", unseen=True)
    return _lacking(wide, BARL) or _judged(wide[BARL], above, ADAPTIVE, "success on the unseen prompt")


def _barl_tries_all(table: Table) -> Verdict:
    wide = by_arm(table, "bayes_value")
    return _lacking(wide, BARL) or _judged(wide[BARL], above, ADAPTIVE, "Bayes value, mean over prompts")


def _reinforce_does_not(table: Table) -> Verdict:
    wide, floor = by_arm(table, "success", unseen=True), _floor(table)
    if np.isnan(floor):
        return unanswered("the table lacks the floor")
    unit = f"success on the unseen prompt over that of random tokens, {floor:.3f}"
    return _lacking(wide, "reinforce") or _judged(wide["reinforce"] - floor, below, NEAR_FLOOR, unit)


def _smaller_is_faster(table: Table) -> Verdict:
    wide = reached(table)
    wide = wide.rename_axis(["mixer", "seed", "arm"]).unstack("arm") if len(wide) else pandas.DataFrame()
    if lacking := _lacking(wide, BARL, WIDE):
        return lacking
    found = (wide[WIDE] - wide[BARL]).dropna()
    return _judged(found, above, 0.0, f"updates to {FAST:.0%} that 27 hypotheses need more than 3")


def _beta_saves_tests(table: Table) -> Verdict:
    wide = by_arm(table, "retests")
    if lacking := _lacking(wide, BARL, BLIND):
        return lacking
    found = (wide[BARL] - wide[BLIND]).dropna()
    return _judged(found, below, 0.0, "re-tests an episode at beta 5 less those at beta 0")


def _blind_collapses(table: Table) -> Verdict:
    wide, floor = by_arm(table, "success", unseen=False), _floor(table)
    if np.isnan(floor):
        return unanswered("the table lacks the floor")
    if lacking := _lacking(wide, BLIND):
        return lacking
    unit = f"success on seen prompts at beta 0 over that of random tokens, {floor:.3f}"
    return _judged(wide[BLIND].dropna() - floor, below, 0.0, unit)


def _meta_equals(table: Table) -> Verdict:
    wide = by_arm(table, "success", unseen=True)
    if lacking := _lacking(wide, BARL, "meta"):
        return lacking
    found = (wide[BARL] - wide["meta"]).dropna()
    return _judged(found, within, -EQUAL, EQUAL, "success of BARL on the unseen prompt less that of meta-RL")


def _ratio_grows(table: Table) -> Verdict:
    rows = table[(table["kind"] == "tree") & (table["children"] == 2)].sort_values("depth")
    if len(rows) < 2:
        return unanswered("the table lacks trees of two depths")
    ratios = (rows["adaptive"] / rows["stochastic"]).to_numpy()
    least = float((ratios[1:] / ratios[:-1]).min())
    surely = float((rows["adaptive"] / rows["bound"]).iloc[-1])
    detail = (
        f"{ratios[-1]:.3g} at depth {rows['depth'].iloc[-1]:.0f}, and at least {surely:.3g} against any "
        "memoryless policy; exact"
    )
    return above(exact(least), 1.0, "least factor of the ratio for one level more", detail)


def _gradient(table: Table, unit: str, limit: float, worst: Callable[[Table], pandas.Series]) -> Verdict:
    """The worst of all instances, without an interval: exact numbers have no seeds to vary over."""
    rows = table[table["kind"] == "gradient"]
    if rows.empty:
        return unanswered("the table lacks the gradients")
    found = float(worst(rows).max())
    return below(exact(found), limit, unit, f"the worst of {len(rows)} random policies")


def _equal_means(table: Table) -> Verdict:
    columns = ["barl_error", "reinforce_error"]
    return _gradient(table, "largest error of a gradient", EXACT, lambda rows: rows[columns].max(axis=1))


def _less_variance(table: Table) -> Verdict:
    return _gradient(
        table,
        "largest ratio of variances",
        1.0,
        lambda rows: rows["barl_variance"] / rows["reinforce_variance"],
    )


def _same_conditions(table: Table) -> Verdict:
    rows = prompts(table)
    if rows.empty:
        return unanswered("the table lacks triplets")
    columns = ["parameters", "dim", "depth", "heads", "episodes", "updates", "learning_rate", "horizon"]
    spread = rows.groupby("mixer")[columns].agg(lambda x: x.max() - x.min()).to_numpy().max()
    detail = f"{', '.join(columns)} of {rows['arm'].nunique()} arms"
    return within(exact(spread), 0.0, 0.0, "largest difference within a mixer", detail)


def _fewer_tokens(other: str, name: str):
    def verdict(table: Table) -> Verdict:
        wide = tokens_needed(table)
        if not {other, "answer_barl"} <= set(wide):
            return unanswered("the table lacks sums, which are for a large GPU")
        ratios = (wide[other] / wide["answer_barl"]).rename_axis(["mixer", "seed"])
        unit = f"tokens of {name} over those of BARL at equal accuracy"
        return above(over_seeds(ratios, geometric_mean), 1.0, unit, by_mixer(ratios))

    return verdict


def _weak_correlation(rows: Table, what: str) -> Verdict:
    """Over the arms of each mixer that has all of them."""
    arms = rows.groupby("mixer")["arm"].nunique()
    rows = rows[rows["mixer"].isin(arms[arms == arms.max()].index)]
    if rows.empty:
        return unanswered(f"the table lacks {what}")
    found = {key: correlation(run) for key, run in rows.groupby(["mixer", "seed"])}
    found = pandas.Series(found).rename_axis(["mixer", "seed"])
    unit = f"correlation of {what} with success, texts of {int(arms.max())} policies together"
    return _judged(found, within, -WEAK, WEAK, unit)


def _switches(table: Table) -> Verdict:
    return _weak_correlation(prompts(table, unseen=True), "switches")


def _waits(table: Table) -> Verdict:
    return _weak_correlation(table[table["kind"] == "answers"], "corrections")


CLAIMS = (
    Claim(
        "adapts",
        "1. BARL with 3 hypotheses succeeds on the unseen prompt in 90 % of the episodes or more.",
        f"{SOURCE}, synthetic task",
        _barl_adapts,
    ),
    Claim(
        "tries_all",
        "1. And that is because it tries all: nine of ten repeats, or more, are in its texts of 29 tokens.",
        OURS,
        _barl_tries_all,
    ),
    Claim(
        "memorises",
        "1. REINFORCE is there at most 0.1 above random tokens.",
        f"{SOURCE}, synthetic task",
        _reinforce_does_not,
    ),
    Claim(
        "prior",
        "2. With 3 hypotheses BARL reaches 90 % in fewer updates than with 27.",
        f"{SOURCE}, synthetic task",
        _smaller_is_faster,
    ),
    Claim(
        "retests",
        "3. With beta 5 refuted hypotheses are tried less often than with 0.",
        OURS,
        _beta_saves_tests,
    ),
    Claim(
        "collapse",
        "3. With beta 0, BARL succeeds less often than random tokens on the prompts that it trains on.",
        OURS,
        _blind_collapses,
    ),
    Claim(
        "ratio",
        "4. The return of the best adaptive policy over that of a memoryless one grows with every level.",
        f"{SOURCE}, Theorem 4.3",
        _ratio_grows,
    ),
    Claim(
        "mean",
        "5. With beta 0 and hypotheses that pay once, BARL's gradient is in the mean that of the Bayes "
        "objective, and so is that of REINFORCE with M drawn from the prior.",
        OURS,
        _equal_means,
    ),
    Claim("variance", "5. BARL's has the lower variance.", OURS, _less_variance),
    Claim("same", "6. Arms differ in their objective alone.", OURS, _same_conditions),
    Claim(
        "meta",
        "6. Meta-RL, REINFORCE with targets from the same prior, equals BARL on the unseen prompt, to 0.1.",
        OURS,
        _meta_equals,
    ),
    Claim(
        "tokens_grpo",
        "7. On sums BARL needs fewer tokens than GRPO for the same accuracy.",
        f"{SOURCE}, token efficiency",
        _fewer_tokens("grpo", "GRPO"),
    ),
    Claim(
        "tokens_progress",
        "7. And fewer than the progress reward.",
        f"{SOURCE}, token efficiency",
        _fewer_tokens("answer_progress", "the progress reward"),
    ),
    Claim(
        "switches",
        "8. How often a policy switches hypotheses does not by itself predict success.",
        f"{SOURCE}, frequency of reflections",
        _switches,
    ),
    Claim(
        "waits",
        "8. Nor does how often it corrects itself on sums.",
        f"{SOURCE}, frequency of reflections",
        _waits,
    ),
)
