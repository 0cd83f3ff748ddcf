"""How figures look: a colour and a marker for each mixer, no display, the same bytes every time."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flashlla._files import replace_file

from .statistics import Interval, bootstrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    from .experiment import Experiment
    from .table import Table

# Colours that people with any colour vision tell apart, with a contrast of 3 or more on white and on black;
# the markers tell them as well.
STYLES = {
    "lla": ("#d1495b", "o", "LLA"),
    "parallax": ("#c46f12", "s", "Parallax"),
    "softmax": ("#2f78b7", "^", "softmax"),
    "mesanet": ("#8d62ab", "D", "MesaNet"),
    "linear_attention": ("#8a8a8a", "v", "linear attention"),
    "gla": ("#35968a", "<", "GLA"),
    "deltanet": ("#948718", ">", "DeltaNet"),
    "gated_deltanet": ("#5b8c2a", "P", "Gated DeltaNet"),
    "mamba2": ("#a8592f", "X", "Mamba-2"),
    "hyena": ("#c266b0", "*", "Hyena"),
    "mesanet, forgetting": ("#a37cd0", "d", "MesaNet, forgetting"),
}
OTHERS = ("softmax", "parallax", "gated_deltanet", "lla", "mesanet", "mamba2", "hyena", "linear_attention")
INK = "#757575"  # readable on white and on black
SETTINGS = {
    "svg.hashsalt": "flashlla",  # otherwise names in the file differ every time
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": INK,
    "axes.prop_cycle": f"cycler(color={[STYLES[name][0] for name in OTHERS]})",  # of what is no mixer
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def style() -> AbstractContextManager[None]:
    """The style of this module, for what is drawn within."""
    from matplotlib import rc_context

    return rc_context(SETTINGS)


def draw(experiment: Experiment, table: Table) -> Mapping[str, Figure]:
    """The figures of an experiment, in the style of this module."""
    with style():
        return experiment.figures(table)


def label(mixer: str) -> str:
    """The name of a mixer in words."""
    return STYLES[mixer][2] if mixer in STYLES else mixer


def panels(
    columns: int = 1,
    rows: int = 1,
    *,
    width: float = 4.2,
    height: float = 3.2,
    caption: str = "",
    **options: Any,
):
    """A figure and its axes, ``[rows, columns]``.

    Args:
        width, height: of a panel in inches.
        caption: what the figure shows, in the words that a page gives it as its label.
        options: those of ``Figure.subplots``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), dpi=130, layout="constrained", label=caption)
    figure.get_layout_engine().set(w_pad=0.07, h_pad=0.06)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.6)
    return figure, axes


def bars(intervals: Iterable[Interval]) -> tuple[np.ndarray, np.ndarray]:
    """What ``errorbar`` wants: means ``[count]``, and how far intervals reach below and above them,
    ``[2, count]``, 0 where there is none.
    """
    means, *ends = np.array([*intervals], dtype=float).reshape(-1, 3).T
    return means, np.abs(np.where(np.isfinite(ends), ends, means) - means)


def curves(axes: Axes, table: Table, x: str, y: str, *, by: str = "mixer") -> None:
    """A line for each value of ``by``: means over seeds, and a band of their bootstrap interval."""
    for name in dict.fromkeys(table[by]):
        part = table[table[by] == name]
        color, marker, text = STYLES.get(name, (None, "o", str(name)))
        places = np.sort(part[x].unique())
        intervals = [bootstrap(part.loc[part[x] == place, y]) for place in places]
        (line,) = axes.plot(
            places, [i.value for i in intervals], color=color, marker=marker, ms=4.5, lw=1.6, label=text
        )
        low, high = ([getattr(i, end) for i in intervals] for end in ("low", "high"))
        if np.isfinite([low, high]).all():
            axes.fill_between(places, low, high, color=line.get_color(), alpha=0.18, lw=0)


def legend_beside(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, to their right, with what is in ``axes``."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)


def heatmap(axes: Axes, shares: np.ndarray, digits: str = ".2g") -> dict[tuple[int, ...], Text]:
    """Numbers from 0 to 1 on a ground that is darker for a larger one, NaN left out; their texts by place."""
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.grid(False)
    texts = {}
    for (line, column), share in np.ndenumerate(shares):
        if np.isfinite(share):
            color = "white" if share > 0.7 else "black"
            text = axes.text(column, line, f"{share:{digits}}", ha="center", va="center", color=color)
            texts[line, column] = text
    return texts


def plain_numbers(axis: Axis) -> None:
    """0.5, 1, 2 on a logarithmic axis, and some between where there is room; its limits are set before."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else (1, 1.4, 2, 3, 5, 7)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def as_svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element on a transparent ground; its text takes the colour of the page."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_visible(False)
    buffer = io.StringIO()
    with style():  # not by savefig, which draws twice
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue().replace(INK, "currentColor")
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure on white, in place of what is there; with a palette it takes a third of the bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    with style():
        canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    image = Image.new("RGB", drawn.size, "white")
    image.paste(drawn, mask=drawn)
    image = image.quantize(128, dither=Image.Dither.NONE)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda aside: image.save(aside, format="png", optimize=True))
