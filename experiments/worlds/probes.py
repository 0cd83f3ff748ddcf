"""Other people's text games behind the same prompts, to see what a policy does in them without training.

They need the extra ``agents``: TextWorld, whose games are made on the spot, and ScienceWorld, which also
needs Java. Both are too slow to train in.
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from .prompts import INVALID_TEXT, PromptStyle, write_prompt


class Scene(NamedTuple):
    """Where a game is.

    Attributes:
        observation: what the game has told last.
        actions: commands that it takes now.
        score: 0 to 1.
        done: whether it is over.
    """

    observation: str
    actions: tuple[str, ...]
    score: float
    done: bool


class Game(ABC):
    """A game to play by text.

    Attributes:
        task: what is to be done, known after :meth:`reset`.
    """

    task: str = ""

    @abstractmethod
    def reset(self, seed: int) -> Scene:
        """Begin the game of a seed."""

    @abstractmethod
    def step(self, action: str) -> Scene:
        """Carry out one of the scene's actions."""

    @abstractmethod
    def close(self) -> None:
        """Give back files and processes."""


class Probe:
    """A game with the prompts of the worlds. Words are the game's own: our tokenizer does not know them all.

    Args:
        game: what is played.
        style: of the prompts.
        max_steps: after so many steps an episode ends.
    """

    def __init__(self, game: Game, style: PromptStyle | None = None, max_steps: int = 50) -> None:
        self.game, self.style, self.max_steps = game, style or PromptStyle(), max_steps
        self.scene: Scene | None = None

    def reset(self, seed: int = 0) -> Scene:
        """Begin the game of a seed."""
        self.scene, self.steps = self.game.reset(seed), 0
        self._history = deque(maxlen=max(1, self.style.history))
        return self.scene

    def prompt(self, subgoal: str | None = None) -> str:
        """What a language model reads now."""
        scene, past = self.scene, tuple(self._history)
        return write_prompt(
            self.style,
            self.game.task,
            self.steps,
            self.max_steps,
            past,
            scene.observation,
            scene.actions,
            subgoal,
        )

    def step(self, action: str) -> tuple[Scene, bool]:
        """Do what an answer says, or nothing if the game does not take it.

        Returns:
            the scene, and whether the episode is over, by the game or by its limit.
        """
        valid = action in self.scene.actions
        self._history.append((self.scene.observation, action if valid else INVALID_TEXT))
        self.steps += 1
        if valid:
            self.scene = self.game.step(action)
        return self.scene, self.scene.done or self.steps >= self.max_steps


def needed(package: str) -> ModuleType:
    """A package of the extra ``agents``.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        message = f"this probe needs the package {package}: pip install 'flashlla[agents]'"
        raise ModuleNotFoundError(message, name=package) from error


class TextWorldGame(Game):
    """A quest of TextWorld (arXiv 1806.11532), made from its seed.

    Args:
        rooms, objects, steps: size of the world and length of the quest.
    """

    def __init__(self, rooms: int = 3, objects: int = 6, steps: int = 4) -> None:
        self._textworld = needed("textworld")
        self._sizes = (rooms, objects, steps)
        self._folder = tempfile.TemporaryDirectory()
        self._env = None

    def reset(self, seed: int) -> Scene:
        textworld = self._textworld
        options = textworld.GameOptions()
        options.nb_rooms, options.nb_objects, options.quest_length = self._sizes
        options.seeds = seed
        options.path = str(Path(self._folder.name) / f"game-{seed}.z8")
        path, _ = textworld.make(options)
        wanted = textworld.EnvInfos(
            admissible_commands=True, objective=True, description=True, max_score=True
        )
        if self._env is not None:
            self._env.close()
        self._env = textworld.start(path, wanted)
        state = self._env.reset()
        self.task = _one_line(state["objective"])
        return self._scene(state, state["description"], done=False)

    def step(self, action: str) -> Scene:
        state, _, done = self._env.step(action)
        return self._scene(state, state.feedback, done)

    @staticmethod
    def _scene(state, told: str, done: bool) -> Scene:
        score = (state.get("score") or 0) / max(1, state.get("max_score") or 1)
        told = told.split("\n>")[0]  # behind it is the status line of a terminal
        return Scene(_one_line(told), tuple(state["admissible_commands"]), score, done)

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
        self._folder.cleanup()


class ScienceWorldGame(Game):
    """A task of ScienceWorld (arXiv 2203.07540); the seed chooses the variation.

    Args:
        name: of the task, ``boil`` for example.
        simplifications: of ScienceWorld, as it names them.

    Raises:
        RuntimeError: there is no Java.
    """

    def __init__(self, name: str = "boil", simplifications: str = "easy") -> None:
        package = needed("scienceworld")
        if shutil.which("java") is None:
            raise RuntimeError("ScienceWorld needs Java: apt-get install default-jre-headless")
        self._name, self._simplifications = name, simplifications
        self._env = package.ScienceWorldEnv("", envStepLimit=1000)

    def reset(self, seed: int) -> Scene:
        variations = self._env.get_max_variations(self._name)
        self._env.load(self._name, seed % variations, self._simplifications)
        observation, _ = self._env.reset()
        self.task = _one_line(self._env.get_task_description())
        return self._scene(observation, 0.0, False)

    def step(self, action: str) -> Scene:
        observation, _, done, info = self._env.step(action)
        return self._scene(observation, max(0.0, info["score"] / 100), done)

    def _scene(self, observation: str, score: float, done: bool) -> Scene:
        actions = tuple(self._env.get_valid_action_object_combinations())
        return Scene(_one_line(observation), actions, score, done)

    def close(self) -> None:
        self._env.close()


def _one_line(text: str) -> str:
    """Text without line breaks, which the grammar keeps for itself."""
    return " ".join(text.split())
