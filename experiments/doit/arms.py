"""Tier 2: ways to act with a frozen behaviour and a critic, each with the same number of settings to try."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from flashlla.models.diffusion import DDIM

from .actor import SCHEDULE, Actor
from .guidance import (
    ByValue,
    Doob,
    Problem,
    Resampling,
    RewardGradient,
    RollOut,
    best,
    one_step,
    standardised,
)

ETA = 0.6  # of guided arms
TAU = 0.5  # of DOIT's weights
WINDOW = (0.05, 0.6)  # not the first step, and not what is behind 60 % of the way
STRENGTHS = (0.1, 0.3, 1.0)  # that DOIT and TFG try
TEMPERATURES = (0.25, 0.5, 1.0)  # that SVDD and FK-SMC try
NOISES = (0.3, 0.6, 1.0)  # eta that the unguided arms try


@dataclass(frozen=True)
class Judge:
    """What a chunk is worth.

    Attributes:
        value: ``value(states, chunks)``.
        spread: of values among what the behaviour does in a state.
    """

    value: Callable[[Tensor, Tensor], Tensor]
    spread: float


class Budget(NamedTuple):
    """``particles`` that the best is taken of, ``candidates`` of DOIT, ``children`` of SVDD's and Proto's."""

    particles: int
    candidates: int
    children: int


class Act(NamedTuple):
    """Chunks ``[states, length, actions]`` in [-1, 1], particles as sampled, the problem with its counts."""

    chunks: Tensor
    particles: Tensor
    problem: Problem


def act(
    arm: str,
    setting: float,
    actor: Actor,
    judge: Judge,
    budget: Budget,
    states: Tensor,
    seeds: tuple[int, int],
) -> Act:
    """What an arm does in states ``[count, states]``.

    Args:
        seeds: of the noise that all arms share, and of candidates.
    """
    device = states.device
    shared, own = (torch.Generator(device).manual_seed(seed) for seed in seeds)
    count = 1 if arm == "base" else budget.particles
    eta = setting if arm in ("base", "best") else ETA
    tau = setting if arm in ("svdd", "fk") else TAU

    def rewards(clean: Tensor) -> Tensor:
        rows = states.repeat_interleave(clean.shape[0] * clean.shape[1] // len(states), 0)
        return judge.value(rows.view(*clean.shape[:2], -1), clean.clamp(-1, 1))

    sampler = DDIM(SCHEDULE, "eps", eta=eta)
    problem = Problem(sampler, actor.given(states), rewards, partial(standardised, tau=tau))
    options = ARMS[arm].guidance(problem, setting, actor, judge, budget, own)
    noise = actor.noise(len(states) * count, shared)
    path = sampler.sample(problem.network, noise, actor.times, generator=shared, **options)
    particles = path.sample.unflatten(0, (len(states), count))
    allowed = particles.clamp(-1, 1)
    chosen = allowed[:, 0] if count == 1 else best(allowed, problem.reward(allowed))
    return Act(chosen, particles, problem)


def _plain(problem, setting, actor, judge, budget, generator):
    return {}


def _tfg(problem, setting, actor, judge, budget, generator):
    guide = RewardGradient(problem, setting / (TAU * judge.spread))
    return {"guide": guide, "input_gradient": True}


def _doob(problem, setting, actor, judge, budget, generator, *, jacobian=True, proto=False):
    ahead = RollOut(actor.times, generator) if proto else one_step
    count = budget.children if proto else budget.candidates
    guide = Doob(problem, ahead, count, generator, setting, jacobian, WINDOW)
    return {"guide": guide, "input_gradient": jacobian}


def _svdd(problem, setting, actor, judge, budget, generator):
    return {"choose": ByValue(problem, budget.children, generator)}


def _fk(problem, setting, actor, judge, budget, generator):
    return {"choose": Resampling(problem, budget.particles, generator)}


class Arm(NamedTuple):
    """Options of the sampler, and the settings that are tried."""

    guidance: Callable[..., dict]
    settings: tuple[float, ...]


ARMS = {
    "base": Arm(_plain, NOISES),
    "best": Arm(_plain, NOISES),
    "tfg": Arm(_tfg, STRENGTHS),
    "svdd": Arm(_svdd, TEMPERATURES),
    "fk": Arm(_fk, TEMPERATURES),
    "practical": Arm(_doob, STRENGTHS),
    "free": Arm(partial(_doob, jacobian=False), STRENGTHS),
    "proto": Arm(partial(_doob, proto=True), STRENGTHS),
}
