"""Noise schedules: how much of a sample and how much noise is left at every level, and what is predicted.

At level t in [0, 1], 0 clean and 1 noise, ``x = alpha(t) x0 + sigma(t) eps`` with standard normal eps. It is
the level that the diffusion transformers take. A network predicts one of

- ``"eps"``: the noise;
- ``"x0"``: the clean sample;
- ``"velocity"``: ``a eps - b x0`` with ``a alpha + b sigma = 1``, so that it has no singular level. In a
  rectified flow a = b = 1, and it is dx/dt; where the variance is preserved a = alpha and b = sigma
  (arXiv 2202.00512, section 4), and it is dx/dphi for the angle phi with tangent sigma / alpha;
- ``"score"``: the gradient of the log density of x, ``-eps / sigma``.

Levels are tensors ``[batch]``, ``[batch, places]`` or any leading axes of the sample, 0-dim included, on the
device of the sample; 0-dim ones may be on the CPU.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flashlla.nn.checks import check_sizes

PREDICTIONS = ("eps", "x0", "velocity", "score")


class Parts(NamedTuple):
    """A noisy sample taken apart, in its shape: ``x = alpha x0 + sigma eps``."""

    x0: Tensor
    eps: Tensor


class Schedule(ABC):
    """What all schedules can do, from ``alpha``, ``sigma`` and the two weights of the velocity."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The share of the clean sample at levels ``t``: falling, 1 at level 0."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise at levels ``t``: rising, 0 at level 0."""

    @abstractmethod
    def velocity_weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """a and b of the velocity ``a eps - b x0``."""

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """A clean sample at levels ``t``.

        Args:
            x0: ``[batch, ...]``.
            eps: standard normal, of that shape.

        Raises:
            ValueError: ``t`` whose shape is not that of leading axes of x0.
        """
        alpha, sigma = _over(x0, t, self.alpha(t), self.sigma(t))
        return alpha * x0 + sigma * eps

    def target(self, x0: Tensor, eps: Tensor, t: Tensor, prediction: str) -> Tensor:
        """What a network has to predict; with the result of :meth:`split` it turns predictions into others.

        Raises:
            ValueError: an unknown prediction, ``t`` as for :meth:`noised`.
        """
        check_prediction(prediction)
        if prediction == "eps":
            return eps
        if prediction == "x0":
            return x0
        if prediction == "score":
            (sigma,) = _over(x0, t, self.sigma(t))
            return -eps / sigma
        a, b = _over(x0, t, *self.velocity_weights(t))
        return a * eps - b * x0

    def split(self, predicted: Tensor, x: Tensor, t: Tensor, prediction: str) -> Parts:
        """Clean sample and noise that a prediction at ``x`` stands for.

        Not finite where eps or the score is predicted and alpha is 0, or x0 and sigma is 0.

        Raises:
            ValueError: an unknown prediction, ``t`` as for :meth:`noised`.
        """
        check_prediction(prediction)
        alpha, sigma, a, b = _over(x, t, self.alpha(t), self.sigma(t), *self.velocity_weights(t))
        if prediction == "velocity":
            return Parts(a * x - sigma * predicted, b * x + alpha * predicted)
        if prediction == "x0":
            return Parts(predicted, (x - alpha * predicted) / sigma)
        eps = predicted if prediction == "eps" else -sigma * predicted
        return Parts((x - sigma * eps) / alpha, eps)

    def loss_weight(self, t: Tensor, prediction: str, like: str = "eps") -> Tensor:
        """What turns a squared error of ``prediction`` into that of ``like``, a factor in the shape of t.

        The signal-to-noise ratio ``alpha^2 / sigma^2`` for x0 like eps, 1 for both alike.

        Raises:
            ValueError: an unknown prediction.
        """
        return (self._error(t, like) / self._error(t, prediction)).square()

    def _error(self, t: Tensor, prediction: str) -> Tensor:
        """The error of a prediction where that of the velocity is 1."""
        check_prediction(prediction)
        if prediction == "velocity":
            return torch.ones_like(t)
        if prediction == "x0":
            return self.sigma(t)
        return self.alpha(t) if prediction == "eps" else self.alpha(t) / self.sigma(t)


class VariancePreserving(Schedule):
    """Schedules with ``alpha^2 + sigma^2 = 1``."""

    def velocity_weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.alpha(t), self.sigma(t)


@dataclass(frozen=True)
class LinearVP(VariancePreserving):
    """The SDE ``dx = -beta x / 2 dt + sqrt(beta) dW`` with beta linear in t (arXiv 2011.13456, appendix C).

    alpha(1) is 0.0066 with the defaults, not 0.

    Attributes:
        beta_min, beta_max: beta at levels 0 and 1.

    Raises:
        ValueError: not ``0 <= beta_min <= beta_max`` with beta_max above 0 and finite.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        if not 0 <= self.beta_min <= self.beta_max < math.inf or self.beta_max == 0:
            raise ValueError(
                f"beta_min={self.beta_min} and beta_max={self.beta_max} must be in order, finite, and at "
                "least 0, the second above 0"
            )

    def beta(self, t: Tensor) -> Tensor:
        """The rate of the SDE."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -t * (self.beta_min + self.beta(t)) / 4


@dataclass(frozen=True)
class CosineVP(VariancePreserving):
    """alpha along a cosine (arXiv 2102.09672, equation 17, in continuous time and without a bound on beta).

    alpha(1) is 0: begin below level 1, or predict x0 or the velocity.

    Attributes:
        offset: keeps the noise from growing too slowly at small levels.

    Raises:
        ValueError: an offset that is negative or not finite.
    """

    offset: float = 0.008

    def __post_init__(self):
        if not 0 <= self.offset < math.inf:
            raise ValueError(f"offset={self.offset} must be at least 0 and finite; 0.008 is the paper's")

    def alpha(self, t: Tensor) -> Tensor:
        first = self._quarter * self.offset
        return torch.cos(first + self._quarter * t).clamp(min=0.0) / math.cos(first)

    def sigma(self, t: Tensor) -> Tensor:
        # sqrt(1 - alpha^2), as a product: the difference would be inexact at small levels.
        first, angle = self._quarter * self.offset, self._quarter * t
        return torch.sqrt(torch.sin(angle) * torch.sin(angle + 2 * first)) / math.cos(first)

    @property
    def _quarter(self) -> float:
        """The angle that t of 1 adds."""
        return math.pi / 2 / (1 + self.offset)


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """The straight line ``x = (1 - t) x0 + t eps`` (arXiv 2209.03003, whose time runs the other way)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def velocity_weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.ones_like(t)


def levels(steps: int, start: float = 1.0, end: float = 0.0) -> Tensor:
    """Falling levels at equal distances, float64 ``[steps + 1]``: one behind every step, and the first.

    Raises:
        TypeError, ValueError: steps below 1, or not ``0 <= end < start <= 1``.
    """
    check_sizes(steps=steps)
    if not 0 <= end < start <= 1:
        raise ValueError(f"start={start} and end={end} must fall and lie in [0, 1]; 0 is clean, 1 is noise")
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def check_prediction(prediction: str) -> None:
    """Raise ValueError for what no network predicts."""
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction={prediction!r} is unknown; choose one of {', '.join(PREDICTIONS)}")


def _over(x: Tensor, t: Tensor, *values: Tensor) -> list[Tensor]:
    """Values of the levels ``t``, with axes behind them so that they go over ``x``, and in its dtype."""
    if x.shape[: t.dim()] != t.shape:
        raise ValueError(
            f"t has shape {tuple(t.shape)}; expected leading axes of the sample's {tuple(x.shape)}"
        )
    behind = x.dim() - t.dim() if t.dim() else 0  # a 0-dim tensor may be on the CPU, whatever the device of x
    return [value[(..., *[None] * behind)].to(x.dtype) for value in values]
