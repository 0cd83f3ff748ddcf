"""One episode at a time, behind gymnasium's plain interface: a vector environment of one row."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from .vector import (
    MiniHouseVectorEnv,
    MiniLabVectorEnv,
    MiniShopVectorEnv,
    SokobanVectorEnv,
    WorldVectorEnv,
)


class WorldEnv(gymnasium.Env):
    """An episode of a world; arguments, observations and infos are those of :class:`WorldVectorEnv`, without
    the dimension of the episodes. Nothing is reset by itself.
    """

    vector_class: ClassVar[type[WorldVectorEnv]]
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "render_fps": 1}

    def __init__(self, **options: Any) -> None:
        self.vector = self.vector_class(1, autoreset=AutoresetMode.DISABLED, **options)
        self.render_mode = self.vector.render_mode
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.vector.np_random = self.np_random
        observation, info = self.vector.reset(options=options)
        return observation[0], {name: value[0] for name, value in info.items()}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        observation, reward, terminated, truncated, info = self.vector.step(np.array([action]))
        info = {name: value[0] for name, value in info.items()}
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> str:
        return self.vector.render()[0]


class SokobanEnv(WorldEnv):
    """An episode of Sokoban."""

    vector_class = SokobanVectorEnv


class MiniHouseEnv(WorldEnv):
    """An episode of MiniHouse."""

    vector_class = MiniHouseVectorEnv


class MiniShopEnv(WorldEnv):
    """An episode of MiniShop."""

    vector_class = MiniShopVectorEnv


class MiniLabEnv(WorldEnv):
    """An episode of MiniLab."""

    vector_class = MiniLabVectorEnv
