"""Samplers that are guided by rewards: DOIT in its forms, and what it is compared with.

All are guides or choices of the samplers in :mod:`flashlla.models.diffusion`. They ask a :class:`Problem`,
which counts what they ask. Rows that belong together lie together: candidates of a sample, and particles of a
state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flashlla.models.diffusion import Sampler, Step
from flashlla.models.diffusion.samplers import Network

FLOOR = 1e-6  # of the mean weight that a gradient of log h is divided by
SMALLEST_SPREAD = 1e-6  # of rewards that are standardised


def standardised(rewards: Tensor, tau: float) -> Tensor:
    """Log-weights as the authors' code has them: rewards ``[batch, count]`` in units of their spread among
    the candidates of a row, over tau.
    """
    spread = rewards.std(1, keepdim=True).clamp(min=SMALLEST_SPREAD)
    return (rewards - rewards.mean(1, keepdim=True)) / (spread * tau)


def shares(log_weights: Tensor, floor: float = FLOOR) -> Tensor:
    """Weights ``[batch, count]`` over their sum, or over ``count * floor`` where that is more."""
    least = math.log(log_weights.shape[1] * floor)
    return (log_weights - log_weights.logsumexp(1, keepdim=True).clamp(min=least)).exp()


@dataclass
class Problem:
    """A frozen model, a reward, and how often each was asked.

    Attributes:
        sampler: of the model.
        model: ``model(x, level)`` for any number of rows; conditions are repeated by the model itself.
        rewards: ``[batch, count, ...]`` clean samples to ``[batch, count]``.
        log_weights: of such rewards.
        network_rows, product_rows, reward_rows: rows that the model, vector-Jacobian products with it, and
            the reward were evaluated at.
    """

    sampler: Sampler
    model: Network
    rewards: Callable[[Tensor], Tensor]
    log_weights: Callable[[Tensor], Tensor]
    network_rows: int = 0
    product_rows: int = 0
    reward_rows: int = 0

    def network(self, x: Tensor, level: Tensor) -> Tensor:
        self.network_rows += len(x)
        return self.model(x, level)

    def reward(self, clean: Tensor) -> Tensor:
        self.reward_rows += clean.shape[0] * clean.shape[1]
        return self.rewards(clean)

    def gradient(self, output: Tensor, step: Step, direction: Tensor) -> Tensor:
        """``direction`` times the Jacobian of ``output`` with respect to the state."""
        self.product_rows += len(step.x)
        return torch.autograd.grad(output, step.x, direction)[0]

    def clean(self, x: Tensor, t: float) -> Tensor:
        """What the model takes rows ``[rows, ...]`` at a level for; one call."""
        level = torch.full((len(x),), t, dtype=x.dtype, device=x.device)
        parts = self.sampler.schedule.split(self.network(x, level), x, level, self.sampler.prediction)
        return parts.x0


# ---- lookahead: next states [batch, count, ...] to clean samples of that shape --------------------------

Lookahead = Callable[[Problem, Step, Tensor], Tensor]


def one_step(problem: Problem, step: Step, states: Tensor) -> Tensor:
    """DOIT-Practical's: with the noise that the model saw in the present state, and no further call."""
    alpha, sigma = _at(problem, step.next_t)
    return (states - sigma * step.eps.detach()[:, None]) / alpha


def tweedie(problem: Problem, step: Step, states: Tensor) -> Tensor:
    """With a call of the model at every candidate."""
    return problem.clean(states.flatten(0, 1), step.next_t).unflatten(0, states.shape[:2])


@dataclass(frozen=True)
class RollOut:
    """DOIT-Proto's: every candidate is followed to the end.

    Attributes:
        times: of the sampler.
        generator: of the noise on the way.
    """

    times: Tensor
    generator: torch.Generator

    def __call__(self, problem: Problem, step: Step, states: Tensor) -> Tensor:
        rest = self.times[self.times <= step.next_t]
        if len(rest) == 1:
            return states
        path = problem.sampler.sample(problem.network, states.flatten(0, 1), rest, generator=self.generator)
        return path.sample.unflatten(0, states.shape[:2])


def _at(problem: Problem, t: float) -> tuple[float, float]:
    schedule, level = problem.sampler.schedule, torch.tensor(t, dtype=torch.float64)
    return schedule.alpha(level).item(), schedule.sigma(level).item()


# ---- guides -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Doob:
    """DOIT (arXiv 2602.16198, section 4, Algorithms 1 and 2): ``grad log h`` from rewards of candidates.

    With ``x' = mean + std z`` and weights w of what the candidates lead to, ``grad log h`` is the Jacobian of
    the mean, transposed, times ``sum_m wbar_m z_m / std``. Jacobian-free, the mean moves by
    ``std sum_m wbar_m z_m``, which is the h-transform at the next state (Stein's identity).

    Attributes:
        lookahead: from candidates to clean samples.
        count: candidates.
        generator: theirs, apart from that of the sampler.
        gamma: strength.
        jacobian: with the product through the network; needs ``input_gradient``.
        window: shares of the way between which steps are guided.
        antithetic: candidates in pairs around the mean.
    """

    problem: Problem
    lookahead: Lookahead
    count: int
    generator: torch.Generator
    gamma: float = 1.0
    jacobian: bool = True
    window: tuple[float, float] = (0.0, 1.0)
    antithetic: bool = True

    def __call__(self, step: Step) -> Tensor:
        if not self.window[0] <= 1 - step.t < self.window[1]:
            return step.mean
        pull = self.pull(step)
        if not self.jacobian:
            return step.mean + self.gamma * step.std * pull
        gradient = self.problem.gradient(step.mean, step, pull / step.std)
        return step.mean + self.gamma * step.gain * gradient

    @torch.no_grad()
    def pull(self, step: Step) -> Tensor:
        """``sum_m wbar_m z_m``, ``[batch, ...]``."""
        states = step.candidates(self.count, generator=self.generator, antithetic=self.antithetic)
        rewards = self.problem.reward(self.lookahead(self.problem, step, states))
        weights = shares(self.problem.log_weights(rewards))
        noise = (states - step.mean[:, None]) / step.std
        return torch.einsum("bm,bm...->b...", weights, noise)


@dataclass(frozen=True)
class RewardGradient:
    """Guidance by the gradient of the reward at the predicted clean sample: of TFG (arXiv 2409.15761),
    variance guidance alone. Where the reward's gradient is zero it changes nothing.

    Attributes:
        scale: what the gradient is multiplied by, 1 / tau for the weight ``exp(R / tau)``.
    """

    problem: Problem
    scale: float

    def __call__(self, step: Step) -> Tensor:
        reward = self.problem.reward(step.x0[:, None])[:, 0]
        gradient = self.problem.gradient(reward, step, torch.ones_like(reward))
        return step.mean + self.scale * step.gain * gradient


# ---- choices ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ByValue:
    """SVDD (arXiv 2408.08252): one candidate, drawn by the weights of what the model takes them for."""

    problem: Problem
    count: int
    generator: torch.Generator

    def __call__(self, step: Step) -> Tensor:
        states = step.candidates(self.count, generator=self.generator)
        rewards = self.problem.reward(tweedie(self.problem, step, states))
        weights = self.problem.log_weights(rewards).softmax(1)
        chosen = torch.multinomial(weights, 1, generator=self.generator)[:, 0]
        return states[torch.arange(len(states), device=states.device), chosen]


@dataclass
class Resampling:
    """Feynman-Kac steering (arXiv 2501.06848): particles with the weight of what the model takes them for,
    over that at the step before, are resampled where half of them would carry all the weight.

    Attributes:
        particles: rows that compete.
        generator: of resampling and of the steps.
    """

    problem: Problem
    particles: int
    generator: torch.Generator
    _level: Tensor | None = field(default=None, init=False)
    _weights: Tensor | None = field(default=None, init=False)

    def __call__(self, step: Step) -> Tensor:
        rows = self._ancestors(step.x0, always=False)
        noise = torch.randn(step.x.shape, generator=self.generator, device=step.x.device, dtype=step.x.dtype)
        return step.mean[rows] + step.std * noise

    def finish(self, samples: Tensor) -> Tensor:
        """The samples at the end, resampled by what weight is left."""
        return samples[self._ancestors(samples, always=True)]

    def _ancestors(self, clean: Tensor, *, always: bool) -> Tensor:
        """Which rows go on; weights of a group that is resampled begin anew."""
        level = self.problem.log_weights(self.problem.reward(clean.unflatten(0, (-1, self.particles))))
        if self._level is None:
            self._level, self._weights = torch.zeros_like(level), torch.zeros_like(level)
        weights = (self._weights + level - self._level).softmax(1)
        few = 1 / weights.square().sum(1, keepdim=True) < self.particles / 2
        drawn = torch.multinomial(weights, self.particles, replacement=True, generator=self.generator)
        same = torch.arange(self.particles, device=clean.device).expand_as(drawn)
        chosen = torch.where(few | always, drawn, same)
        kept = self._weights + level - self._level
        self._weights = torch.where(few | always, torch.zeros_like(kept), kept)
        self._level = level.gather(1, chosen)
        first = self.particles * torch.arange(len(level), device=clean.device)[:, None]
        return (first + chosen).flatten()


def best(samples: Tensor, rewards: Tensor) -> Tensor:
    """Of samples ``[batch, count, ...]`` those with the highest of rewards ``[batch, count]``."""
    return samples[torch.arange(len(samples), device=samples.device), rewards.argmax(1)]
