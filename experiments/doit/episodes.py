"""Tier 2: episodes of an environment, and the chunks of actions that policies and critics are about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

LEVELS = ("poor", "medium", "expert")  # of controllers
QUALITIES = {  # shares of the episodes of a data set
    "medium": {"medium": 1.0},
    "medium-replay": {"poor": 0.5, "medium": 0.5},
    "medium-expert": {"medium": 0.5, "expert": 0.5},
}
DISCOUNT = 0.99

Controller = Callable[[Tensor], Tensor]


class Environment(Protocol):
    """Many episodes side by side; actions are clamped to [-1, 1].

    Attributes:
        states, actions: numbers of a state and of an action.
        horizon: steps of an episode.
    """

    states: int
    actions: int
    horizon: int

    def reset(self, count: int, seed: int) -> Tensor:
        """Begin ``count`` episodes: ``[count, states]``."""

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States, rewards ``[count]``, and which episodes have ended; those stay and are paid nothing."""

    def controller(self, level: str, count: int, generator: torch.Generator) -> Controller:
        """A behaviour for so many episodes."""


class Episodes(NamedTuple):
    """``states`` ``[count, horizon + 1, ...]``, ``actions``, ``rewards`` and ``ended`` ``[count, horizon]``,
    the last of them behind each step.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    ended: Tensor

    @property
    def returns(self) -> Tensor:
        return self.rewards.sum(1)


def follow(environment: Environment, controller: Controller, count: int, seed: int) -> Episodes:
    """Episodes under a controller."""
    states, actions, rewards, ended = [environment.reset(count, seed)], [], [], []
    for _ in range(environment.horizon):
        actions.append(controller(states[-1]).clamp(-1, 1))
        state, reward, end = environment.step(actions[-1])
        states.append(state)
        rewards.append(reward)
        ended.append(end)
    return Episodes(*(torch.stack(column, 1) for column in (states, actions, rewards, ended)))


def mixed(levels: Mapping[str, Episodes], quality: str) -> Episodes:
    """A data set of a quality from as many episodes of every level."""
    parts = []
    for level, share in QUALITIES[quality].items():
        kept = int(share * len(levels[level].rewards))
        parts.append([column[:kept] for column in levels[level]])
    return Episodes(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


class Chunks(NamedTuple):
    """Rows: a state, the next ``length`` actions ``[rows, length, actions]``, their discounted rewards, the
    state behind them, and 1 where the episode goes on, else 0.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    next_states: Tensor
    going: Tensor

    @classmethod
    def of(cls, episodes: Episodes, length: int) -> Chunks:
        """All chunks of episodes that begin before their ends."""
        steps = episodes.rewards.shape[1]
        starts = torch.arange(steps - length + 1)
        index = starts[:, None] + torch.arange(length)
        before = torch.cat([torch.zeros_like(episodes.ended[:, :1]), episodes.ended], 1)
        alive = before[:, starts].logical_not()
        rewards = (episodes.rewards[:, index] * DISCOUNT ** torch.arange(length)).sum(-1)
        going = episodes.ended[:, starts + length - 1].logical_not()
        columns = (
            episodes.states[:, starts],
            episodes.actions[:, index],
            rewards,
            episodes.states[:, starts + length],
            going.to(rewards.dtype),
        )
        return cls(*(column[alive] for column in columns))

    def to(self, device: str) -> Chunks:
        return Chunks(*(column.to(device) for column in self))

    def some(self, count: int, generator: torch.Generator) -> Chunks:
        """Rows drawn with replacement."""
        rows = torch.randint(len(self.rewards), (count,), generator=generator)
        return Chunks(*(column[rows] for column in self))
