"""What the paper says of this experiment, and what our notes on it ask for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..common.claims import Claim, Verdict, above, below, by_mixer, unanswered, within
from ..common.statistics import exact, over_seeds
from ..common.table import Table

if TYPE_CHECKING:
    import pandas

SOURCE = "arXiv 2602.16198"
FOLLOW_UP = "arXiv 2610.04938"
OURS = "asked by us"
PILOT = "the threshold is ours, set behind a pilot"
FLOORS, BASES = 2.5, 5.0  # distances of the exact transform: floors at most, and times nearer than the base
REWARD, EXACT = 0.03, 1.5  # of full roll-outs: error of the probability, and distances of the exact transform
SLOPE = (-0.6, -0.4)
BIAS, SAME = 5.0, 0.05  # times the divergence of full roll-outs; relative difference with more candidates
ERRORS = 3  # standard errors that a reward has to rise by
ALIKE, POINTS = 0.1, 5.0  # relative difference of the Jacobian-free form, and that of its scores
ROUNDING = 1e-12


def samplers(table: Table, column: str, grid: str) -> Table:
    """One row a seed, one column a sampler, with the tilt ``exp(R / tau)``."""
    if "sampler" not in table:
        return table.iloc[:0]
    rows = table[(table["kind"] == "sampler") & (table["grid"] == grid) & table["rho"].isna()]
    return rows.pivot(index="seed", columns="sampler", values=column)


def acting(table: Table, column: str, critic: str) -> Table:
    """One row for each data set of the point mass, mixer and seed, one column an arm."""
    if "arm" not in table:
        return table.iloc[:0]
    rows = table[(table["kind"] == "offline") & (table["environment"] == "pointmass")]
    rows = rows[(rows["critic"] == critic) | (rows["arm"] == "base")]
    return rows.pivot(index=["quality", "mixer", "seed"], columns="arm", values=column)


def strings(table: Table, column: str) -> Table:
    """One row for each mixer and seed, one column a sampler."""
    if "sampler" not in table:
        return table.iloc[:0]
    rows = table[table["kind"] == "masked"]
    return rows.pivot(index=["mixer", "seed"], columns="sampler", values=column)


def _of(wide: Callable[[Table], Table], names: tuple[str, ...], effect, judge, *bounds, unit: str):
    """A judge of the effect of some columns of a wide table."""

    def verdict(table: Table) -> Verdict:
        found = wide(table).reindex(columns=list(names)).dropna()
        if found.empty:
            return unanswered(f"the table lacks {' or '.join(names)}")
        numbers = effect(*(found[name] for name in names))
        detail = by_mixer(numbers) if "mixer" in numbers.index.names else ""
        return judge(over_seeds(numbers), *bounds, unit, detail)

    return verdict


def _ratio(column: str, grid: str, name: str, other: str, judge, *bounds, what: str):
    unit = f"{what} of {name} over that of {other}"
    return _of(
        lambda t: samplers(t, column, grid), (name, other), lambda a, b: a / b, judge, *bounds, unit=unit
    )


def _less(wide, column: str, where: str, name: str, other: str, judge=above, *bounds, what: str):
    """The difference of two columns, above 0 if nothing else is said."""
    unit = f"{what} of {name} less that of {other}"
    table = (lambda t: wide(t, column, where)) if where else (lambda t: wide(t, column))
    return _of(table, (name, other), lambda a, b: a - b, judge, *(bounds or (0.0,)), unit=unit)


def _exact_floor(table: Table) -> Verdict:
    distance, floor = (samplers(table, column, "fine") for column in ("distance", "floor"))
    if "exact h" not in distance:
        return unanswered("the table lacks exact h")
    found = distance["exact h"] / floor["exact h"]
    return below(over_seeds(found), FLOORS, "distance over that of two draws of the target")


def _proto_reward(table: Table) -> Verdict:
    paid, target = (samplers(table, column, "coarse") for column in ("paid", "target_paid"))
    if "Proto" not in paid:
        return unanswered("the table lacks Proto")
    found = paid["Proto"] - target["Proto"]
    return within(over_seeds(found), -REWARD, REWARD, "probability of the reward less that of the target")


def _slope(table: Table) -> Verdict:
    rows = table[table["kind"] == "gradient"]
    if rows.empty:
        return unanswered("the table lacks gradients")
    found = rows.groupby("seed")[["candidates", "error"]].apply(
        lambda part: np.polyfit(np.log(part["candidates"]), np.log(part["error"]), 1)[0]
    )
    sigma = rows["sigma"].iloc[0]
    return within(over_seeds(found), *SLOPE, "slope of the logarithms", f"at sigma {sigma:.3f}")


def _practical_reward(table: Table) -> Verdict:
    paid, number = (samplers(table, column, "fine") for column in ("paid", "number"))
    if not {"Practical", "base"} <= set(paid):
        return unanswered("the table lacks Practical or the base")
    error = math.sqrt(0.5 / number["base"].iloc[0])  # of the difference of two shares, at most
    found = paid["Practical"] - paid["base"]
    return above(over_seeds(found), ERRORS * error, "probability of the reward less that of the base")


def _unmoved(names: tuple[str, ...]):
    def verdict(table: Table) -> Verdict:
        wide = samplers(table, "moved", "fine").reindex(columns=list(names)).dropna()
        if wide.empty:
            return unanswered(f"the table lacks {' or '.join(names)}")
        return below(exact(float(wide.max().max())), ROUNDING, "largest difference from the base")

    return verdict


def _counts(table: Table) -> Verdict:
    """Calls against their formulas; products have a bound alone."""
    if "sampler" not in table:
        return unanswered("the table lacks samplers")
    rows = table[(table["kind"] == "sampler") & table["rho"].isna()]
    practical = rows[rows["sampler"].isin(["Practical", "Practical, M=256"])]
    proto = rows[rows["sampler"].str.startswith("Proto")]
    if practical.empty or proto.empty:
        return unanswered("the table lacks Practical or Proto")
    steps = proto["steps"]
    rolled = steps + proto["candidates"] * steps * (steps - 1) / 2
    errors = [
        (practical["network_calls"] - practical["steps"]).abs().max(),
        (practical["products"] - practical["steps"]).clip(lower=0).max(),
        (proto["network_calls"] - rolled).abs().max(),
    ]
    return below(exact(float(max(errors))), ROUNDING, "largest difference from N and N + M N (N - 1) / 2")


def _rare(table: Table) -> Verdict:
    rows = table[(table["kind"] == "sampler")]
    if rows.empty or rows["rho"].isna().all():
        return unanswered("the table lacks rare events")
    rows = rows[rows["rho"].notna() & (rows["sampler"] == "Proto")]
    missed = (1 - rows.set_index(["seed", "rho"])["paid"]).unstack("rho")
    means = "; ".join(f"rho {rho:g}: {mean:.3g}" for rho, mean in missed.mean().items())
    found = missed[min(missed)] - missed[max(missed)]
    unit = "probability of no event at the smallest rho less that at the largest"
    return above(over_seeds(found), 0.0, unit, means)


def _quantised_moves(arm: str, judge: Callable[..., Verdict], worst: Callable):
    """How far an arm moves samples on the quantised critic, in the case that is least like the claim."""

    def verdict(table: Table) -> Verdict:
        wide = acting(table, "moved", "quantised")
        if arm not in wide:
            return unanswered(f"the table lacks {arm}")
        found: pandas.Series = wide[arm].dropna()
        return judge(exact(float(worst(found))), ROUNDING, "largest difference from plain samples")

    return verdict


CLAIMS = (
    Claim(
        "exact_floor",
        "With the exact h the distance to the tilted law is at most 2.5 times that of two draws of it.",
        f"{SOURCE}, section 3; {PILOT}",
        _exact_floor,
    ),
    Claim(
        "exact_base",
        "With the exact h samples are at least 5 times nearer to the tilted law than those of the base.",
        f"{SOURCE}, section 3; {PILOT}",
        _ratio("distance", "fine", "base", "exact h", above, BASES, what="distance"),
    ),
    Claim(
        "proto_reward",
        "Proto with 32 roll-outs has the reward's probability under the tilted law, to 0.03.",
        f"{SOURCE}, section 4; {PILOT}",
        _proto_reward,
    ),
    Claim(
        "proto_distance",
        "Its distance to the tilted law is at most 1.5 times that with the exact h.",
        f"{SOURCE}, section 4; {PILOT}",
        _ratio("distance", "coarse", "Proto", "exact h", below, EXACT, what="distance"),
    ),
    Claim(
        "slope",
        "At high noise the error of Proto's gradient falls with the root of the number of roll-outs.",
        OURS,
        _slope,
    ),
    Claim(
        "practical_reward",
        "Practical raises a reward that has no gradient, by three standard errors or more.",
        f"{SOURCE}, section 5",
        _practical_reward,
    ),
    Claim(
        "tfg_base",
        "Guidance by the gradient of that reward gives the base's samples.",
        OURS,
        _unmoved(("TFG",)),
    ),
    Claim(
        "bias",
        "At full strength Practical's modes diverge from the law more than 5 times as much as Proto's.",
        f"{OURS}; {PILOT}",
        _ratio("mode_kl", "coarse", "Practical", "Proto", above, BIAS, what="divergence"),
    ),
    Claim(
        "more_candidates",
        "More candidates do not cure it: with 256 the divergence is that with 32, to 5 %.",
        OURS,
        _ratio(
            "mode_kl",
            "fine",
            "Practical, M=256",
            "Practical",
            within,
            1 - SAME,
            1 + SAME,
            what="divergence",
        ),
    ),
    Claim(
        "free_law",
        "Without the Jacobian, Practical is as far from the law as with it, to 10 %.",
        OURS,
        _ratio(
            "distance",
            "fine",
            "Practical, no Jacobian",
            "Practical",
            within,
            1 - ALIKE,
            1 + ALIKE,
            what="distance",
        ),
    ),
    Claim(
        "counts",
        "Calls: Practical N, whatever M, with N products or fewer; Proto N + M N (N - 1) / 2.",
        f"{SOURCE}, section 4",
        _counts,
    ),
    Claim(
        "zero",
        "With gamma 0, or no step guided, the base's samples come out, bit for bit.",
        OURS,
        _unmoved(("Practical, gamma=0", "Practical, no steps")),
    ),
    Claim("rare", "Proto misses more of rare events.", f"{SOURCE}, limits of the theory", _rare),
    Claim(
        "best_base",
        "Point mass, smooth critic: the best of K samples scores higher than one.",
        OURS,
        _less(acting, "score", "smooth", "best", "base", what="score"),
    ),
    Claim(
        "doit_best",
        "Point mass, smooth critic: DOIT-Practical scores higher than the best of as many plain samples.",
        f"{SOURCE}, section 6",
        _less(acting, "score", "smooth", "practical", "best", what="score"),
    ),
    Claim(
        "doit_best_quantised",
        "The same on the quantised critic.",
        OURS,
        _less(acting, "score", "quantised", "practical", "best", what="score"),
    ),
    Claim(
        "free_score",
        "Without the Jacobian it scores the same on the quantised critic, to 5 points.",
        OURS,
        _less(acting, "score", "quantised", "free", "practical", within, -POINTS, POINTS, what="score"),
    ),
    Claim(
        "tfg_quantised",
        "On the quantised critic TFG leaves the samples as they are, bit for bit.",
        OURS,
        _quantised_moves("tfg", below, max),
    ),
    Claim(
        "doit_quantised",
        "There DOIT-Practical moves them.",
        f"{SOURCE}, section 1",
        _quantised_moves("practical", above, min),
    ),
    Claim(
        "doit_tfg",
        "There DOIT-Practical scores higher than TFG.",
        f"{SOURCE}, section 6",
        _less(acting, "score", "quantised", "practical", "tfg", what="score"),
    ),
    Claim(
        "strings_reward",
        "D-DOIT with 16 candidates raises the reward of strings over the base.",
        FOLLOW_UP,
        _less(strings, "paid", "", "D-DOIT, M=16", "base", what="reward"),
    ),
    Claim(
        "strings_law",
        "It is nearer to the tilted law than the base.",
        FOLLOW_UP,
        _less(strings, "distance", "", "base", "D-DOIT, M=16", what="total variation"),
    ),
    Claim(
        "strings_best",
        "It is nearer to the tilted law than the best of 16 samples.",
        OURS,
        _less(strings, "distance", "", "best of 16", "D-DOIT, M=16", what="total variation"),
    ),
)
