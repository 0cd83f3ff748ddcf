"""Samplers: from noise to a sample in steps that are Gaussians, with their log-probabilities.

Every step goes from level t to a lower one, ``next_t``. The network's prediction is split into x0 and eps,
and the next state is normal around ``alpha(next_t) x0 + c eps``. How c and the standard deviation depend on
the levels is all that samplers differ in.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .schedules import Schedule, check_prediction

Network = Callable[[Tensor, Tensor], Tensor]
SMALLEST_ALPHA = 1e-8  # below it, what eps says of x0 is lost in rounding


class Step(NamedTuple):
    """What is known in front of a step, ``[batch, ...]`` each where it is a tensor.

    Attributes:
        x: the state.
        t, next_t: its level, and that of the next state.
        x0, eps: clean sample and noise that the network predicts.
        mean, std: of the next state. All its numbers are independent.
        gain: with a score that is higher by d, the mean would be higher by ``gain * d``. Infinite where
            alpha(t) is 0.
    """

    x: Tensor
    t: float
    next_t: float
    x0: Tensor
    eps: Tensor
    mean: Tensor
    std: float
    gain: float

    def log_prob(self, state: Tensor) -> Tensor:
        """Log-density of a next state, summed over its numbers, ``[batch]``; 0 where nothing is drawn."""
        if self.std == 0:
            return state.new_zeros(len(state))
        errors = ((state - self.mean) / self.std).square().flatten(1)
        return -errors.sum(1) / 2 - errors.shape[1] * (math.log(self.std) + math.log(2 * math.pi) / 2)

    def candidates(self, count: int, *, generator: torch.Generator, antithetic: bool = False) -> Tensor:
        """Next states to choose from, ``[batch, count, ...]``; antithetic ones lie in pairs around the mean.

        Raises:
            ValueError: antithetic states of an odd number.
        """
        if antithetic and count % 2:
            raise ValueError(f"count={count} must be even: antithetic states come in pairs")
        half = count // 2 if antithetic else count
        shape = (len(self.x), half, *self.x.shape[1:])
        noise = torch.randn(shape, generator=generator, device=self.x.device, dtype=self.x.dtype)
        noise = torch.cat([-noise, noise], 1) if antithetic else noise
        return self.mean[:, None] + self.std * noise


class Trajectory(NamedTuple):
    """States that a sampler went through, and the Gaussians that they were drawn from.

    Attributes:
        times: levels, float64 ``[steps + 1]``, on the CPU.
        states: ``[batch, steps + 1, ...]``, the noise first.
        means: ``[batch, steps, ...]``.
        stds: float64 ``[steps]``, on the CPU.
        log_probs: ``[batch, steps]``, summed over the numbers of a state; 0 for steps that draw nothing.
    """

    times: Tensor
    states: Tensor
    means: Tensor
    stds: Tensor
    log_probs: Tensor

    @property
    def sample(self) -> Tensor:
        """The last states, ``[batch, ...]``."""
        return self.states[:, -1]

    def rows(self, index: Tensor | slice) -> Trajectory:
        """Some samples of the batch."""
        states, means, log_probs = (x[index] for x in (self.states, self.means, self.log_probs))
        return Trajectory(self.times, states, means, self.stds, log_probs)


@dataclass(frozen=True)
class Sampler(ABC):
    """What the samplers share.

    Attributes:
        schedule: that the network was trained with.
        prediction: what the network predicts, one of ``schedules.PREDICTIONS``.

    Raises:
        ValueError: an unknown prediction, or an option out of range.
    """

    schedule: Schedule
    prediction: str

    def __post_init__(self):
        check_prediction(self.prediction)

    @abstractmethod
    def _noise(self, t: Tensor, next_t: Tensor) -> tuple[Tensor, Tensor]:
        """The weight of eps in the mean, and the standard deviation, for 0-dim levels in float64."""

    def step(self, model: Network, x: Tensor, t: float, next_t: float) -> Step:
        """One step, not yet drawn; differentiable in ``x`` and in the weights.

        Args:
            model: ``model(x, level)`` with levels ``[batch]``; conditions are its own affair.
            x: ``[batch, ...]``, float32 or float64.

        Raises:
            ValueError: a prediction that has not the shape of x.
        """
        predicted = model(x, torch.full((len(x),), t, dtype=x.dtype, device=x.device))
        _check_shape("the prediction of the model", predicted, x)
        now, then = (torch.tensor(level, dtype=torch.float64) for level in (t, next_t))
        x0, eps = self.schedule.split(predicted.to(x.dtype), x, now, self.prediction)
        weight, std = self._noise(now, then)
        alpha, sigma = self.schedule.alpha, self.schedule.sigma
        gain = sigma(now) * (alpha(then) * sigma(now) / alpha(now) - weight)
        return Step(x, t, next_t, x0, eps, alpha(then) * x0 + weight * eps, std.item(), gain.item())

    @torch.no_grad()
    def sample(
        self,
        model: Network,
        x: Tensor,
        times: Tensor | Sequence[float],
        *,
        generator: torch.Generator | None = None,
        guide: Callable[[Step], Tensor] | None = None,
        choose: Callable[[Step], Tensor] | None = None,
        input_gradient: bool = False,
    ) -> Trajectory:
        """Go through all levels, without gradient.

        Args:
            model: as for :meth:`step`.
            x: the state at the first level, standard normal for level 1: ``[batch, ...]``, float32 or
                float64.
            times: falling levels, :func:`levels` for instance.
            generator: on the device of x; needed where steps draw.
            guide: gives another mean for a step; log-probabilities are those of the step that it makes.
            choose: gives the next state in place of a draw, one of :meth:`Step.candidates`, say. Its
                log-probability is that of a draw, not that of the choice.
            input_gradient: the guide may differentiate x0, eps and mean by ``step.x``, with
                ``torch.autograd.grad``. Freeze the weights, so that nothing is kept for their gradients.

        Raises:
            TypeError: x of another dtype.
            ValueError: levels that do not fall or leave [0, 1], a first one from which the prediction does
                not lead to x0, no generator where one is needed, wrong shapes.
        """
        self._check_start(x, times := torch.as_tensor(times, dtype=torch.float64, device="cpu"))
        states, means, stds, log_probs = [x], [], [], []
        for t, next_t in pairwise(times.tolist()):
            with torch.set_grad_enabled(input_gradient):
                step = self.step(model, x.detach().requires_grad_(input_gradient), t, next_t)
                mean = step.mean if guide is None else guide(step)
            _check_shape("the mean that guide gives", mean, x)
            tensors = {"x": step.x, "x0": step.x0, "eps": step.eps, "mean": mean}
            step = step._replace(**{name: tensor.detach() for name, tensor in tensors.items()})
            x = self._draw(step, generator) if choose is None else choose(step)
            _check_shape("the state that choose gives", x, step.mean)
            states.append(x)
            means.append(step.mean)
            stds.append(step.std)
            log_probs.append(step.log_prob(x))
        states, means, log_probs = (torch.stack(column, 1) for column in (states, means, log_probs))
        return Trajectory(times, states, means, torch.tensor(stds, dtype=torch.float64), log_probs)

    def replay(
        self, model: Network, trajectory: Trajectory, steps: Iterable[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Means and log-probabilities of stored steps under a model, without a guide; differentiable in it.

        Half the squared distance of two models' means over the squared standard deviation is the KL between
        their steps.

        Args:
            model: as for :meth:`step`, with conditions of the rows of the trajectory.
            steps: numbers of the steps, counted from 0; None means all. Each is one call of the model.

        Returns:
            ``[batch, steps, ...]`` and ``[batch, steps]``.

        Raises:
            IndexError: a step that the trajectory does not have.
        """
        times = trajectory.times.tolist()
        means, log_probs = [], []
        for i in range(len(times) - 1) if steps is None else steps:
            if not 0 <= i < len(times) - 1:
                raise IndexError(f"step {i} must be 0 to {len(times) - 2}: the trajectory has no other")
            step = self.step(model, trajectory.states[:, i], times[i], times[i + 1])
            means.append(step.mean)
            log_probs.append(step.log_prob(trajectory.states[:, i + 1]))
        return torch.stack(means, 1), torch.stack(log_probs, 1)

    def _draw(self, step: Step, generator: torch.Generator | None) -> Tensor:
        if step.std == 0:
            return step.mean
        if generator is None:
            raise ValueError(f"{self} draws noise; pass generator=torch.Generator({str(step.x.device)!r})")
        return step.candidates(1, generator=generator)[:, 0]

    def _check_start(self, x: Tensor, times: Tensor) -> None:
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"x has dtype {x.dtype}; use float32 or float64, and autocast inside the model")
        falling = times.dim() == 1 and len(times) > 1 and bool((times.diff() < 0).all())
        if not falling or times[0] > 1 or times[-1] < 0:
            raise ValueError(f"times={times.tolist()} must fall within [0, 1]; levels(steps) makes some")
        first = self.schedule.alpha(times[0]).item()
        if self.prediction in ("eps", "score") and first < SMALLEST_ALPHA:
            raise ValueError(
                f"times[0]={times[0].item()} has alpha {first:.0e}, and prediction={self.prediction!r} says "
                "nothing of x0 there; begin below it, or predict the velocity"
            )


@dataclass(frozen=True)
class DDIM(Sampler):
    """Denoising diffusion implicit models (arXiv 2010.02502, equations 12 and 16), for any schedule.

    With eta 0 nothing is drawn, and fine steps follow the ordinary differential equation of the probability
    flow; in a rectified flow it is Euler's method for it. With eta 1 a step is the posterior
    ``p(next | x, x0)``: ancestral sampling.

    Attributes:
        eta: share of the ancestral standard deviation, in [0, 1].
    """

    eta: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta} must lie in [0, 1]; 0 draws nothing, 1 is ancestral sampling")

    def _noise(self, t: Tensor, next_t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule.alpha, self.schedule.sigma
        ratio = alpha(t) / alpha(next_t)
        added = sigma(t).square() - (ratio * sigma(next_t)).square()  # the variance from next_t to t
        std = self.eta * sigma(next_t) / sigma(t) * added.sqrt()
        return (sigma(next_t).square() - std.square()).clamp(min=0.0).sqrt(), std  # rounding goes below 0


@dataclass(frozen=True)
class FlowSDE(Sampler):
    """The stochastic equation with the marginals of the flow (Flow-GRPO, arXiv 2505.05470).

    ``dx = [v + g^2 / (2 sigma) eps] dt + g dW`` by Euler-Maruyama, v the velocity in time. ``g`` is ``noise
    sqrt(sigma / alpha)``, which in a rectified flow is the paper's ``noise sqrt(t / (1 - t))``; other
    schedules are our extension. Where t is 1, alpha is that of the next level, as the authors' code has it.
    With noise 0 nothing is drawn, and it is DDIM with eta 0. The last step draws as well.

    Attributes:
        noise: at least 0.
    """

    noise: float = 0.7

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise={self.noise} must be at least 0 and finite; 0 draws nothing")

    def _noise(self, t: Tensor, next_t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.schedule.sigma(t)
        alpha = self.schedule.alpha(next_t if t == 1 else t)
        variance = self.noise**2 * sigma / alpha * (t - next_t)
        # x + v dt is alpha(next_t) x0 + sigma(next_t) eps, in a rectified flow exactly
        return self.schedule.sigma(next_t) - variance / (2 * sigma), variance.sqrt()


def _check_shape(name: str, given: Tensor, x: Tensor) -> None:
    if given.shape != x.shape:
        raise ValueError(f"{name} has shape {tuple(given.shape)}; expected that of x, {tuple(x.shape)}")
