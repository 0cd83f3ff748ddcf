"""A small table: every number beside the Gaussian of its width and beside a random rotation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .controls import gaussian_null, rotated
from .metrics import METRICS, measure


class Row(NamedTuple):
    """One metric of a set of vectors.

    Attributes:
        metric: its name in ``METRICS``.
        mean, std: over the vectors.
        null, null_std: of a Gaussian of their width, over vectors as well.
        rotated: the mean behind random rotations of the vectors.
    """

    metric: str
    mean: float
    std: float
    null: float
    null_std: float
    rotated: float


@dataclass(frozen=True)
class Comparison:
    """Metrics of ``vectors`` vectors of ``dim`` entries, with what they have to be held against.

    ``l1`` alone depends on lengths: its null is that of entries with variance 1, and the rotated vectors are
    as long as those that were given.
    """

    vectors: int
    dim: int
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        width = max(len(row.metric) for row in self.rows)
        lines = [
            f"{self.vectors} vectors of {self.dim} entries: mean [standard deviation]",
            f"{'':{width}}  {'measured':>18}  {'Gaussian':>18}  {'rotated':>9}",
        ]
        lines += [
            f"{row.metric:{width}}  {_cell(row.mean, row.std):>18}  {_cell(row.null, row.null_std):>18}  "
            f"{row.rotated:9.4g}"
            for row in self.rows
        ]
        return "\n".join(lines)


def compare(h: Tensor, metrics: Sequence[str] = tuple(METRICS), *, rotations: int = 8) -> Comparison:
    """Measure vectors ``[..., dim]``, all axes but the last taken together.

    Args:
        metrics: names in ``METRICS``.
        rotations: random rotations that the control is the mean of.

    Raises:
        ValueError: an unknown metric, or fewer than 20 entries.
    """
    vectors = h.flatten(0, -2)
    null, turned = gaussian_null(h.shape[-1]), rotated(vectors, metrics, rotations=rotations)
    rows = (
        Row(name, v.mean().item(), v.std(correction=0).item(), *null[name], turned[name].mean().item())
        for name, v in measure(vectors, metrics).items()
    )
    return Comparison(len(vectors), h.shape[-1], tuple(rows))


def _cell(mean: float, std: float) -> str:
    return f"{mean:.4g} [{std:.2g}]"
