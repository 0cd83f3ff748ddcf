"""A family of instances that are hard at every number of episodes: the gap goes down to where nobody sees it.

On one instance with a gap, suboptimality falls faster than ``K^(-1/2)`` once the gap is seen; that power is
what no method can beat in the worst case. So the family has the same geometry with every gap, and what counts
at each K is the gap that costs most.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .interaction import FEATURES, NORM, LinearInteraction

GAPS = tuple(0.005 * 2**i for i in range(8))  # 0.005 to 0.64
CONTEXTS, DECISIONS = 6, 2  # in the other contexts both actions are the same, and pay alike
TIE = 0.5  # norm of the coefficients at which the decisions are ties
TRIES = 64  # geometries drawn for each one that is kept


def family(runs: int, gaps: Sequence[float], rng: np.random.Generator) -> LinearInteraction:
    """As many geometries as ``runs``, each with all gaps: ``[gaps * runs]`` instances, gap by gap.

    In a decision the first action pays the gap more than the second in the target population.
    """
    drawn = LinearInteraction.draw(TRIES * runs, CONTEXTS, 2, rng)
    differences = _differences(drawn)
    apart = np.linalg.pinv(differences) @ np.ones(DECISIONS)  # what the gap is a multiple of
    kept = np.flatnonzero(TIE + max(gaps) * np.linalg.norm(apart, axis=1) <= NORM)[:runs]
    if len(kept) < runs:
        raise ValueError(f"gaps={tuple(gaps)}: too few geometries bear the largest; take smaller gaps")
    tie = np.linalg.svd(differences[kept])[2][:, -1] * TIE
    theta = np.concatenate([tie + gap * apart[kept] for gap in gaps])
    assert theta.shape == (len(gaps) * runs, FEATURES)
    base, gain = (_alike(values[kept]) for values in (drawn.base, drawn.gain))
    return LinearInteraction(*(np.tile(values, (len(gaps), 1, 1)) for values in (base, gain)), theta)


def _differences(instance: LinearInteraction) -> np.ndarray:
    """Features of the first action less those of the second in every decision, ``[runs, decisions, 3]``."""
    first, second = np.moveaxis(instance.mean_features(instance.target)[:, :DECISIONS], 2, 0)
    return first - second


def _alike(values: np.ndarray) -> np.ndarray:
    """Both actions made the same outside of the decisions."""
    values = values.copy()
    values[:, DECISIONS:, 1] = values[:, DECISIONS:, 0]
    return values
