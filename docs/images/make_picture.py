"""The picture of the README: one noisy piecewise-linear function, read by softmax attention and by LLA.

Both curves, the weights and the local line are computed by flashlla. The inputs lie on an arc, so that all
keys have the same length and the softmax weights depend on the distance alone. To draw the files anew::

    python docs/images/make_picture.py
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import flashlla

POINTS, NOISE, SEED = 56, 0.06, 3
ANGLE = math.pi / 2  # of the whole arc
SCALE = 70.0  # of the logits: the width of the window is SCALE ** -0.5 on the arc
RIDGE = 1e-3
SHOWN_QUERY = 1.0
THEMES = {
    "light": {
        "ink": "#1f2328",
        "faint": "#8b949e",
        "softmax": "#2f6db5",
        "lla": "#cf3f54",
        "ground": "#ffffff",
    },
    "dark": {
        "ink": "#e6edf3",
        "faint": "#7d8590",
        "softmax": "#6cb0ff",
        "lla": "#ff7b8a",
        "ground": "#0d1117",
    },
}


def truth(x: Tensor) -> Tensor:
    """Three straight pieces."""
    return torch.where(x < 0.35, 0.95 - 2.1 * x, torch.where(x < 0.7, 0.215, 0.215 + 2.6 * (x - 0.7)))


def keys(x: Tensor) -> Tensor:
    """Points of the unit circle."""
    return torch.stack([torch.cos(ANGLE * x), torch.sin(ANGLE * x)], -1)


def attend(x: Tensor, data_x: Tensor, values: Tensor) -> dict[str, Tensor]:
    """What both kinds of attention answer at ``x``; ``values`` is ``[points, width]``."""
    q, k, v = (t[None, :, None] for t in (keys(x), keys(data_x), values))
    softmax = flashlla.softmax_attention(q, k, v, scale=SCALE, causal=False)
    lla = flashlla.lla_attention(q, k, v, ridge=RIDGE, scale=SCALE, causal=False)
    return {"softmax": softmax[0, :, 0], "lla": lla[0, :, 0]}


def local_line(data_x: Tensor, data_y: Tensor, x: Tensor) -> Tensor:
    """The regression that LLA makes for the shown query, evaluated at ``x``."""
    query = torch.tensor([SHOWN_QUERY], dtype=torch.float64)
    weights = attend(query, data_x, torch.eye(POINTS, dtype=torch.float64))
    p, a = weights["softmax"][0], weights["lla"][0]
    k = keys(data_x) - p @ keys(data_x)
    slope = torch.linalg.solve(
        (p[:, None] * k).T @ k + RIDGE * torch.eye(2, dtype=torch.float64), k.T @ (p * data_y)
    )
    return a @ data_y + (keys(x) - keys(query)) @ slope


def draw(theme: str, path: Path) -> None:
    colors = THEMES[theme]
    generator = torch.Generator().manual_seed(SEED)
    data_x = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    data_y = truth(data_x) + NOISE * torch.randn(POINTS, generator=generator, dtype=torch.float64)
    x = torch.linspace(0, 1, 400, dtype=torch.float64)
    with plt.rc_context({"font.size": 11, "text.color": colors["ink"], "axes.labelcolor": colors["ink"]}):
        figure, (left, right) = plt.subplots(
            1,
            2,
            figsize=(10, 3.9),
            dpi=170,
            layout="constrained",
            width_ratios=(1.75, 1),
            facecolor=colors["ground"],
        )
        draw_answers(left, colors, data_x, data_y, x)
        draw_weights(right, colors, data_x)
        for axes in (left, right):
            axes.set_facecolor(colors["ground"])
            axes.tick_params(colors=colors["faint"], length=3)
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color(colors["faint"])
        figure.savefig(path)
        plt.close(figure)


def draw_answers(axes, colors: dict[str, str], data_x: Tensor, data_y: Tensor, x: Tensor) -> None:
    answers = attend(x, data_x, data_y[:, None])
    axes.plot(x, truth(x), color=colors["faint"], lw=1.2, ls=(0, (4, 3)))
    axes.scatter(data_x, data_y, s=15, color=colors["faint"], lw=0, alpha=0.9)
    axes.plot(x, answers["softmax"][:, 0], color=colors["softmax"], lw=2.4)
    axes.plot(x, answers["lla"][:, 0], color=colors["lla"], lw=2.4)
    near = x[x > 0.77]
    axes.plot(
        near, local_line(data_x, data_y, near), color=colors["lla"], lw=7, alpha=0.22, solid_capstyle="round"
    )
    for name in ("softmax", "lla"):
        axes.plot(
            SHOWN_QUERY,
            answers[name][-1, 0],
            "o",
            color=colors[name],
            ms=8,
            mec=colors["ground"],
            clip_on=False,
        )
    for name, height, words in (
        ("softmax", 0.93, "softmax: a local average"),
        ("lla", 0.85, "LLA: a local line"),
    ):
        axes.text(0.26, height, words, color=colors[name], weight="bold", fontsize=12)
    axes.text(0.26, 0.77, "dashed: what the noisy points come from", color=colors["faint"])
    axes.set_title("what a query at x gets back", loc="left", color=colors["ink"], fontsize=11)
    axes.set_xlabel("x (keys and queries)")
    axes.set_ylabel("values")
    axes.set_xlim(-0.015, 1.03)


def draw_weights(axes, colors: dict[str, str], data_x: Tensor) -> None:
    query = torch.tensor([SHOWN_QUERY], dtype=torch.float64)
    weights = attend(
        query, data_x, torch.eye(POINTS, dtype=torch.float64)
    )  # with values I the answer is the weights
    axes.axhline(0, color=colors["faint"], lw=0.8)
    shown = data_x > 0.6
    for name in ("softmax", "lla"):
        axes.plot(
            data_x[shown],
            weights[name][0, shown],
            color=colors[name],
            lw=1.4,
            marker="o",
            ms=4.5,
            clip_on=False,
        )
    axes.text(0.605, 0.3, "both sum to 1;\nthose of LLA also\nbalance around x = 1", color=colors["faint"])
    axes.set_title("weights of the query at x = 1", loc="left", color=colors["ink"], fontsize=11)
    axes.set_xlabel("x (keys)")
    axes.set_yticks([0, 0.1, 0.2, 0.3])
    axes.set_xlim(0.595, 1.01)


if __name__ == "__main__":
    for name in THEMES:
        draw(name, Path(__file__).with_name(f"local-line-{name}.png"))
