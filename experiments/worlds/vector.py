"""Many episodes of a world at once, behind gymnasium's vector interface."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from .augmentation import Augmentation
from .base import INVALID, SUCCESS, World, rows
from .errors import check_choice, check_range
from .house import MiniHouse
from .lab import MiniLab
from .prompts import INVALID_TEXT, PromptStyle, write_prompt
from .shop import MiniShop
from .sokoban import Sokoban
from .tokenizer import tokenizer

OBSERVATIONS = ("array", "text", "tokens")
PLAIN_TOKENS = 120  # of an observation without distractors
LINE_TOKENS = 12  # of a distractor at most
ACTION_TOKENS = 8  # of an action at most
CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzKEPSWITCHN0123456789 .,:;()<>/\n")
AUTORESET = (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED)


class WorldVectorEnv(VectorEnv):
    """``num_envs`` episodes of one world; a subclass names the world.

    An action is an index into the list of admissible actions of its episode, which changes at every step.
    Whatever is beyond the list is invalid: it costs 0.1, changes nothing, and counts as a step; so
    does ``invalid``, the last index of the action space. At the end the reward is 10 times the score.

    Autoreset is NEXT_STEP: the step after the last of an episode ignores its action and begins a new one.
    With DISABLED a finished episode stays as it is, costs nothing, and
    ``reset(options={"reset_mask": mask})`` begins new ones.

    The k-th episode of a row follows from the row's seed and k alone: not from num_envs, nor from the others.
    ``reset(seed=...)`` draws the seeds of all rows; ``reset(options={"episode_seeds": seeds})`` sets them,
    equal ones for the members of a group.

    ``info`` has arrays with a row an episode: ``action_mask`` (bool, which indices are admissible),
    ``action_codes`` (int64, what they mean, -1 for nothing), ``success``, ``score``, ``invalid`` (of the step
    just made), ``steps``; with text also ``task`` and ``actions``, with tokens ``task_tokens`` and
    ``action_tokens`` (0 is padding).

    Args:
        max_steps: an episode is truncated after so many; None is what the world has.
        observation: ``array`` (:meth:`World.observe`), ``text``, or ``tokens`` of it, padded on the right.
            Text is written only with the latter two, or by :meth:`render`.
        prompt: the style of :meth:`prompts`, with the length of the history.
        augmentation: what is added to the text of observations; None adds nothing.
        autoreset: mode, or its name.
        knobs: those of the world, subtasks=3 for example.

    Raises:
        ValueError: an argument has no such value.
    """

    world_class: ClassVar[type[World]]
    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": ["ansi"],
        "render_fps": 1,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_steps: int | None = None,
        observation: str = "array",
        prompt: PromptStyle | None = None,
        augmentation: Augmentation | None = None,
        autoreset: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **knobs: Any,
    ) -> None:
        self.world = self.world_class(**knobs)
        self.num_envs = num_envs
        self.max_steps = self.world.max_steps if max_steps is None else max_steps
        check_range("num_envs", num_envs, 1, 1 << 20)
        check_range("max_steps", self.max_steps, 1, 99)
        check_choice("observation", observation, OBSERVATIONS)
        check_choice("render_mode", render_mode, (None, "ansi"))
        check_choice("autoreset", autoreset, (*AUTORESET, *(mode.value for mode in AUTORESET)))
        self.observation, self.render_mode = observation, render_mode
        self.style, self.augmentation = prompt or PromptStyle(), augmentation
        self.autoreset = AutoresetMode(autoreset)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset}
        self.invalid = self.world.choices
        self.single_action_space = spaces.Discrete(self.invalid + 1)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.single_observation_space = self._space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._empty()

    def _space(self) -> spaces.Space:
        if self.observation == "array":
            return spaces.Box(-1, np.iinfo(np.int16).max, (self.world.features,), np.int16)
        lines = self.augmentation.volume // 10 + 2 if self.augmentation else 0
        self._longest = PLAIN_TOKENS + LINE_TOKENS * lines
        if self.observation == "text":
            return spaces.Text(12 * self._longest, min_length=1, charset=CHARACTERS)
        return spaces.Box(0, len(tokenizer()) - 1, (self._longest,), np.int64)

    def _empty(self) -> None:
        """Room for the episodes; a row is filled when it begins."""
        n = self.num_envs
        self.state = np.zeros(n, self.world.dtype)
        self._seeds, self._count = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.steps = np.zeros(n, np.int64)
        self._terminated, self._truncated = np.zeros(n, bool), np.zeros(n, bool)
        self.score, self._wrong = np.zeros(n, np.float32), np.zeros(n, bool)
        self._history = [deque(maxlen=max(1, self.style.history)) for _ in range(n)]
        self._texts: list[str] | None = None
        self._started = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes, everywhere or in the rows of ``options["reset_mask"]``.

        Args:
            seed: of all that is random; None goes on with the numbers there are.
            options: ``reset_mask``, bool ``[num_envs]``: their next episodes, the others stay;
                ``episode_seeds``, ints ``[num_envs]``: the seeds of the rows, whose first episodes begin.
        """
        super().reset(seed=seed)
        options = options or {}
        mask = options.get("reset_mask")
        if mask is None or not self._started:
            drawn = self.np_random.integers(1 << 62, size=self.num_envs)
            self._seeds = np.array(options.get("episode_seeds", drawn), dtype=np.int64)
            if self._seeds.shape != (self.num_envs,):
                raise ValueError(f"episode_seeds has shape {self._seeds.shape}; use ({self.num_envs},)")
            self._count[:] = -1
            mask = np.ones(self.num_envs, bool)
        if np.shape(mask) != (self.num_envs,):
            raise ValueError(f"reset_mask has shape {np.shape(mask)}; use ({self.num_envs},)")
        self._begin(np.flatnonzero(mask))
        self._started = True
        return self._observe(), self._info()

    def _begin(self, chosen: np.ndarray) -> None:
        self._count[chosen] += 1
        for row in chosen:
            rng = np.random.default_rng([self._seeds[row], self._count[row], 0])
            self.state[row] = self.world.generate(rng)[0]
            self._history[row].clear()
        for array in (self.steps, self._terminated, self._truncated, self.score, self._wrong):
            array[chosen] = 0

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Make a step in every episode.

        Args:
            actions: ints ``[num_envs]``, indices into the lists of admissible actions.
        """
        actions = np.asarray(actions)
        if not self._started:
            raise ValueError("step was called before reset; call reset first")
        if not self.action_space.contains(actions):
            raise ValueError(f"actions={actions!r} are not ints [{self.num_envs}] from 0 to {self.invalid}")
        over = self._terminated | self._truncated
        codes = np.where(over, -1, self._codes[np.arange(self.num_envs), actions])
        self._remember(actions, over)
        (acting,) = np.nonzero(codes >= 0)
        state = self.state[acting]
        outcome = self.world.step(state, codes[acting])
        self.state[acting] = state

        self.steps += ~over
        self._wrong = (codes < 0) & ~over
        ended = np.zeros(self.num_envs, bool)
        ended[acting] = outcome.done
        self.score[acting] = np.where(outcome.done, outcome.score, 0)
        rewards = np.where(ended, SUCCESS * self.score, 0.0) + INVALID * self._wrong
        self._terminated |= ended
        self._truncated |= ~self._terminated & (self.steps >= self.max_steps)
        if self.autoreset == AutoresetMode.NEXT_STEP:
            self._begin(np.flatnonzero(over))
        return self._observe(), rewards, self._terminated.copy(), self._truncated.copy(), self._info()

    def _remember(self, actions: np.ndarray, over: np.ndarray) -> None:
        if self.observation == "array":
            return
        for row in np.flatnonzero(~over):
            known, chosen = self._actions[row], actions[row]
            done = known[chosen] if chosen < len(known) else INVALID_TEXT
            self._history[row].append((self._texts[row], done))

    def _observe(self) -> Any:
        """Update what follows from the state, and give the observation."""
        allowed = self.world.admissible(self.state)
        order = np.argsort(~allowed, axis=1, kind="stable")[:, : self.invalid]
        listed = np.take_along_axis(allowed, order, 1)
        self._codes = np.pad(np.where(listed, order, -1), ((0, 0), (0, 1)), constant_values=-1)
        self._rows = self._actions = self._texts = None
        if self.observation == "array":
            return self.world.observe(self.state)
        self._write()
        if self.observation == "text":
            return tuple(self._texts)
        return padded([tokenizer().encode(text) for text in self._texts], self._longest)

    def _write(self) -> None:
        """Observations and actions in words, once a step."""
        if self._texts is not None:
            return
        self._rows = rows(self.state)
        self._texts = [self._text(i, row) for i, row in enumerate(self._rows)]
        self._actions = [
            tuple(self.world.action_text(row, code) for code in codes if code >= 0)
            for row, codes in zip(self._rows, self._codes.tolist(), strict=True)
        ]

    def _text(self, index: int, row: Any) -> str:
        lines = self.world.describe(row)
        if self.augmentation:
            seeds = [int(x[index]) for x in (self._seeds, self._count, self.steps)]
            lines = self.augmentation.augment(self.world, row, lines, seeds)
        return " ".join(lines)

    def _info(self) -> dict[str, Any]:
        info = {
            "action_mask": self._codes >= 0,
            "action_codes": self._codes.copy(),
            "score": self.score.copy(),
            "success": self._terminated & (self.score == 1),
            "invalid": self._wrong.copy(),
            "steps": self.steps.copy(),
        }
        if self.observation == "text":
            info["task"], info["actions"] = np.empty((2, self.num_envs), dtype=object)
            info["task"][:] = [self.world.task(row) for row in self._rows]
            info["actions"][:] = self._actions
        elif self.observation == "tokens":
            encode, width = tokenizer().encode, self.invalid + 1
            tasks = [encode(self.world.task(row)) for row in self._rows]
            info["task_tokens"] = padded(tasks, PLAIN_TOKENS)
            texts = [[encode(text) for text in texts] for texts in self._actions]
            texts = [text for row in texts for text in row + [[]] * (width - len(row))]
            info["action_tokens"] = padded(texts, ACTION_TOKENS).reshape(self.num_envs, width, -1)
        return info

    def render(self) -> tuple[str, ...]:
        """Observations of all episodes in words, whatever the observation is."""
        self._write()
        return tuple(self._texts)

    def actions(self) -> list[tuple[str, ...]]:
        """The admissible actions of each episode in words."""
        self._write()
        return list(self._actions)

    def prompts(self, subgoals: Sequence[str | None] | None = None) -> list[str]:
        """What a language model reads now, in the style of ``prompt``.

        Args:
            subgoals: those pursued, one an episode; None where there is none yet.

        Raises:
            ValueError: observations are arrays, of which no history is kept in words.
        """
        if self.observation == "array":
            raise ValueError("observation='array' keeps no history in words; use 'text' or 'tokens'")
        subgoals = subgoals or [None] * self.num_envs
        parts = zip(
            self._rows, self.steps.tolist(), self._history, self._texts, self._actions, subgoals, strict=True
        )
        return [
            write_prompt(
                self.style, self.world.task(row), step, self.max_steps, tuple(past), text, actions, subgoal
            )
            for row, step, past, text, actions, subgoal in parts
        ]

    def indices(self, texts: Sequence[str]) -> np.ndarray:
        """From what a model has written to indices, int64 ``[num_envs]``.

        A text is an action in words, with spaces, a full stop and capitals as they please, or if the style is
        ``numbered`` also its number. Anything else is ``self.invalid``.
        """
        self._write()
        return np.array([self._index(t, a) for t, a in zip(texts, self._actions, strict=True)])

    def _index(self, text: str, actions: tuple[str, ...]) -> int:
        text = " ".join(text.lower().rstrip(" .").split())
        if self.style.numbered and re.fullmatch(r"\d{1,3}", text):
            return int(text) if int(text) < len(actions) else self.invalid
        return actions.index(text) if text in actions else self.invalid

    def index_of(self, codes: np.ndarray) -> np.ndarray:
        """From codes of the world, an expert's for example, to indices; ``self.invalid`` for others."""
        found = (self._codes == np.asarray(codes)[:, None]) & (self._codes >= 0)
        return np.where(found.any(1), found.argmax(1), self.invalid)


def padded(sequences: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Tokens of different lengths, int64 ``[len(sequences), length]``, with 0 on the right.

    Raises:
        ValueError: one is longer.
    """
    tokens = np.full((len(sequences), length), tokenizer().pad, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        if len(sequence) > length:
            raise ValueError(f"a text of {len(sequence)} tokens is longer than {length}: {sequence!r}")
        tokens[row, : len(sequence)] = sequence
    return tokens


class SokobanVectorEnv(WorldVectorEnv):
    """Episodes of :class:`Sokoban`."""

    world_class = Sokoban


class MiniHouseVectorEnv(WorldVectorEnv):
    """Episodes of :class:`MiniHouse`."""

    world_class = MiniHouse


class MiniShopVectorEnv(WorldVectorEnv):
    """Episodes of :class:`MiniShop`."""

    world_class = MiniShop


class MiniLabVectorEnv(WorldVectorEnv):
    """Episodes of :class:`MiniLab`."""

    world_class = MiniLab
