"""What a text world is: rules on arrays, a row an episode, and text of a row when it is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import SimpleNamespace
from typing import ClassVar, NamedTuple

import numpy as np

from .errors import check_range

SUCCESS = 10.0  # reward of a score of 1, as in HiPER (arXiv 2602.16165)
INVALID = -0.1  # reward of what is no admissible action, as in arXiv 2602.16165 and 2601.18217


class Outcome(NamedTuple):
    """What an action has brought.

    Attributes:
        done: bool ``[rows]``, True where the world has come to an end.
        score: float32 ``[rows]``, 0 to 1: how much of the task is met; it counts where done is True.
    """

    done: np.ndarray
    score: np.ndarray


class Advice(NamedTuple):
    """What the scripted expert would do.

    Attributes:
        code: an admissible action.
        subgoal: what it is good for, from the templates of the world; the same text as long as it is pursued.
        thought: a few sentences that lead to both, for scratchpads.
    """

    code: int
    subgoal: str
    thought: str


class World(ABC):
    """The rules of a world. An instance holds knobs and no state.

    States are structured arrays ``[rows]`` of ``dtype``; actions are codes from 0 to ``actions - 1`` with one
    meaning in all episodes. A row, the argument of everything that writes text, has the fields of a state as
    plain numbers and lists (:func:`rows`).

    Attributes:
        name: as in ``flashlla/NAME-v0``.
        dtype: of a state.
        actions: how many codes there are.
        choices: the most actions that are admissible at once.
        features: entries of an array observation.
        max_steps: after so many steps an episode is cut off, unless the environment is told another number.
    """

    name: ClassVar[str]
    dtype: ClassVar[np.dtype]
    actions: ClassVar[int]
    choices: ClassVar[int]
    features: ClassVar[int]
    max_steps: ClassVar[int]

    @abstractmethod
    def generate(self, rng: np.random.Generator) -> np.ndarray:
        """A new episode, ``[1]`` of ``dtype``; it can be solved."""

    @abstractmethod
    def admissible(self, state: np.ndarray) -> np.ndarray:
        """Which codes do something, bool ``[rows, actions]``; in every row at least one."""

    @abstractmethod
    def step(self, state: np.ndarray, codes: np.ndarray) -> Outcome:
        """Carry out admissible actions, int ``[rows]``; ``state`` changes in place."""

    @abstractmethod
    def observe(self, state: np.ndarray) -> np.ndarray:
        """What an agent sees of the world and its task, int16 ``[rows, features]``; no entry is below -1."""

    @abstractmethod
    def task(self, row: SimpleNamespace) -> str:
        """What is to be done, a sentence or several."""

    @abstractmethod
    def paraphrases(self, row: SimpleNamespace) -> list[str]:
        """The task said again in other words."""

    @abstractmethod
    def describe(self, row: SimpleNamespace) -> list[str]:
        """What an agent sees, in sentences."""

    @abstractmethod
    def action_text(self, row: SimpleNamespace, code: int) -> str:
        """An action in words."""

    @abstractmethod
    def expert(self, row: SimpleNamespace) -> Advice:
        """The next step of a plan that leads to success; it knows no more than has been seen."""


def rows(state: np.ndarray) -> list[SimpleNamespace]:
    """The rows of a state, with plain numbers and lists in place of arrays."""
    columns = [state[name].tolist() for name in state.dtype.names]
    return [
        SimpleNamespace(**dict(zip(state.dtype.names, row, strict=True)))
        for row in zip(*columns, strict=True)
    ]


def noisy_codes(
    world: World, state: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, list[Advice]]:
    """The expert's codes, int64 ``[rows]``, a ``share`` of them replaced by any admissible, and its advice.

    Raises:
        ValueError: the share is not in [0, 1].
    """
    check_range("share", share, 0, 1)
    advice = [world.expert(row) for row in rows(state)]
    codes = np.array([a.code for a in advice], dtype=np.int64)
    chances = np.where(world.admissible(state), rng.random((len(state), world.actions)), -1.0)
    return np.where(rng.random(len(state)) < share, chances.argmax(1), codes), advice
