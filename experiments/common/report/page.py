"""From tables to a page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from .. import figures
from ..experiment import Experiment
from ..table import as_text

if TYPE_CHECKING:
    from ..table import Table


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
    """The page, as HTML that needs nothing else.

    Raises:
        ExperimentError: jinja2 or matplotlib is missing.
    """
    import jinja2

    template = files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(sections=[_values(section) for section in sections])


def _values(section: Section) -> dict[str, Any]:
    """What the template shows of a section."""
    experiment, table = section.experiment, section.table
    values = {"experiment": experiment, "command": section.command, "verdicts": []}
    if table is None:
        return values
    drawn, summary = figures.draw(experiment, table), experiment.summary(table)
    return {
        **values,
        "verdicts": [(claim, claim.judge(table)) for claim in experiment.claims],
        "figures": [
            (name, _unique(figures.as_svg(figure), f"{experiment.name}-{name}"))
            for name, figure in drawn.items()
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


def _unique(svg: str, prefix: str) -> str:
    """Names inside an svg element are global in a page: make them the figure's own."""
    svg = re.sub(r'(?<=[ \n])id="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    return re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{prefix}-\1"', svg)
