"""The picture of a run: validation loss by steps, and by the time that these took."""

from __future__ import annotations

import math
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from flashlla._files import replace_file

if TYPE_CHECKING:
    from flashlla.experiments.demo.training import Curves

COLORS = {"lla": "#d1495b", "softmax": "#30638e"}
LABELS = {"lla": "LLA", "softmax": "softmax"}
INK, FAINT = "#222222", "#8a8a8a"


def loss_figure(runs: dict[str, Curves], title: str, path: Path) -> None:
    """Two panels: by steps and by time. Train losses are faint and smoothed."""
    from matplotlib.figure import Figure  # no pyplot: nothing here needs a display

    figure = Figure(figsize=(9.6, 4.2), dpi=150, layout="constrained", facecolor="white")
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    for mixer, curves in runs.items():
        seconds = [0.0, *accumulate(curves.step_seconds)]
        smooth = [loss / math.log(2) for loss in _smoothed(curves.train_losses)]
        steps = [step for step, _ in curves.validation]
        losses = [loss / math.log(2) for _, loss in curves.validation]
        color, label = COLORS[mixer], LABELS[mixer]
        for axes, train_x, x in (
            (by_step, range(1, len(smooth) + 1), steps),
            (by_time, seconds[1:], [seconds[step] for step in steps]),
        ):
            axes.plot(train_x, smooth, color=color, alpha=0.3, lw=1.2)
            axes.plot(x, losses, color=color, lw=2, marker="o", ms=4.5, label=f"{label}: {losses[-1]:.3f}")
    _dress(by_step, "training steps", "by steps")
    _dress(by_time, "seconds of training", "by time")
    by_step.set_ylabel("bits per byte", color=INK)
    highest = max(curves.validation[0][1] for curves in runs.values()) / math.log(2)
    lowest = min(curves.validation[-1][1] for curves in runs.values()) / math.log(2)
    by_step.set_ylim(lowest - 0.15 * (highest - lowest) - 0.05, highest + 0.25 * (highest - lowest) + 0.05)
    legend = by_step.legend(frameon=False, title="validation (faint: training)", alignment="left")
    legend.get_title().set_color(FAINT)
    figure.suptitle(title, color=INK, fontsize=11)
    replace_file(path, lambda aside: figure.savefig(aside, format="png"))


def _dress(axes, x_label: str, title: str) -> None:
    axes.set_xlabel(x_label, color=INK)
    axes.set_title(title, loc="left", color=FAINT, fontsize=10)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25, lw=0.6)
    axes.tick_params(colors=INK, length=3)
    axes.spines[["top", "right"]].set_visible(False)


def _smoothed(losses: list[float], decay: float = 0.9) -> list[float]:
    """Exponential mean, without the bias towards its start."""
    mean, weight, out = 0.0, 0.0, []
    for loss in losses:
        mean, weight = decay * mean + (1 - decay) * loss, decay * weight + 1 - decay
        out.append(mean / weight)
    return out
