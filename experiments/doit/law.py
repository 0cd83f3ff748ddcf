"""Tier 1: which sampler draws from the tilted law, and at what cost."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flashlla.models import training
from flashlla.models.diffusion import DDIM, LinearVP, Step, levels

from .guidance import ByValue, Doob, Problem, Resampling, RewardGradient, RollOut, best, one_step, tweedie
from .metrics import mode_divergence, sliced_wasserstein
from .mixture import Mixture

if TYPE_CHECKING:
    from .run import Trial

LAST = 1e-3  # level at which all samplers end
SCHEDULE = LinearVP()
POINTS = 400  # of a sampler, in a figure
PAIRS = 4  # of target draws, whose mean distance is the floor
PROBABILITIES = (0.375, 1e-2, 1e-3)  # of the events
GRADIENT_LEVEL = 0.7  # where sigma is above 0.99
GRADIENT_POINTS, GRADIENT_COUNTS = 64, (8, 32, 128, 512)
STREAMS = ("start", "steps", "candidates", "target", "gradient")  # of random numbers


@dataclass(frozen=True)
class Cell:
    """One sampler with its settings, a row of the table.

    Attributes:
        name: what readers know it by.
        method: a key of METHODS.
        coarse: with as many steps and samples as full roll-outs can afford.
        count: candidates, or samples to choose from.
        gamma, window: of guidance.
        rho: probability of the event that the target is conditioned on; None: the tilt ``exp(R / tau)``.
    """

    name: str
    method: str
    coarse: bool = False
    count: int = 0
    gamma: float = 1.0
    window: tuple[float, float] = (0.0, 1.0)
    rho: float | None = None


CELLS = (
    Cell("base", "base"),
    Cell("exact h", "exact"),
    Cell("Practical", "practical", count=32),
    Cell("Practical, M=256", "practical", count=256),
    Cell("Practical, no Jacobian", "free", count=32),
    Cell("Practical, gamma=0", "practical", count=32, gamma=0.0),
    Cell("Practical, no steps", "practical", count=32, window=(0.0, 0.0)),
    Cell("Practical, gamma=0.5", "practical", count=32, gamma=0.5),
    Cell("Practical, first 60 %", "practical", count=32, window=(0.0, 0.6)),
    Cell("Practical, last 60 %", "practical", count=32, window=(0.4, 1.0)),
    Cell("Practical, gamma=0.5, last 60 %", "practical", count=32, gamma=0.5, window=(0.4, 1.0)),
    Cell("Tweedie lookahead", "tweedie", count=32),
    Cell("TFG", "tfg"),
    Cell("SVDD", "svdd", count=32),
    Cell("FK-SMC", "fk"),
    Cell("best of 4", "best", count=4),
    Cell("base", "base", coarse=True),
    Cell("exact h", "exact", coarse=True),
    Cell("Practical", "practical", coarse=True, count=32),
    Cell("Proto, M=8", "proto", coarse=True, count=8),
    Cell("Proto", "proto", coarse=True, count=32),
    Cell("Proto, M=128", "proto", coarse=True, count=128),
    Cell("Proto, half the steps", "proto_half", coarse=True, count=32),
    Cell("Proto, no Jacobian", "proto_free", coarse=True, count=32),
    *(Cell("exact h", "exact", coarse=True, rho=rho) for rho in PROBABILITIES),
    *(Cell("Proto", "proto", coarse=True, count=32, rho=rho) for rho in PROBABILITIES),
)


def rows(trial: Trial) -> Iterator[dict[str, Any]]:
    """``kind`` ``sampler``, one for each cell, ``target`` with samples of it, and ``gradient``, one for each
    number of roll-outs.
    """
    bases: dict[bool, Tensor] = {}
    for cell in CELLS:
        run, begun = Run.of(cell, trial), time.perf_counter()
        samples = run.samples()
        if cell.method == "base":
            bases[cell.coarse] = samples
        seconds = time.perf_counter() - begun
        row = run.measure(samples, bases[cell.coarse])
        yield {"kind": "sampler", **row, "sampling_seconds": seconds, "points": _points(samples, trial)}
    target = Mixture(tau=trial.tau).draw_target(POINTS, _generator(trial.seed, "target"))
    yield {"kind": "target", "points": _points(target, trial)}
    yield from _gradient_errors(trial)


@dataclass(frozen=True)
class Run:
    """A cell with sizes: ``number`` samples in ``steps`` steps."""

    cell: Cell
    mixture: Mixture
    number: int
    steps: int
    seed: int
    problem: Problem

    @classmethod
    def of(cls, cell: Cell, trial: Trial) -> Run:
        mixture = Mixture(tau=trial.tau)
        if cell.rho is not None:
            mixture = Mixture.with_probability(cell.rho, tau=0.0)
        number, steps = (
            (trial.coarse_samples, trial.coarse_steps) if cell.coarse else (trial.samples, trial.steps)
        )
        if cell.method == "proto_half":
            steps = max(1, steps // 2)
        return cls(cell, mixture, number, steps, trial.seed, problem(mixture))

    def generator(self, stream: str) -> torch.Generator:
        return _generator(self.seed, stream)

    def samples(self) -> Tensor:
        """``[number, 2]``. All cells begin from the same noise, and steps have the same one."""
        count = self.cell.count if self.cell.method == "best" else 1
        x = torch.randn(self.number * count, 2, generator=self.generator("start"))
        options, finish = METHODS[self.cell.method](self)
        path = self.problem.sampler.sample(
            self.problem.network, x, self.times, generator=self.generator("steps"), **options
        )
        return finish(path.sample)

    @property
    def times(self) -> Tensor:
        return levels(self.steps, end=LAST)

    def measure(self, samples: Tensor, base: Tensor) -> dict[str, Any]:
        generator, mixture, problem = self.generator("target"), self.mixture, self.problem
        draws = [mixture.draw_target(self.number, generator) for _ in range(2 * PAIRS)]
        target, others = draws[:PAIRS], draws[PAIRS:]
        pairs = [sliced_wasserstein(x, y) for x, y in zip(target, others, strict=True)]
        return {
            "sampler": self.cell.name,
            "grid": "coarse" if self.cell.coarse else "fine",
            "rho": self.cell.rho,
            "candidates": self.cell.count,
            "gamma": self.cell.gamma,
            "steps": self.steps,
            "number": self.number,
            "distance": sum(sliced_wasserstein(samples, x) for x in target) / PAIRS,
            "floor": sum(pairs) / PAIRS,
            "mode_kl": mode_divergence(samples, mixture) if mixture.tau else None,
            "paid": mixture.reward(samples).mean().item(),
            "target_paid": mixture.target_probability(),
            "moved": (samples - base).abs().max().item() if len(samples) == len(base) else None,
            "network_calls": problem.network_rows / self.number,
            "products": problem.product_rows / self.number,
            "reward_calls": problem.reward_rows / self.number,
        }


def _points(samples: Tensor, trial: Trial) -> list[float] | None:
    """Some samples of the first seed for a figure, x and y in turn."""
    return [round(z, 3) for z in samples[:POINTS].flatten().tolist()] if trial.seed == 0 else None


def problem(mixture: Mixture) -> Problem:
    """The mixture's own score as the network, ancestral steps."""
    sampler = DDIM(SCHEDULE, "score", eta=1.0)
    return Problem(sampler, lambda x, t: mixture.score(SCHEDULE, x, t), mixture.reward, mixture.log_weights)


def _generator(seed: int, stream: str) -> torch.Generator:
    return torch.Generator().manual_seed(training.batch_seed(seed, STREAMS.index(stream), 0))


# ---- methods: options of the sampler, and what becomes of its samples -------------------------------


def _base(run: Run):
    return {}, lambda samples: samples


def _exact(run: Run):
    def guide(step: Step) -> Tensor:
        return step.mean + step.gain * exact_gradient(run.mixture, step.x, step.t)

    return {"guide": guide}, lambda samples: samples


@torch.enable_grad()
def exact_gradient(mixture: Mixture, x: Tensor, t: float) -> Tensor:
    """``grad log h`` at x ``[rows, 2]``."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(mixture.log_h(SCHEDULE, x, t).sum(), x)[0]


def _doob(lookahead, jacobian: bool):
    def method(run: Run):
        generator = run.generator("candidates")
        ahead = RollOut(run.times, generator) if lookahead is RollOut else lookahead
        cell = run.cell
        guide = Doob(run.problem, ahead, cell.count, generator, cell.gamma, jacobian, cell.window)
        return {"guide": guide, "input_gradient": jacobian}, lambda samples: samples

    return method


def _tfg(run: Run):
    guide = RewardGradient(run.problem, 1 / run.mixture.tau)
    return {"guide": guide, "input_gradient": True}, lambda samples: samples


def _svdd(run: Run):
    choose = ByValue(run.problem, run.cell.count, run.generator("candidates"))
    return {"choose": choose}, lambda samples: samples


def _fk(run: Run):
    choose = Resampling(run.problem, run.number, run.generator("candidates"))
    return {"choose": choose}, choose.finish


def _best(run: Run):
    def finish(samples: Tensor) -> Tensor:
        several = samples.unflatten(0, (-1, run.cell.count))
        return best(several, run.problem.reward(several))

    return {}, finish


METHODS = {
    "base": _base,
    "exact": _exact,
    "practical": _doob(one_step, jacobian=True),
    "free": _doob(one_step, jacobian=False),
    "tweedie": _doob(tweedie, jacobian=True),
    "proto": _doob(RollOut, jacobian=True),
    "proto_half": _doob(RollOut, jacobian=True),
    "proto_free": _doob(RollOut, jacobian=False),
    "tfg": _tfg,
    "svdd": _svdd,
    "fk": _fk,
    "best": _best,
}


# ---- the error of the estimated gradient ------------------------------------------------------------


def _gradient_errors(trial: Trial) -> Iterator[dict[str, Any]]:
    """RMS error of Proto's ``grad log h`` at high noise, by the number of roll-outs.

    Many roll-outs are made of each point; smaller numbers of them are parts of these.
    """
    mixture, most = Mixture(tau=trial.tau), max(GRADIENT_COUNTS)
    generator, setting = _generator(trial.seed, "gradient"), problem(mixture)
    times = levels(trial.gradient_steps, start=GRADIENT_LEVEL, end=LAST)
    level = torch.full((GRADIENT_POINTS,), GRADIENT_LEVEL)
    clean = mixture.draw(GRADIENT_POINTS, generator)
    x = SCHEDULE.noised(clean, torch.randn(GRADIENT_POINTS, 2, generator=generator), level)
    exact = exact_gradient(mixture, x, GRADIENT_LEVEL)
    step = setting.sampler.step(setting.network, x.requires_grad_(), *times[:2].tolist())
    with torch.no_grad():
        states = step.candidates(most, generator=generator)
        rewards = setting.reward(RollOut(times, generator)(setting, step, states))
        noise = (states - step.mean[:, None]) / step.std
    weights = mixture.log_weights(rewards).exp()
    for count in GRADIENT_COUNTS:
        parts = weights.unflatten(1, (-1, count)), noise.unflatten(1, (-1, count))
        pulls = torch.einsum("bpm,bpmd->bpd", *parts) / parts[0].sum(2, keepdim=True) / step.std
        errors = [
            torch.autograd.grad(step.mean, x, pull, retain_graph=True)[0] - exact for pull in pulls.unbind(1)
        ]
        yield {
            "kind": "gradient",
            "candidates": count,
            "sigma": SCHEDULE.sigma(level[0]).item(),
            "error": math.sqrt(torch.stack(errors).square().sum(-1).mean().item()),
            "norm": math.sqrt(exact.square().sum(-1).mean().item()),
        }
