"""What the paper says, put so that it can be wrong, before the first full run (README.md has the numbers)."""

from __future__ import annotations

from collections.abc import Callable

import pandas

from ..common.claims import Claim, Verdict, above, below, unanswered, within
from ..common.statistics import over_seeds
from ..common.table import Table
from . import effects
from .arms import LINES, SUBTASKS
from .domains import DOMAINS
from .study import MIXTURE

SOURCE = "arXiv 2601.18217"
OURS = "asked by us"
EQUAL = 0.03  # success rates: "unchanged"
COVERED = tuple(MIXTURE)
UNCOVERED = tuple(domain for domain in DOMAINS if domain not in MIXTURE)
MIDDLE = (0.5, 1.0, 2.0)  # doses at which transfer should rise
POINTS = "success out of domain"


def _by(numbers: pandas.Series, *names: str) -> str:
    means = numbers.groupby(list(names)).mean()
    return "; ".join(
        f"{' '.join(key if isinstance(key, tuple) else (key,))} {m:.3g}" for key, m in means.items()
    )


def _of_runs(rows: Table, column: str) -> pandas.Series:
    found = effects.runs(rows[rows["variant"] == "plain"])
    return found.set_index(effects.RUN)[column]


def _plain(column: str, unit: str):
    """A column of plain runs, which should be above 0."""

    def verdict(table: Table) -> Verdict:
        rows = effects.reported(table)
        if not effects.complete(rows):
            return unanswered("the table lacks plain arms in all worlds")
        found = _of_runs(rows, column)
        return above(over_seeds(found), 0.0, unit, _by(found, "init", "trained"))

    return verdict


def rank_correlation(a: pandas.Series, b: pandas.Series) -> float:
    """Spearman's; NaN where one side is constant."""
    if a.nunique() < 2 or b.nunique() < 2:
        return float("nan")
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def _predictors(table: Table) -> Verdict:
    """Correlations over four training worlds, of richness and length less that of similarity."""
    rows = effects.reported(table)
    if not effects.complete(rows) or not (table["kind"] == "domain").any():
        return unanswered("the table lacks plain arms in all worlds, or what the worlds are like")
    found = {}
    for key, part in effects.correlates(table).groupby([*effects.TRIAL, "init"]):
        better = -part["score"]
        found[key] = {n: rank_correlation(part[n], better) for n in ("richness", "length", "similarity")}
    rho = pandas.DataFrame(found).T.rename_axis([*effects.TRIAL, "init"]).dropna()
    if rho.empty:
        return unanswered("the ranking scores of the worlds are all equal")
    lead = (rho["richness"] + rho["length"]) / 2 - rho["similarity"]
    detail = "; ".join(f"{name} {mean:.3g}" for name, mean in rho.mean().items())
    unit = "mean rank correlation of richness and length with transfer, less that of similarity"
    return above(over_seeds(lead), 0.0, unit, detail)


def _abstract(table: Table) -> Verdict:
    rows = effects.reported(table)
    rows = rows[(rows["variant"] == "plain") & (rows["domain"] == "lab")]
    means = rows.groupby([*effects.TRIAL, "init", "trained"])["after"].mean().unstack("trained")
    wide = means.reindex(columns=["sokoban", "house"]).dropna()
    if wide.empty:
        return unanswered("the table lacks plain arms in sokoban and house")
    found = wide["sokoban"] - wide["house"]
    unit = "success in lab after sokoban less that after house"
    return above(over_seeds(found), 0.0, unit, _by(found, "init"))


def _augmented(table: Table) -> pandas.DataFrame:
    return effects.delta_ood(effects.reported(table), "augmented").set_index(["init", "trained", "seed"])


def _augmentation(table: Table) -> Verdict:
    found = _augmented(table)["delta_ood"].dropna()
    if found.empty:
        return unanswered("the table lacks augmented arms")
    unit = "share of initial policies and worlds with Delta_OOD above 0"
    detail = f"mean Delta_OOD {found.mean():+.1%}: {_by(100 * found, 'init', 'trained')} %"
    return above(over_seeds((found > 0).astype(float)), 0.5, unit, detail)


def _augmentation_gain(table: Table) -> Verdict:
    found = _augmented(table)["delta_id"]
    if found.empty:
        return unanswered("the table lacks augmented arms")
    unit = "Delta_ID of augmented arms less that of plain ones"
    return within(over_seeds(found), -EQUAL, EQUAL, unit, _by(found, "init", "trained"))


def _dose(column: str, judge: Callable[..., Verdict], doses: Callable[[float], bool], unit: str):
    """A column at some doses less that at none, held against 0."""

    def verdict(table: Table) -> Verdict:
        found = dose_curve(effects.reported(table))
        if found.empty:
            return unanswered("the table lacks doses of the augmentation")
        curve = found.set_index([*effects.TRIAL, "trained", "dose"])[column].unstack("dose")
        chosen = curve[[dose for dose in curve if doses(dose, max(curve))]].mean(axis=1)
        detail = "; ".join(f"dose {dose:g} {mean:.3g}" for dose, mean in curve.mean().items())
        return judge(over_seeds(chosen - curve[0.0]), 0.0, unit, detail)

    return verdict


def dose_curve(rows: Table) -> Table:
    """A row for each run from V1 with a dose, where there are several: what :func:`effects.runs` says, and
    ``dose``.
    """
    rows = rows[rows["dose"].notna() & (rows["init"] == "V1")]
    rows = rows[rows.groupby(["mixer", "trained"])["dose"].transform("nunique") > 2]
    doses = rows[[*effects.RUN, "dose"]].drop_duplicates()
    return effects.runs(rows).merge(doses, on=effects.RUN)


def _trade_off(tested: tuple[str, ...], judge: Callable[..., Verdict]):
    def verdict(table: Table) -> Verdict:
        wide = effects.trade_off(effects.reported(table), tested).dropna()
        if wide.empty:
            return unanswered("the table lacks plain arms of V1 or V2, or they never succeed")
        found = wide["V2"] - wide["V1"]
        unit = f"relative change in {', '.join(tested)} of V2 less that of V1"
        return judge(
            over_seeds(found), 0.0, unit, f"V1 {wide['V1'].mean():+.1%}, V2 {wide['V2'].mean():+.1%}"
        )

    return verdict


def _thinking(column: str, judge: Callable[..., Verdict], *bounds: float, unit: str):
    def verdict(table: Table) -> Verdict:
        found = effects.without_thinking(effects.reported(table, scratchpads=True)).dropna(subset=[column])
        if found.empty:
            return unanswered("the table lacks plain arms with and without a scratchpad")
        numbers = found.set_index(["init", "trained", "seed"])[column]
        return judge(over_seeds(numbers), *bounds, unit, _by(numbers, "init", "trained"))

    return verdict


def _matched(table: Table) -> Verdict:
    """The order of the training worlds at the end, and at the evaluations with equal in-domain gains."""
    rows = effects.reported(table)
    if not effects.complete(rows):
        return unanswered("the table lacks plain arms in all worlds")
    key, even = [*effects.TRIAL, "init"], effects.matched(table)
    at_end, at_equal = (
        effects.scores(part[part["variant"] == "plain"]).set_index([*key, "trained"])["score"]
        for part in (rows, even)
    )
    both = pandas.DataFrame({"end": at_end, "equal": at_equal}).reset_index()
    found = {k: rank_correlation(part["end"], part["equal"]) for k, part in both.groupby(key)}
    rho = pandas.Series(found).rename_axis(key).dropna()
    if rho.empty:
        return unanswered("the ranking scores of the worlds are all equal")
    spread = even[even["inside"]].groupby(key)["gain"].agg(lambda gains: gains.max() - gains.min()).mean()
    unit = "rank correlation of ranking scores at the end and at matched Delta_ID"
    return above(over_seeds(rho), 0.0, unit, f"Delta_ID is matched to {spread:.2g}")


def _factor(factor: str, levels: tuple[int, int]):
    """The main effect of a factor on the change out of domain, with the regression beside it."""

    def verdict(table: Table) -> Verdict:
        cells = factorial_cells(table)
        if cells.empty:
            return unanswered("the table lacks the factorial")
        means = cells.groupby([*effects.TRIAL, factor])["change"].mean().unstack(factor)
        found = means[levels[1]] - means[levels[0]]
        unit = f"change out of domain with {levels[1]} {factor} less that with {levels[0]}"
        return above(over_seeds(found), 0.0, unit, regression(cells))

    return verdict


def factorial_cells(table: Table) -> Table:
    """A row for each run of the factorial: ``lines``, ``subtasks``, ``gain``, and the ``change`` of the mean
    success out of domain.
    """
    rows = effects.reported(table)
    if "lines" not in rows:
        return pandas.DataFrame()
    rows = rows[rows["lines"].notna()]
    factors = rows[[*effects.RUN, "lines", "subtasks"]].drop_duplicates()
    return effects.runs(rows).merge(factors, on=effects.RUN).assign(change=lambda cells: -cells["tax"])


def regression(cells: Table) -> str:
    """Ordinary least squares of the change out of domain on lines, subtasks and Delta_ID, in words."""
    if len(cells) < 6:
        return "too few runs for a regression"
    import statsmodels.formula.api as smf

    fit = smf.ols("change ~ lines + subtasks + gain", data=cells).fit()
    ends = fit.conf_int()
    parts = (
        f"{n} {fit.params[n]:.3g} [{ends.loc[n, 0]:.3g}, {ends.loc[n, 1]:.3g}]" for n in fit.params.index[1:]
    )
    return f"regression: {', '.join(parts)}"


def _control(control: str):
    """Success out of domain with distractors less that of a control."""

    def verdict(table: Table) -> Verdict:
        found = effects.delta_ood(effects.reported(table), "augmented", against=control)
        if found.empty:
            return unanswered(f"the table lacks augmented arms or the control {control}")
        numbers = found.set_index(["init", "trained", "seed"])["points"]
        unit = f"{POINTS} with distractors less that of {control}"
        return above(over_seeds(numbers), 0.0, unit, _by(numbers, "trained"))

    return verdict


CLAIMS = (
    Claim(
        "1_gain",
        "1: reinforcement learning in one world raises the success in it.",
        f"{SOURCE}, Table 2",
        _plain("gain", "Delta_ID"),
    ),
    Claim(
        "1_tax",
        "1: and it lowers the mean success in the three others.",
        f"{SOURCE}, Table 2",
        _plain("tax", "success out of domain that is lost"),
    ),
    Claim(
        "2_predictors",
        "2: how well a world transfers follows its richness and planning complexity rather than the "
        "similarity of its texts to those of the others.",
        f"{SOURCE}; the control is ours",
        _predictors,
    ),
    Claim(
        "3_abstract",
        "3: Sokoban, unlike MiniLab in its texts, prepares for it better than MiniHouse does.",
        f"{SOURCE}, Table 2",
        _abstract,
    ),
    Claim(
        "4_augmentation",
        "4: distractors in training raise the success in other worlds, for most initial policies and worlds.",
        SOURCE,
        _augmentation,
    ),
    Claim(
        "4_unchanged",
        "4: and leave the gain in the own world as it was, to 0.03.",
        SOURCE,
        _augmentation_gain,
    ),
    Claim(
        "5_rise",
        "5: success in other worlds rises with the dose of distractors at first.",
        SOURCE,
        _dose("ood", above, lambda dose, most: dose in MIDDLE, f"{POINTS} at middle doses less that at none"),
    ),
    Claim(
        "5_fall",
        "5: at a large dose the gain in the own world falls.",
        SOURCE,
        _dose(
            "gain", below, lambda dose, most: dose == most, "Delta_ID at the largest dose less that at none"
        ),
    ),
    Claim(
        "6_covered",
        "6: behind supervised training on a mixture less is lost in the worlds that it covers.",
        f"{SOURCE}, Table 6",
        _trade_off(COVERED, above),
    ),
    Claim(
        "6_uncovered",
        "6: and more in the world that it does not cover.",
        f"{SOURCE}, Table 6",
        _trade_off(UNCOVERED, below),
    ),
    Claim(
        "7_gain",
        "7: without a scratchpad the gain in the own world is the same, to 0.03.",
        SOURCE,
        _thinking("delta_id", within, -EQUAL, EQUAL, unit="Delta_ID without a scratchpad less that with one"),
    ),
    Claim(
        "7_transfer",
        "7: without a scratchpad the success in other worlds is lower.",
        SOURCE,
        _thinking("delta_ood", below, 0.0, unit="Delta_OOD of leaving the scratchpad out"),
    ),
    Claim(
        "8_matched",
        "8: the order of the training worlds does not come from their gains: it stays where these are equal.",
        f"{SOURCE}, Table 4",
        _matched,
    ),
    Claim(
        "factorial_lines",
        "Distractors alone, all else equal, raise the success in other worlds.",
        OURS,
        _factor("lines", LINES),
    ),
    Claim(
        "factorial_subtasks",
        "And so do more subtasks.",
        OURS,
        _factor("subtasks", SUBTASKS),
    ),
    *(
        Claim(
            f"control_{control}",
            f"Success in other worlds is higher with distractors than {words}.",
            OURS,
            _control(control),
        )
        for control, words in (
            ("paraphrase", "with as many words that say the task again"),
            ("noise", "with as many random words"),
            ("longer", "with twice as much training"),
            ("higher_kl", "with ten times the weight of the KL"),
        )
    ),
)
