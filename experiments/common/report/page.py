"""From tables to a page."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from .. import figures
from ..claims import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED, Verdict
from ..experiment import Experiment
from ..table import as_text

if TYPE_CHECKING:
    from ..table import Table

NAMED = {"mixer", "method"}  # columns whose cells are names of mixers


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


def render(sections: list[Section]) -> str:
    """The page, as HTML that needs nothing else."""
    import jinja2

    template = files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(sections=[_values(section) for section in sections])


def _values(section: Section) -> dict[str, Any]:
    """What the template shows of a section."""
    experiment, table = section.experiment, section.table
    values = {"experiment": experiment, "command": section.command}
    if table is None:
        return values
    verdicts = [claim.judge(table) for claim in experiment.claims]
    summary = experiment.summary(table)
    for column in NAMED.intersection(summary):
        summary[column] = summary[column].map(figures.label)
    return {
        **values,
        "verdicts": list(zip(experiment.claims, verdicts, strict=True)),
        "count": _count(verdicts),
        "figures": [
            (figure.get_label() or name, _unique(figures.as_svg(figure), f"{experiment.name}-{name}"))
            for name, figure in figures.draw(experiment, table).items()
        ],
        "summary": {"columns": list(summary.columns), "rows": as_text(summary)},
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


def _count(verdicts: list[Verdict]) -> str:
    """How many claims came to which outcome, in words."""
    found = Counter(verdict.outcome for verdict in verdicts)
    return ", ".join(f"{found[o]} {o}" for o in (SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE) if found[o])


def _unique(svg: str, prefix: str) -> str:
    """Names inside an svg element are global in a page: make them the figure's own."""
    svg = re.sub(r'(?<=[ \n])id="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    return re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{prefix}-\1"', svg)
