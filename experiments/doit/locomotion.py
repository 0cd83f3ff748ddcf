"""Tier 2: robots of MuJoCo, and data of linear policies that augmented random search found on the way.

Needs the extra ``locomotion``: gymnasium with MuJoCo, and Minari, whose format the data have on disk.
"""

from __future__ import annotations

import fcntl
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flashlla import _env

from ..common.experiment import ExperimentError
from .episodes import LEVELS, Controller, Episodes, follow

if TYPE_CHECKING:
    from .run import Trial

DIRECTIONS, KEPT = 8, 4  # of an update, and those that it is made of
RATE, NOISE = 0.02, 0.03  # of the search, as in its paper for HalfCheetah
EXPLORATION = 0.2  # of the actions in the data
EVALUATIONS = 3  # episodes that a policy is judged by


class Linear(NamedTuple):
    """Actions ``weights @ (state - mean) / spread``; ``weights`` ``[actions, states]``."""

    weights: np.ndarray
    mean: np.ndarray
    spread: np.ndarray

    def __call__(self, states: np.ndarray) -> np.ndarray:
        return ((states - self.mean) / self.spread) @ self.weights.T


class Robot:
    """Episodes of a gymnasium environment side by side; see :class:`.episodes.Environment`.

    Raises:
        ExperimentError: MuJoCo, or what gymnasium needs for it, is missing.
    """

    def __init__(self, name: str, horizon: int, policies: Mapping[str, Linear] | None = None):
        self.name, self.horizon, self.policies = name, horizon, policies or {}
        self._running = [self._make()]
        self.states = self._running[0].observation_space.shape[0]
        self.actions = self._running[0].action_space.shape[0]
        self._high = self._running[0].action_space.high
        self._state, self._ended = torch.empty(0), torch.empty(0)

    def reset(self, count: int, seed: int) -> Tensor:
        self._running += [self._make() for _ in range(count - len(self._running))]
        seeds = np.random.SeedSequence(seed).generate_state(count).tolist()
        found = [e.reset(seed=s)[0] for e, s in zip(self._running, seeds, strict=False)]
        self._state = torch.as_tensor(np.stack(found), dtype=torch.float32)
        self._ended = torch.zeros(count, dtype=torch.bool)
        return self._state

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        taken = actions.clamp(-1, 1).double().numpy() * self._high
        state, rewards = self._state.clone(), torch.zeros(len(taken))
        ended = self._ended.clone()
        for i in (~self._ended).nonzero()[:, 0].tolist():
            found, reward, end, *_ = self._running[i].step(taken[i])
            state[i], rewards[i], ended[i] = torch.as_tensor(found), float(reward), end
        self._state, self._ended = state, ended
        return state, rewards, ended

    def controller(self, level: str, count: int, generator: torch.Generator) -> Controller:
        """A policy of the search, with noise."""
        policy = self.policies[level]

        def act(states: Tensor) -> Tensor:
            actions = torch.as_tensor(policy(states.double().numpy()), dtype=torch.float32).clamp(-1, 1)
            return actions + EXPLORATION * torch.randn(actions.shape, generator=generator)

        return act

    def _make(self):
        try:
            import gymnasium
            import mujoco

            mujoco.set_mju_user_warning(_warn)
            return gymnasium.make(self.name)
        except ImportError as error:
            raise ExperimentError(
                f"environment {self.name} needs the package {error.name}: pip install 'flashlla[locomotion]'"
            ) from error


def _warn(message: str) -> None:
    """Warnings of MuJoCo, which would write them into a file where the command runs.

    Gymnasium's models have an attribute that is deprecated, of which every environment would tell.
    """
    if "settotalmass" not in message:
        warnings.warn(message, stacklevel=2)


def search(robot: Robot, rounds: int, seed: int) -> dict[str, Linear]:
    """Policies of three levels by augmented random search (ARS V2-t, arXiv 1803.07055): the first one, the
    first that is half as good as the best, and the best. They are judged behind every tenth of the rounds.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((robot.actions, robot.states))
    seen = _Moments(robot.states)
    found: list[tuple[float, Linear]] = []
    for round_ in range(rounds + 1):
        if round_ % max(1, rounds // 10) == 0:
            policy = Linear(weights.copy(), *seen.normal())
            returns = _returns(robot, [policy] * EVALUATIONS, rng)[0]
            found.append((returns.mean(), policy))
        noise = rng.normal(size=(DIRECTIONS, *weights.shape))
        tried = [Linear(weights + sign * NOISE * d, *seen.normal()) for sign in (1, -1) for d in noise]
        returns, states = _returns(robot, tried, rng)
        seen.add(states)
        up, down = returns.reshape(2, DIRECTIONS)
        top = np.argsort(-np.maximum(up, down))[:KEPT]
        spread = np.concatenate([up[top], down[top]]).std() + 1e-6
        weights += RATE / (KEPT * spread) * np.einsum("k,kij->ij", (up - down)[top], noise[top])
    first, best = found[0], max(found, key=lambda item: item[0])
    half = next(item for item in found if item[0] >= (first[0] + best[0]) / 2)
    return dict(zip(LEVELS, (first[1], half[1], best[1]), strict=True))


class _Moments:
    """Mean and spread of all states so far."""

    def __init__(self, size: int):
        self.count, self.total, self.squares = 1e-6, np.zeros(size), 1e-6 * np.ones(size)

    def add(self, states: np.ndarray) -> None:
        self.count += len(states)
        self.total += states.sum(0)
        self.squares += np.square(states).sum(0)

    def normal(self) -> tuple[np.ndarray, np.ndarray]:
        mean = self.total / self.count
        return mean, np.sqrt(np.maximum(self.squares / self.count - np.square(mean), 1e-4))


def _returns(robot: Robot, policies: list[Linear], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Of one episode of each policy, and all their states."""

    def act(states: Tensor) -> Tensor:
        rows = states.double().numpy()
        return torch.as_tensor(np.stack([p(row) for p, row in zip(policies, rows, strict=True)]))

    episodes = follow(robot, act, len(policies), int(rng.integers(2**31)))
    return episodes.returns.numpy(), episodes.states.double().flatten(0, 1).numpy()


# ---- data on disk -----------------------------------------------------------------------------------


def environment_and_episodes(trial: Trial, folder: Path) -> tuple[Robot, dict[str, Episodes]]:
    """The robot, and episodes of the three levels from Minari data sets in ``folder``, which are made if they
    are not there; trials of one seed share them.
    """
    about = f"{trial.environment}-{trial.horizon}-{trial.ars_rounds}-{trial.episodes}-{trial.seed}".lower()
    home = folder / about
    home.mkdir(parents=True, exist_ok=True)
    with open(home / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "done").exists():
            robot = Robot(trial.environment, trial.horizon)
            robot.policies = search(robot, trial.ars_rounds, trial.seed)
            for i, level in enumerate(LEVELS):
                generator = torch.Generator().manual_seed(3 * trial.seed + i)
                controller = robot.controller(level, trial.episodes, generator)
                episodes = follow(robot, controller, trial.episodes, 3 * trial.seed + i)
                write(episodes, robot, home, level)
            (home / "done").touch()
    robot = Robot(trial.environment, trial.horizon)
    return robot, {level: read(home, level, trial.horizon) for level in LEVELS}


def write(episodes: Episodes, robot: Robot, home: Path, level: str) -> None:
    """One Minari data set, in place of what an interruption left."""
    minari = _minari(home)
    from minari.data_collector import EpisodeBuffer

    if _name(level) in minari.list_local_datasets():
        minari.delete_dataset(_name(level))
    buffers = []
    for i, ended in enumerate(episodes.ended):
        steps = int((~ended).sum()) + bool(ended.any())
        last = np.arange(steps) == steps - 1
        buffers.append(
            EpisodeBuffer(
                id=i,
                observations=episodes.states[i, : steps + 1].double().numpy(),
                actions=episodes.actions[i, :steps].numpy(),
                rewards=episodes.rewards[i, :steps].tolist(),
                terminations=(last & bool(ended.any())).tolist(),
                truncations=(last & (not ended.any())).tolist(),
            )
        )
    about = {"algorithm_name": "ARS", "description": f"a {level} linear policy"}
    with warnings.catch_warnings():  # of authors and their addresses, which data of a run have not
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(_name(level), buffers, env=robot.name, **about)


def read(home: Path, level: str, horizon: int) -> Episodes:
    """A data set as it was written; behind the end of an episode its last state stays."""
    found = []
    for episode in _minari(home).load_dataset(_name(level)).iterate_episodes():
        rest = horizon - len(episode.rewards)
        states = np.pad(episode.observations, ((0, rest), (0, 0)), mode="edge")
        ended = np.pad(episode.terminations, (0, rest), constant_values=True)
        actions = np.pad(episode.actions, ((0, rest), (0, 0)))
        found.append((states, actions, np.pad(episode.rewards, (0, rest)), ended))
    columns = [torch.as_tensor(np.stack(column)) for column in zip(*found, strict=True)]
    return Episodes(*(column.float() for column in columns[:3]), columns[3].bool())


def _name(level: str) -> str:
    return f"flashlla/{level}-v0"


def _minari(home: Path):
    """Minari, with its data in ``home``."""
    _env.set_for_process("MINARI_DATASETS_PATH", str(home.resolve()))
    try:
        import minari
    except ImportError as error:
        raise ExperimentError(
            f"data sets on disk need the package {error.name}: pip install 'flashlla[locomotion]'"
        ) from error
    return minari
