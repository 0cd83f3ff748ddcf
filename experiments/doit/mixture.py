"""Tier 1: eight Gaussians on a circle and a half-plane that pays, where everything is in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flashlla.models.diffusion import Schedule

MODES = 8
RADIUS = 4.0
WIDTH = 0.3  # standard deviation of a mode
DEFAULT_BORDER = 0.35 * RADIUS  # three of the eight modes pay
CHUNK = 10_000  # samples of a rejection round


@dataclass(frozen=True)
class Mixture:
    """Equal modes at ``mu_k``, and the reward ``1[x_0 > border]`` of a sample's first number.

    The weight of a sample is ``exp(reward / tau)``; with tau 0 it is the reward, so that the target is the
    law given the event.

    Attributes:
        border: where the half-plane begins.
        tau: temperature.
    """

    border: float = DEFAULT_BORDER
    tau: float = 0.25

    @classmethod
    def with_probability(cls, rho: float, tau: float) -> Mixture:
        """The border at which the base is paid with probability ``rho``, found by bisection."""
        from scipy.optimize import brentq

        border = brentq(lambda b: cls(b, tau).base_probability() - rho, -2 * RADIUS, 2 * RADIUS)
        return cls(border, tau)

    # ---- the law ------------------------------------------------------------------------------------

    @property
    def centres(self) -> Tensor:
        """``[modes, 2]``, the first of them where the half-plane is furthest in."""
        angles = torch.arange(MODES) * (2 * math.pi / MODES)
        return RADIUS * torch.stack([angles.cos(), angles.sin()], 1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Samples ``[count, 2]``."""
        mode = torch.randint(MODES, (count,), generator=generator)
        return self.centres[mode] + WIDTH * torch.randn(count, 2, generator=generator)

    def reward(self, x: Tensor) -> Tensor:
        """0 or 1 for samples ``[..., 2]``; it has a gradient, which is zero."""
        return (1 + torch.sign(x[..., 0] - self.border)) / 2

    def log_weights(self, rewards: Tensor) -> Tensor:
        return rewards / self.tau if self.tau else rewards.log()

    def draw_target(self, count: int, generator: torch.Generator) -> Tensor:
        """Samples of the tilted law, ``[count, 2]``, by rejection."""
        kept, found = [], 0
        most = 1 / self.tau if self.tau else 0.0
        while found < count:
            x = self.draw(CHUNK, generator)
            accepted = (self.log_weights(self.reward(x)) - most).exp()
            kept.append(x[torch.rand(CHUNK, generator=generator) < accepted])
            found += len(kept[-1])
        return torch.cat(kept)[:count]

    def base_probability(self) -> float:
        """Of the reward, without a tilt."""
        return self._paid().mean().item()

    def target_probability(self) -> float:
        """Of the reward, under the tilted law."""
        rest, more = self._weights()
        paid = self.base_probability()
        return (rest + more) * paid / (rest + more * paid)

    def target_modes(self) -> Tensor:
        """Share of every mode under the tilted law, float64 ``[modes]``."""
        rest, more = self._weights()
        shares = rest + more * self._paid()
        return shares / shares.sum()

    def _paid(self) -> Tensor:
        """The reward's probability in every mode."""
        away = (self.centres[:, 0].double() - self.border) / WIDTH
        return torch.special.ndtr(away)

    def _weights(self) -> tuple[float, float]:
        """The weight without a reward, and what a reward adds to it."""
        return (1.0, math.expm1(1 / self.tau)) if self.tau else (0.0, 1.0)

    # ---- on the way from noise ----------------------------------------------------------------------

    def score(self, schedule: Schedule, x: Tensor, t: Tensor) -> Tensor:
        """The score of noisy samples ``[rows, 2]`` at levels ``[rows]`` that are all the same."""
        alpha, sigma = schedule.alpha(t[0]), schedule.sigma(t[0])
        variance = (alpha * WIDTH).square() + sigma.square()
        centres = alpha * self.centres
        near = (x @ centres.T - centres.square().sum(1) / 2) / variance
        return (near.softmax(1) @ centres - x) / variance

    def log_h(self, schedule: Schedule, x: Tensor, t: float) -> Tensor:
        """``log E[weight(x0) | x]`` for x ``[rows, 2]`` at a level: h of Doob's transform, exactly.

        Given x and its mode, x0 is normal with variance ``w^2 sigma^2 / (alpha^2 w^2 + sigma^2)`` and mean
        ``alpha w^2 x + sigma^2 mu_k`` over the same.
        """
        alpha, sigma = (
            f(torch.tensor(t, dtype=torch.float64)).item() for f in (schedule.alpha, schedule.sigma)
        )
        both = (alpha * WIDTH) ** 2 + sigma**2
        centres = alpha * self.centres
        modes = ((x @ centres.T - centres.square().sum(1) / 2) / both).log_softmax(1)
        means = (alpha * WIDTH**2 * x[:, :1] + sigma**2 * self.centres[:, 0]) / both
        away = (means - self.border) / (WIDTH * sigma / math.sqrt(both))
        paid = (modes + torch.special.log_ndtr(away)).logsumexp(1)
        rest, more = self._weights()
        paid = paid + math.log(more)
        return torch.logaddexp(paid, torch.zeros_like(paid)) if rest else paid
