"""From results to a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from .. import figures
from ..claims import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED, Verdict
from ..experiment import Experiment
from ..table import as_text
from .parts import Grid, Part

if TYPE_CHECKING:
    from ..table import Table

NAMED = {"mixer", "method"}  # columns whose cells are names of mixers
NOT_TESTED = "not tested"  # in the page only: inconclusive, since the table lacks what the claim is about
OUTCOMES = (SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE, NOT_TESTED)


@dataclass(frozen=True)
class Section:
    """One experiment with the table that it is judged by.

    Attributes:
        experiment: the experiment.
        table: its rows; None if there are no results yet.
        command: how they were made.
    """

    experiment: Experiment
    table: Table | None
    command: str


def render(
    sections: Sequence[Section], accuracy: Sequence[Part] = (), benchmarks: Sequence[Part] = ()
) -> str:
    """The page, as HTML that needs nothing else."""
    import jinja2

    template = files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    judged = [_values(section) for section in sections]
    return environment.from_string(template).render(
        sections=judged,
        tally=_tally(outcome for values in judged for outcome, _, _ in values["verdicts"]),
        accuracy=accuracy,
        benchmarks=benchmarks,
    )


def _values(section: Section) -> dict[str, Any]:
    """What the template shows of a section."""
    experiment, table = section.experiment, section.table
    values = {"experiment": experiment, "command": section.command}
    if table is None:
        return {**values, "verdicts": [(NOT_TESTED, claim, None) for claim in experiment.claims]}
    verdicts = [(claim, claim.judge(table)) for claim in experiment.claims]
    summary = experiment.summary(table)
    for column in NAMED.intersection(summary):
        summary[column] = summary[column].map(figures.label)
    grid = Grid(f"Results of {experiment.title}", list(summary.columns), as_text(summary))
    outcomes = [_outcome(verdict) for _, verdict in verdicts]
    return {
        **values,
        "verdicts": [(outcome, *pair) for outcome, pair in zip(outcomes, verdicts, strict=True)],
        "count": ", ".join(f"{count} {outcome}" for outcome, count in _tally(outcomes).items() if count),
        "part": Part(experiment.name, "", "", [grid], dict(figures.draw(experiment, table))),
        "facts": {
            "trials": table["trial"].nunique(),
            "rows": len(table),
            "seeds": table["seed"].nunique(),
            "seconds": table.drop_duplicates("trial")["seconds"].sum(),
            "machines": ", ".join(sorted(set(table["machine"]))),
            "revisions": ", ".join(sorted({r for r in table["revision"] if r})) or "unknown",
            "torch": ", ".join(sorted(set(table["torch"]))),
        },
    }


def _outcome(verdict: Verdict) -> str:
    """Without an effect there was nothing to judge by."""
    return verdict.outcome if verdict.unit else NOT_TESTED


def _tally(outcomes: Iterable[str]) -> dict[str, int]:
    """How many claims came to which outcome."""
    found = Counter(outcomes)
    return {outcome: found[outcome] for outcome in OUTCOMES}
