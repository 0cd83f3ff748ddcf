"""A picture of the times."""

from __future__ import annotations

from pathlib import Path

from gpu import speed
from gpu.speed import BOTH

SHOWN = ("sdpa flash", "softmax", "parallax", "lla, ridge 10", "lla, ridge 1", "lla, ridge 0.1", "published")


def plot(session, path: Path) -> str | None:
    """Time over length, a panel for every head dimension; why there is none, or None."""
    try:
        import matplotlib
    except ImportError:
        return "matplotlib is not there"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in speed.rows(session) if row["direction"] == BOTH and "ms" in row]
    dims = sorted({row["d"] for row in rows})
    if not dims:
        return "nothing was timed"
    figure, panels = pyplot.subplots(1, len(dims), figsize=(5.5 * len(dims), 4.2), squeeze=False, sharey=True)
    for panel, dim in zip(panels[0], dims, strict=True):
        for name in SHOWN:
            points = sorted(
                (row["n"], row["ms"]) for row in rows if (row["contender"], row["d"]) == (name, dim)
            )
            if points:
                panel.plot(*zip(*points, strict=True), marker="o", label=name)
        panel.set(xscale="log", yscale="log", xlabel="sequence length", title=f"head dimension {dim}")
        panel.grid(True, which="both", alpha=0.3)
    panels[0][0].set_ylabel(f"{BOTH}, ms")
    panels[0][-1].legend(fontsize=8)
    figure.suptitle(f"{session.machine['device']}, {session.batch} x {session.heads} heads, causal, bfloat16")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return None
