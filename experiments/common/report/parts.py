"""What a page is made of: tables and figures under a heading."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .. import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Grid:
    """A table of text.

    Attributes:
        caption: what it shows.
        columns: names of the columns.
        rows: cells, row by row; the first one names the row.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Part:
    """Results that belong together.

    Attributes:
        name: a word for links to it.
        title: in words.
        about: what was measured on which machine, in sentences.
        grids: tables.
        pictures: figures by name.
    """

    name: str
    title: str
    about: str
    grids: Sequence[Grid] = ()
    pictures: dict[str, Figure] = field(default_factory=dict)

    def drawn(self) -> list[tuple[str, str]]:
        """A caption and an ``<svg>`` element for each figure."""
        return [
            (figure.get_label() or name, _unique(figures.as_svg(figure), f"{self.name}-{name}"))
            for name, figure in self.pictures.items()
        ]


def _unique(svg: str, prefix: str) -> str:
    """Names inside an svg element are global in a page: make them the figure's own."""
    svg = re.sub(r'(?<=[ \n])id="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    return re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{prefix}-\1"', svg)
