"""Estimators of the next target from the pairs before it, and the constants that each chooses from.

``estimate(features, targets, start, **constants)`` takes pairs, ``[pairs, dim]`` and ``[pairs]``, and returns
predictions for those from ``start`` on, ``[pairs - start]``, each from all pairs before it; ``start`` is at
least 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from flashlla import lla_attention, softmax_attention

from ..common.methods import Method

RADIUS = 1e4  # of the sphere that points lie on, in standard deviations of a feature
SCALES = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # of logits, in 1 / dim
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def operands(features: np.ndarray, targets: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, ``[1, pairs - 1, 1, ...]``, float64.

    Query ``i`` is that of pair ``i + 1``, and key ``i`` that of pair ``i``: a causal mask shows each
    query the pairs before its own. One coordinate more puts all points on a sphere, where ``q . k`` is a
    constant less half the squared distance. The sphere is so large that the new coordinate hardly
    varies: the softmax weights are those of a Gaussian kernel in the features.
    """
    lift = np.sqrt(RADIUS**2 - np.square(features).sum(1, keepdims=True))
    points = torch.from_numpy(np.hstack([features, lift]))[None, :, None]
    values = torch.from_numpy(targets)[None, :, None, None]
    return points[:, 1:], points[:, :-1], values[:, :-1]


def softmax(features: np.ndarray, targets: np.ndarray, start: int, scale: float) -> np.ndarray:
    q, k, v = operands(features, targets)
    return softmax_attention(q, k, v, scale=scale / features.shape[1])[0, start - 1 :, 0, 0].numpy()


def lla(features: np.ndarray, targets: np.ndarray, start: int, scale: float, ridge: float) -> np.ndarray:
    q, k, v = operands(features, targets)
    out = lla_attention(q, k, v, scale=scale / features.shape[1], ridge=ridge)
    return out[0, start - 1 :, 0, 0].numpy()


def ridge(features: np.ndarray, targets: np.ndarray, start: int, penalty: float) -> np.ndarray:
    from sklearn.linear_model import Ridge

    return _refitted(lambda: Ridge(alpha=penalty), features, targets, start)


def nearest(features: np.ndarray, targets: np.ndarray, start: int, neighbors: int) -> np.ndarray:
    from sklearn.neighbors import KNeighborsRegressor

    count = min(neighbors, start)
    return _refitted(lambda: KNeighborsRegressor(count, weights="distance"), features, targets, start)


def gaussian_process(features: np.ndarray, targets: np.ndarray, start: int) -> np.ndarray:
    """Linear and Gaussian kernel and noise, whose constants are the likeliest for the pairs before
    ``start``.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel

    kernel = (
        ConstantKernel(0.5) * RBF(np.sqrt(features.shape[1]))
        + ConstantKernel(0.1) * DotProduct()
        + WhiteKernel(0.5)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a part of the kernel that is of no use
        fitted = GaussianProcessRegressor(kernel).fit(features[:start], targets[:start]).kernel_
    return _refitted(lambda: GaussianProcessRegressor(fitted, optimizer=None), features, targets, start)


def _refitted(model: Callable, features: np.ndarray, targets: np.ndarray, start: int) -> np.ndarray:
    """Predictions of a model of scikit-learn, fitted anew to all pairs before each."""
    from sklearn import config_context

    def predict(t: int) -> float:
        return model().fit(features[:t], targets[:t]).predict(features[t : t + 1])[0]

    with config_context(assume_finite=True, skip_parameter_validation=True):  # twice as fast
        return np.array([predict(t) for t in range(start, len(targets))])


MIXERS = {
    "lla": Method(lla, {"scale": SCALES, "ridge": RIDGES}),
    "softmax": Method(softmax, {"scale": SCALES}),
}
BASELINES = {
    "ridge": Method(ridge, {"penalty": (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0)}),
    "k-nn": Method(nearest, {"neighbors": (1, 2, 4, 8, 16, 32, 64)}),
    "gp": Method(gaussian_process, {}),
}
METHODS = MIXERS | BASELINES
TITLES = {
    "lla": "LLA",
    "softmax": "softmax attention",
    "ridge": "ridge regression",
    "k-nn": "nearest neighbours",
    "gp": "Gaussian process regression",
}
