"""Smooth maps on the unit ball, and the points of the ball as keys of equal norm.

Softmax weights ``exp(scale q . k)`` are a kernel in the distance of q and k only if all keys have one
norm. So a point ``x`` of the ball becomes ``(x, sqrt(RADIUS^2 - |x|^2))`` on a sphere so large that
distances remain what they are to one part in 500, and softmax weights are those of a Gaussian kernel in
the ball, with the standard deviation ``scale^(-1/2)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RADIUS = 16.0  # of the sphere; that of the ball is 1


def ball(count: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Points of the unit ball, uniform: ``[count, dim]``."""
    points = rng.standard_normal((count, dim))
    radii = rng.random((count, 1)) ** (1 / dim)
    return points * radii / np.linalg.norm(points, axis=1, keepdims=True)


def lift(points: np.ndarray) -> np.ndarray:
    """Points ``[count, dim]`` of the ball on the sphere, ``[count, dim + 1]``."""
    return np.hstack([points, np.sqrt(RADIUS**2 - np.square(points).sum(1, keepdims=True))])


@dataclass(frozen=True)
class SmoothMap:
    """``x -> gradients x + sqrt(2) cos(frequencies x + phases)``: every entry a linear map and a wave.

    Attributes:
        gradients, frequencies: ``[value_dim, dim]``.
        phases: ``[value_dim]``.
    """

    gradients: np.ndarray
    frequencies: np.ndarray
    phases: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """``[count, value_dim]`` at ``[count, dim]``."""
        waves = np.cos(points @ self.frequencies.T + self.phases)
        return points @ self.gradients.T + math.sqrt(2) * waves


def draw_map(
    dim: int, value_dim: int, gradient: float, frequency: float, rng: np.random.Generator
) -> SmoothMap:
    """Random directions and phases; ``gradient`` and ``frequency`` are the norms of all rows."""

    def directions() -> np.ndarray:
        rows = rng.standard_normal((value_dim, dim))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return SmoothMap(
        gradient * directions(), frequency * directions(), rng.uniform(0, 2 * math.pi, value_dim)
    )
