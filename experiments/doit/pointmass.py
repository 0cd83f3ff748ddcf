"""Tier 2: a point mass that has to go round an obstacle, by one of two ways."""

from __future__ import annotations

import torch
from torch import Tensor

from .episodes import Controller

STEP = 0.12  # seconds
INERTIA = 0.5  # share of the velocity that stays
START, GOAL = (-1.0, 0.0), (1.0, 0.0)
RADIUS = 0.45  # of the obstacle around the origin
DETOUR = 0.75  # height of the waypoint above or below it
MUD = 0.5  # of the speed, on the upper way
BUMP = -0.5  # reward
BEHAVIOUR = {"poor": (0.3, 0.8), "medium": (0.6, 0.4), "expert": (1.0, 0.2)}  # speed and noise


class PointMass:
    """States are position and velocity, actions accelerations; the reward is half the distance to the goal,
    negative, and less where the obstacle is hit. Mud makes the upper way the slower one.
    """

    states = 4
    actions = 2
    horizon = 32

    def __init__(self):
        self._position = self._velocity = torch.empty(0, 2)

    def reset(self, count: int, seed: int) -> Tensor:
        noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
        self._position = torch.tensor(START) + 0.05 * noise
        self._velocity = torch.zeros(count, 2)
        return self._state()

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._velocity = INERTIA * self._velocity + (1 - INERTIA) * actions.clamp(-1, 1)
        muddy = (self._position[:, 1] > 0.15) & (self._position[:, 0].abs() < 0.8)
        speed = torch.where(muddy, MUD, 1.0)[:, None]
        there = self._position + STEP * speed * self._velocity
        distance = there.norm(dim=1, keepdim=True)
        hit = distance < RADIUS
        self._position = torch.where(hit, there * RADIUS / distance.clamp(min=1e-6), there)
        away = (self._position - torch.tensor(GOAL)).norm(dim=1)
        rewards = -away / 2 + BUMP * hit[:, 0]
        return self._state(), rewards, torch.zeros(len(rewards), dtype=torch.bool)

    def controller(self, level: str, count: int, generator: torch.Generator) -> Controller:
        """To a waypoint above or below the obstacle, each for half of the episodes, and on to the goal."""
        speed, noise = BEHAVIOUR[level]
        way = torch.randint(2, (count,), generator=generator) * 2.0 - 1
        waypoint = torch.stack([torch.zeros(count), DETOUR * way], 1)

        def act(states: Tensor) -> Tensor:
            position = states[:, :2]
            target = torch.where(position[:, :1] < -0.05, waypoint, torch.tensor(GOAL))
            away = target - position
            towards = away / away.norm(dim=1, keepdim=True).clamp(min=0.2)
            return speed * towards + noise * torch.randn(count, 2, generator=generator)

        return act

    def _state(self) -> Tensor:
        return torch.cat([self._position, self._velocity], 1)
