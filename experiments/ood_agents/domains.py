"""The four worlds as a trial has them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..common.training import seed_for
from ..worlds import (
    Augmentation,
    MiniHouse,
    MiniLab,
    MiniShop,
    PromptStyle,
    Sokoban,
    World,
    WorldVectorEnv,
    rows,
)

WORLDS = {"house": MiniHouse, "shop": MiniShop, "sokoban": Sokoban, "lab": MiniLab}
DOMAINS = tuple(WORLDS)  # of the paper: ALFWorld, WebShop, Sokoban, ScienceWorld
LIST = "actions: "  # what a prompt ends with, see shown


def begun(base: type[World]) -> type[WorldVectorEnv]:
    """Environments of a world whose episodes begin with a part of the way behind them.

    They have one knob more, ``distance``, least and most steps that the expert has to go from the first state
    on; an episode that is shorter begins at its start.
    """

    @dataclass(frozen=True)
    class Begun(base):
        distance: tuple[int, int] = (1, 99)

        def generate(self, rng: np.random.Generator) -> np.ndarray:
            state = super().generate(rng)
            return on_the_way(self, state, int(rng.integers(self.distance[0], self.distance[1] + 1)))

    return type(f"Begun{base.name}VectorEnv", (WorldVectorEnv,), {"world_class": Begun})


def on_the_way(world: World, state: np.ndarray, distance: int) -> np.ndarray:
    """The state ``[1]`` where the expert, who begins in ``state``, has so many steps to go, or the first."""
    states, done = [], False
    while not done:
        states.append(state.copy())
        code = world.expert(rows(state)[0]).code
        done = bool(world.step(state, np.array([code])).done[0])
    return states[max(0, len(states) - distance)]


ENVIRONMENTS = {domain: begun(world) for domain, world in WORLDS.items()}


@dataclass(frozen=True)
class Domains:
    """How the worlds are set up. Sokoban leaves its border unsaid.

    Attributes:
        limits: steps of an episode, a world each in the order of DOMAINS.
        distance: least and most steps that the expert needs from the first state on.
        receptacles: least and most in MiniHouse.
        history: observations and actions of the past in a prompt.
        thinking: answers begin with a scratchpad.
    """

    limits: tuple[int, ...]
    distance: tuple[int, int]
    receptacles: tuple[int, int]
    history: int
    thinking: bool

    def make(
        self,
        domain: str,
        episodes: int,
        *,
        limit: int | None = None,
        subtasks: int = 1,
        augmentation: Augmentation | None = None,
    ) -> WorldVectorEnv:
        """So many episodes of a world at once.

        Args:
            limit: steps; None is that of the world.
            subtasks: of MiniHouse.

        Raises:
            ValueError: settings that the world does not take.
        """
        knobs = {
            "house": {"subtasks": subtasks, "receptacles": self.receptacles},
            "sokoban": {"border": False},
        }
        return ENVIRONMENTS[domain](
            episodes,
            max_steps=limit or self.limits[DOMAINS.index(domain)],
            observation="text",
            autoreset="Disabled",
            prompt=PromptStyle(history=self.history, think=self.thinking),
            augmentation=augmentation,
            distance=self.distance,
            **knobs.get(domain, {}),
        )


def shown(prompt: str) -> str:
    """What a policy reads of a prompt: all but the list of actions, to which its answers are held anyway."""
    return prompt.rsplit(LIST, 1)[0]


def episode_seeds(seed: int, purpose: str, count: int, *more: int) -> np.ndarray:
    """Seeds of so many episodes, int64 ``[count]``; those of two purposes are different ones."""
    return np.array([seed_for(seed, purpose, *more, i) for i in range(count)], dtype=np.int64)
