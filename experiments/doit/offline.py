"""Tier 2: offline reinforcement learning with a frozen behaviour, on a smooth and on a quantised critic."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flashlla.models import training

from ..common.costs import costs
from . import actor as behaviour
from . import critic as values
from .actor import Actor, actor_config
from .arms import ARMS, ETA, Act, Budget, Judge, act
from .episodes import LEVELS, Chunks, Environment, Episodes, follow, mixed
from .pointmass import PointMass

if TYPE_CHECKING:
    from .run import Trial

SUPPORT = 8  # chunks of the behaviour for every next state of a backup
QUANTUM = 0.5  # of the quantised critic, in units of the spread of values within a state
TUNING, TEST = 1, 2  # streams of random numbers: settings are chosen on one and reported on the other
PROBES = 32  # states in which it is seen how far an arm moves the behaviour


def rows(trial: Trial, folder: Path) -> Iterator[dict[str, Any]]:
    """``kind`` ``offline``: a row for every arm on either critic."""
    environment, levels = source(trial, folder)
    data = mixed(levels, trial.quality)
    scores = [levels[level].returns.mean().item() for level in ("poor", "expert")]
    chunks = Chunks.of(data, trial.chunk).to(trial.device)
    actor, history = behaviour.learn(
        chunks,
        folder,
        config=actor_config(
            trial.mixer, environment.states, environment.actions, trial.dim, trial.depth, trial.heads
        ),
        sampling_steps=trial.sampling_steps,
        steps=trial.actor_steps,
        batch=trial.batch,
        learning_rate=trial.actor_rate,
        seed=trial.seed,
    )
    common = {"kind": "offline", "data_return": data.returns.mean().item(), **costs(actor.network, history)}
    bench = Bench(environment, actor, trial)
    for name, judge in _judges(trial, data, chunks, actor).items():
        probes = chunks.some(PROBES, _generator(trial, 3)).states
        for arm in arms_of(trial, name):
            row = bench.measure(arm, judge, probes)
            row["score"] = 100 * (row["return"] - scores[0]) / (scores[1] - scores[0])
            yield {**common, "critic": name, "arm": arm, "delta": QUANTUM * judge.spread, **row}


def arms_of(trial: Trial, critic: str) -> list[str]:
    """The base asks no critic, so it is measured once; full roll-outs are for a trial that asks for them."""
    return [
        arm
        for arm in ARMS
        if not (arm == "base" and critic == "quantised") and (arm != "proto" or trial.proto)
    ]


def source(trial: Trial, folder: Path) -> tuple[Environment, Mapping[str, Episodes]]:
    """The environment, and episodes of its controllers by level."""
    if trial.environment != "pointmass":
        from .locomotion import environment_and_episodes

        return environment_and_episodes(trial, folder.parent.parent / "locomotion")
    environment = PointMass()
    found = {}
    for stream, level in enumerate(LEVELS):
        controller = environment.controller(level, trial.episodes, _generator(trial, 10 + stream))
        found[level] = follow(environment, controller, trial.episodes, _seed(trial, 20 + stream))
    return environment, found


def _judges(trial: Trial, data: Episodes, chunks: Chunks, actor: Actor) -> dict[str, Judge]:
    """A critic, and the same in steps."""
    scale = values.RETURNS / (data.returns.max() - data.returns.min())
    generator = torch.Generator(chunks.states.device).manual_seed(_seed(trial, 4))
    pool = chunks.some(trial.pool, _generator(trial, 5))
    critic = values.learn(
        pool._replace(rewards=scale * pool.rewards),
        actor.draw(pool.next_states, SUPPORT, generator),
        width=trial.critic_width,
        steps=trial.critic_steps,
        batch=trial.batch,
        seed=trial.seed,
    )
    states = pool.states[:256]
    several = actor.draw(states, SUPPORT, generator)
    spread = critic(states[:, None].expand(-1, SUPPORT, -1), several).std(1).mean().item()

    def in_steps(states: Tensor, actions: Tensor) -> Tensor:
        return values.quantised(critic(states, actions), QUANTUM * spread)

    return {"smooth": Judge(critic, spread), "quantised": Judge(in_steps, spread)}


class Bench:
    """Runs arms in an environment."""

    def __init__(self, environment: Environment, actor: Actor, trial: Trial):
        self.environment, self.actor, self.trial = environment, actor, trial
        self.budget = Budget(trial.particles, trial.candidates, trial.children)

    def measure(self, arm: str, judge: Judge, probes: Tensor) -> dict[str, Any]:
        """An arm at the setting that was best on other episodes, and its cost for one decision."""
        trial, tried = self.trial, {}
        for setting in ARMS[arm].settings:
            tried[setting] = self.play(arm, setting, judge, trial.tuning_episodes, TUNING)["return"]
        setting = max(tried, key=tried.get)
        return {
            "setting": setting,
            "tuned_return": tried[setting],
            "moved": self.moved(arm, setting, judge, probes),
            **self.play(arm, setting, judge, trial.test_episodes, TEST),
        }

    def play(self, arm: str, setting: float, judge: Judge, count: int, stream: int) -> dict[str, float]:
        """Means over episodes, in which every chunk is played to its end."""
        environment, begun = self.environment, time.perf_counter()
        device = self.actor.center.device
        state = environment.reset(count, _seed(self.trial, 100 * stream)).to(device)
        total, value, calls = torch.zeros(count), [], []
        for decision in range(environment.horizon // self.trial.chunk):
            seeds = [_seed(self.trial, 1000 * stream + 2 * decision + i) for i in range(2)]
            found = act(arm, setting, self.actor, judge, self.budget, state, (seeds[0], seeds[1]))
            value.append(judge.value(state, found.chunks).mean().item())
            calls.append(_calls(found, count))
            for action in found.chunks.unbind(1):
                state, rewards, _ = environment.step(action.cpu())
                total += rewards
            state = state.to(device)
        means = {name: sum(c[name] for c in calls) / len(calls) for name in calls[0]}
        return {
            "return": total.mean().item(),
            "q": sum(value) / len(value),
            **means,
            "play_seconds": time.perf_counter() - begun,
        }

    def moved(self, arm: str, setting: float, judge: Judge, states: Tensor) -> float | None:
        """Largest difference of particles from those of the unguided sampler with the same noise."""
        if arm in ("base", "best"):
            return None
        seeds = (_seed(self.trial, 6), _seed(self.trial, 7))
        guided = act(arm, setting, self.actor, judge, self.budget, states, seeds).particles
        plain = act("best", ETA, self.actor, judge, self.budget, states, seeds).particles
        return (guided - plain).abs().max().item()


def _calls(found: Act, count: int) -> dict[str, float]:
    """Per decision."""
    problem = found.problem
    return {
        "network_calls": problem.network_rows / count,
        "products": problem.product_rows / count,
        "reward_calls": problem.reward_rows / count,
    }


def _seed(trial: Trial, stream: int) -> int:
    return training.batch_seed(trial.seed, stream, 2)


def _generator(trial: Trial, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(trial, stream))
