"""What makes an instance hard: ill-posedness and the distance between the populations.

The paper's exact definitions are not known to us. Both here are the largest ratio of two mean squares over
the differences D of two rewards of the linear class, with uniform contexts and actions::

    tau = max E_source[D^2] / E_source[E_source[D | s, a]^2]        C = max E_target[D^2] / E_source[D^2]
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigvalsh

from .interaction import BLUR, FEATURES, LinearInteraction, best_action


def hardness(instance: LinearInteraction) -> tuple[np.ndarray, np.ndarray]:
    """Ill-posedness tau and transfer multiplier C of every run, ``[runs]`` each."""
    projected = instance.mean_features(instance.source).reshape(len(instance.base), -1, FEATURES)
    projected = np.swapaxes(projected, 1, 2) @ projected / projected.shape[1]
    source, target = (_second_moments(instance, p) for p in (instance.source, instance.target))
    return _largest_ratio(source, projected), _largest_ratio(target, source)


def _largest_ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.array([eigvalsh(a, b)[-1] for a, b in zip(above, below, strict=True)])


def _second_moments(instance: LinearInteraction, population: float) -> np.ndarray:
    """``E[phi phi^T]`` with ``phi = (1, e, e^2)``, ``[runs, 3, 3]``, from the moments of a normal law."""
    moments, variance = 0.0, BLUR**2
    for kind, weight in ((0, 1 - population), (1, population)):
        mean = instance.base + best_action(instance.gain, kind)
        square = np.square(mean)
        powers = (
            np.ones_like(mean),
            mean,
            square + variance,
            mean * (square + 3 * variance),
            square * (square + 6 * variance) + 3 * variance**2,
        )
        moments = moments + weight * np.stack(powers, -1).mean((1, 2))
    return moments[:, np.add.outer(range(FEATURES), range(FEATURES))]
