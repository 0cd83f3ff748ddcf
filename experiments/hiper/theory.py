"""The theory of the paper where everything is exact: gradients of an enumerated plan-execute process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from flashlla.models.rl import (
    generalized_advantages,
    hierarchical_advantages,
    switch_advantages,
    termination_advantages,
)

from .toy import PlanExecute, Trajectories, Values, mean_and_variance

DECAYS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)  # lambda, of both levels and of the flat estimates alike
ENUMERATED = ((3, 2, 2), 3), ((2, 2, 3), 3), ((2, 2, 2), 4)  # (states, subgoals, actions), turns
LONG = ((6, 3, 3), 16)  # too many trajectories to enumerate
ERRORS = (0.0, 0.1, 0.2, 0.4)  # standard deviations of what is wrong in V_high


def estimates(
    process: PlanExecute, made: Trajectories, decay: float, values: Values | None = None
) -> dict[str, Tensor]:
    """Gradients of all trajectories, ``[rows, logits]`` each: HAE with the switch advantages of the paper and
    of the released code, and flat GAE with U of the state and the old subgoal, or with a value of the state.

    Args:
        decay: lambda everywhere.
        values: None means the exact ones.
    """
    low, high, kept, before = process.read(values or process.values(process.policy), made)
    discount, later = process.discount, torch.arange(process.horizon) > 0
    hae = hierarchical_advantages(
        made.rewards,
        made.switches,
        low,
        high,
        made.mask,
        discount=discount,
        low_decay=decay,
        high_decay=decay,
    )
    chances = process.policy.switch.softmax(-1)[made.states, made.old, 1]
    paper = switch_advantages(made.switches, chances, high, kept, made.mask)
    code = termination_advantages(made.rewards, made.switches, high, before, made.mask, discount=discount)

    def flat(baseline: Tensor) -> Tensor:
        found = generalized_advantages(made.rewards, baseline, made.mask, discount=discount, decay=decay)
        return process.scores(made, found * later, found, found)  # the first turn has nothing to keep

    return {
        "hae": process.scores(made, paper, hae.high, hae.low),
        "hae_code": process.scores(made, code * later, hae.high, hae.low),
        "flat": flat(before),
        "flat_state": flat(process.state_values(made)),
    }


def by_decay(process: PlanExecute, made: Trajectories, exact: bool) -> Iterator[dict[str, Any]]:
    """For every lambda and estimate its variance, the trace of the covariance, and its relative bias if the
    trajectories are all there are.
    """
    true = process.gradient()
    for decay in DECAYS:
        for name, scores in estimates(process, made, decay).items():
            mean, variance = mean_and_variance(scores, made.chances)
            bias = ((mean - true).norm() / true.norm()).item() if exact else None
            yield {"part": "decay", "decay": decay, "estimate": name, "bias": bias, "variance": variance}


def by_error(process: PlanExecute, made: Trajectories, seed: int) -> Iterator[dict[str, Any]]:
    """At lambda 1, relative biases under noise in V_high: of subgoals and actions in HAE, and of flat GAE."""
    values, true = process.values(process.policy), process.gradient()
    sizes = [logits.numel() for logits in process.policy]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(values.high.shape, generator=generator, dtype=torch.float64)
    for error in ERRORS:
        wrong = values._replace(
            high=values.high + error * noise, before=values.before + error * noise[..., None]
        )
        found = estimates(process, made, 1.0, wrong)
        hae, flat = (made.chances @ found[name] - true for name in ("hae", "flat"))
        _, subgoals, actions = hae.split(sizes)
        for name, bias in (("subgoals", subgoals), ("actions", actions), ("flat", flat)):
            yield {
                "part": "error",
                "error": error,
                "estimate": name,
                "bias": (bias.norm() / true.norm()).item(),
            }


def limits(seed: int) -> Iterator[dict[str, Any]]:
    """Largest differences between HAE and flat GAE, on random numbers, where both should be one: with one
    segment for the actions, and with a segment a turn for the subgoals.
    """
    generator = torch.Generator().manual_seed(seed)
    rewards, low, high = torch.randn(3, 64, 20, generator=generator, dtype=torch.float64)
    never = torch.zeros_like(rewards, dtype=torch.bool)
    for decay in DECAYS:
        options = {"low_decay": decay, "high_decay": decay}
        one = hierarchical_advantages(rewards, never, low, high, **options).low
        every = hierarchical_advantages(rewards, ~never, low, high, **options).high
        apart = [
            (found - generalized_advantages(rewards, values, decay=decay)).abs().max()
            for found, values in ((one, low), (every, high))
        ]
        yield {"part": "limit", "decay": decay, "difference": torch.stack(apart).max().item()}


def rows(instances: int, samples: int) -> list[dict[str, Any]]:
    """Rows of all parts, ``instance`` by instance.

    Args:
        instances: of each size, numbered from 0.
        samples: trajectories of each long process.
    """
    found = []
    for seed in range(instances):
        for sizes, turns in ENUMERATED:
            process = PlanExecute(sizes, turns, seed=seed, discount=0.9, dense=0.3)
            made, about = (
                process.enumerate(),
                {"instance": seed, "process": f"{turns} turns, {sizes[0]} states"},
            )
            found += [{**about, **row} for row in by_decay(process, made, exact=True)]
            found += [{**about, **row} for row in by_error(process, made, seed)]
        process = PlanExecute(*LONG, seed=seed)
        made = process.sample(samples, torch.Generator().manual_seed(seed))
        about = {"instance": seed, "process": "long"}
        found += [{**about, **row} for row in by_decay(process, made, exact=False)]
        found += [{"instance": seed, "process": "limits", **row} for row in limits(seed)]
    return [{"kind": "theory", **row} for row in found]
