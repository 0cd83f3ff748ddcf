"""Tier 2: a diffusion transformer that writes chunks of actions, given a state."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flashlla.models.diffusion import DDIM, LinearVP, TrajectoryConfig, TrajectoryTransformer, levels

from ..common.training import History, train
from .episodes import Chunks

SCHEDULE = LinearVP()
LAST = 1e-3  # level at which samplers end


def actor_config(mixer: str, states: int, actions: int, dim: int, depth: int, heads: int) -> TrajectoryConfig:
    """Actions are tokens, and the state is what the whole chunk stands under.

    Raises:
        ValueError: sizes that do not fit.
    """
    return TrajectoryConfig(
        channels=actions, condition_dim=states, dim=dim, depth=depth, heads=heads, mixer=mixer
    )


class Actor(NamedTuple):
    """A frozen network and what states are brought to mean 0 and spread 1 with."""

    network: TrajectoryTransformer
    center: Tensor
    spread: Tensor
    length: int
    steps: int

    @property
    def times(self) -> Tensor:
        return levels(self.steps, end=LAST)

    def given(self, states: Tensor):
        """The network for states ``[count, ...]``, of which each has as many rows as any other."""
        states = (states - self.center) / self.spread

        def network(x: Tensor, level: Tensor) -> Tensor:
            return self.network(x, level, condition=states.repeat_interleave(len(x) // len(states), 0))

        return network

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        shape = (rows, self.length, self.network.config.channels)
        return torch.randn(shape, generator=generator, device=self.center.device)

    def draw(self, states: Tensor, count: int, generator: torch.Generator, eta: float = 1.0) -> Tensor:
        """Chunks of the behaviour, ``[states, count, length, actions]``, in [-1, 1]."""
        path = DDIM(SCHEDULE, "eps", eta=eta).sample(
            self.given(states),
            self.noise(len(states) * count, generator),
            self.times,
            generator=generator,
        )
        return path.sample.unflatten(0, (-1, count)).clamp(-1, 1)


def learn(
    chunks: Chunks,
    folder: Path,
    *,
    config: TrajectoryConfig,
    sampling_steps: int,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
) -> tuple[Actor, History]:
    """Fit the behaviour by the error of the noise; what was interrupted goes on from ``folder``."""
    torch.manual_seed(seed)
    device = chunks.states.device
    network = TrajectoryTransformer(config).to(device)
    center, spread = chunks.states.mean(0), chunks.states.std(0).clamp(min=1e-3)
    actor = Actor(network, center, spread, chunks.actions.shape[1], sampling_steps)

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        some = chunks.some(batch, generator)
        level = torch.empty(batch).uniform_(LAST, 1, generator=generator).to(device)
        eps = torch.randn(some.actions.shape, generator=generator).to(device)
        return some.states, SCHEDULE.noised(some.actions, eps, level), level, eps

    def loss(network: TrajectoryTransformer, batch: tuple[Tensor, ...]) -> Tensor:
        states, noisy, level, eps = batch
        return (actor.given(states)(noisy, level) - eps).square().mean()

    history = train(
        network,
        loss,
        draw,
        folder,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        optimizer="muon",
        weight_decay=0.0,
    )
    network.eval().requires_grad_(False)
    return actor, history
