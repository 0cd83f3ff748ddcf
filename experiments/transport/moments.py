"""Minimax estimation: the risks of the paper in closed form, and radii of their confidence sets.

The risk of a candidate R is what the best discriminator f makes of its residuals (arXiv 2506.09940)::

    risk(R) = max_f sum_k f(s_k, a_k) (R(s_k, a_k, e_k) - r_k) - 1/2 sum_k f(s_k, a_k)^2

The true R has residuals of mean zero given (s, a), whatever confounds them, and so a small risk. A
confidence set holds the candidates whose risk is at most a radius. The constants of the paper's radii are
not known to us; ours hold for all k together and for adaptive data, by Ville's inequality for a nonnegative
supermartingale.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RIDGE = 1.0  # on discriminators, and on coefficients


class LinearRisk(NamedTuple):
    """The risk of ``R = theta . phi`` with discriminators ``f = w . psi``, for many data sets at once.

    The best w has a closed form, and the risk is ``1/2 |A theta - b|^2`` in the norm of ``G^-1``. Its least
    is at the estimate of two-stage least squares; with ``psi = phi`` that is ordinary least squares.

    Attributes:
        cross: ``A = sum psi phi^T``, ``[..., instruments, features]``.
        moment: ``b = sum psi r``, ``[..., instruments]``.
        gram: ``G = sum psi psi^T`` with the ridge, ``[..., instruments, instruments]``.
    """

    cross: np.ndarray
    moment: np.ndarray
    gram: np.ndarray

    @classmethod
    def of_sums(cls, cross: np.ndarray, moment: np.ndarray, gram: np.ndarray) -> LinearRisk:
        """From sums over data; the ridge is added here."""
        return cls(cross, moment, gram + RIDGE * np.eye(gram.shape[-1]))

    @classmethod
    def of(cls, features: np.ndarray, instruments: np.ndarray, rewards: np.ndarray) -> LinearRisk:
        """From data: ``[..., episodes, features]``, ``[..., episodes, instruments]``, ``[..., episodes]``."""
        transposed = np.swapaxes(instruments, -1, -2)
        moment = (transposed @ rewards[..., None])[..., 0]
        return cls.of_sums(transposed @ features, moment, transposed @ instruments)

    def __call__(self, theta: np.ndarray) -> np.ndarray:
        """The risk at ``theta`` ``[..., features]``."""
        left = np.einsum("...mf,...f->...m", self.cross, theta) - self.moment
        return 0.5 * np.einsum("...m,...m->...", left, _solve(self.gram, left))

    def estimate(self) -> np.ndarray:
        """The minimiser, with the ridge on theta as well, ``[..., features]``."""
        return self.ellipsoid(0.0, 0.0).centre

    def ellipsoid(self, radius: np.ndarray | float, norm: float) -> Ellipsoid:
        """The set ``risk(theta) + ridge / 2 |theta|^2 <= radius + ridge / 2 norm^2``.

        It has every theta of at most that norm whose risk is within the radius, and it is bounded whatever
        the data.
        """
        first = np.linalg.solve(self.gram, np.concatenate([self.cross, self.moment[..., None]], -1))
        normal = np.swapaxes(self.cross, -1, -2) @ first
        precision = normal[..., :-1] + RIDGE * np.eye(normal.shape[-2])
        centre = _solve(precision, normal[..., -1])
        least = self(centre) + RIDGE / 2 * np.square(centre).sum(-1)
        return Ellipsoid(centre, precision, np.maximum(radius + RIDGE / 2 * norm**2 - least, 0.0))

    def radius(self, noise: float, delta: float) -> np.ndarray:
        """A radius that the truth is within for all k, with probability ``1 - delta``.

        The self-normalised bound of Abbasi-Yadkori, Pal and Szepesvari (NeurIPS 2011, theorem 1).

        Args:
            noise: sigma, of residuals that are sigma-sub-Gaussian given (s, a) and the past.
        """
        size = np.linalg.slogdet(self.gram)[1] - self.gram.shape[-1] * np.log(RIDGE)
        return noise**2 * (size / 2 + np.log(1 / delta))


class Ellipsoid(NamedTuple):
    """``1/2 (theta - centre)^T precision (theta - centre) <= room``, for many data sets at once."""

    centre: np.ndarray
    precision: np.ndarray
    room: np.ndarray

    def covers(self, theta: np.ndarray) -> np.ndarray:
        """Where ``theta`` ``[..., features]`` is inside, bool ``[...]``."""
        away = theta - self.centre
        return 0.5 * np.einsum("...f,...fg,...g->...", away, self.precision, away) <= self.room

    def largest(self, directions: np.ndarray) -> np.ndarray:
        """The largest ``direction . theta`` in the set, ``[..., count]`` for ``[..., count, features]``."""
        mean = np.einsum("...cf,...f->...c", directions, self.centre)
        scaled = np.swapaxes(np.linalg.solve(self.precision, np.swapaxes(directions, -1, -2)), -1, -2)
        widths = np.einsum("...cf,...cf->...c", directions, scaled)
        return mean + np.sqrt(2 * self.room[..., None] * widths)


def finite_risk(residuals: np.ndarray, counts: np.ndarray, discriminators: np.ndarray) -> np.ndarray:
    """The risk with finitely many discriminators, from residuals that are summed by (s, a).

    Args:
        residuals: ``[..., candidates, cells]``, sums over the episodes of a cell.
        counts: ``[cells]``, episodes.
        discriminators: ``[..., functions, cells]``.

    Returns:
        ``[..., candidates]``.
    """
    gains = residuals @ np.swapaxes(discriminators, -1, -2)
    return (gains - (0.5 * np.square(discriminators) @ counts)[..., None, :]).max(-1)


def finite_radius(noise: float, functions: int, delta: float) -> float:
    """A radius that the truth is within for all k, with probability ``1 - delta``.

    For one f, ``exp((sum f xi - 1/2 sum f^2) / sigma^2)`` is a supermartingale if xi is sigma-sub-Gaussian
    given (s, a) and the past; the union over all f gives the logarithm.
    """
    return noise**2 * np.log(functions / delta)


def _solve(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return np.linalg.solve(matrix, vector[..., None])[..., 0]
