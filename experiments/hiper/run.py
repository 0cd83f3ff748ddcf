"""Configuration, trials, and what one trial computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flashlla.models import PolicyModel

from ..common.experiment import ExperimentConfig
from ..worlds.house import MiniHouse
from . import theory
from .arms import ARMS
from .model import model_config
from .study import Study


class Cell(NamedTuple):
    """What is asked of an agent: tasks in a row; turns of the past in a prompt; and whether the subgoals that
    the base learns from are those of other segments.
    """

    subtasks: int
    history: int = 0
    shuffled: bool = False


CELLS = {
    "main": Cell(2),
    "one": Cell(1),
    "three": Cell(3),
    "history": Cell(2, history=2),
    "shuffled": Cell(2, shuffled=True),
}
PAIR = ("hiper", "turn_plan")


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """HiPER in MiniHouse.

    Attributes:
        mixer: token mixers to compare, on the main cell with two arms: HiPER and turn GAE with a plan.
        full_mixer: those that have all of ``arms`` and of ``cells``.
        arms: of the main cell.
        cells: that there are beside it.
        cell_arms: of those.
        kinds, receptacles: of MiniHouse.
        limit: steps that an episode may have for each of its subtasks.
        dim, depth, heads: of the model.
        traces, noise: episodes of the expert that the base learns from, and the share of random actions.
        tuning_steps, tuning_batch, tuning_rate: of that, with Muon; a batch is in turns.
        first: episodes of the base policy that values learn from.
        draws, episodes: how often an arm plays, and how many episodes then.
        group: episodes in one house, for GRPO and GiGPO.
        updates: behind every draw.
        rate: of AdamW.
        test: episodes of the test.
        shown: of these, those that the table has in words.
        instances, samples: of the theory.
    """

    mixer: tuple[str, ...] = ("lla", "softmax")
    full_mixer: tuple[str, ...] = ("lla",)
    arms: tuple[str, ...] = tuple(ARMS)
    cells: tuple[str, ...] = ("one", "three", "history", "shuffled")
    cell_arms: tuple[str, ...] = (*PAIR, "turn")
    kinds: tuple[str, ...] = ("pick",)
    receptacles: tuple[int, int] = (8, 8)
    limit: int = 12
    dim: int = 48
    depth: int = 2
    heads: int = 4
    traces: int = 192
    noise: float = 0.3
    tuning_steps: int = 100
    tuning_batch: int = 32
    tuning_rate: float = 2e-2
    first: int = 32
    draws: int = 12
    episodes: int = 16
    group: int = 8
    updates: int = 2
    rate: float = 5e-4
    test: int = 64
    shown: int = 20
    instances: int = 8
    samples: int = 4000
    seeds: int = 2

    def __post_init__(self):
        super().__post_init__()
        self._check_names("arms", ARMS)
        self._check_names("cell_arms", ARMS)
        self._check_names("cells", CELLS)
        self._check_names("full_mixer", self.mixer)
        self._check_at_least(_LEAST)
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise={self.noise} must lie between 0 and 1")
        self._check_positive("tuning_rate", "rate")
        if self.episodes % self.group or self.episodes % 4:
            raise ValueError(f"episodes={self.episodes} must be a multiple of group={self.group} and of 4")
        if self.shown > self.test:
            raise ValueError(f"shown={self.shown} must be at most test={self.test}")
        most = max(CELLS[cell].subtasks for cell in ("main", *self.cells))
        if most * self.limit > 99:
            raise ValueError(
                f"limit={self.limit} must be at most {99 // most}: {most} subtasks have 99 steps"
            )
        MiniHouse(receptacles=self.receptacles, tasks=self.kinds)
        for mixer in self.mixer:  # sizes that do not fit are told apart here, not in every trial
            PolicyModel(model_config(mixer, self.dim, self.depth, self.heads), device="meta")


_LEAST = {
    **dict.fromkeys(("limit", "traces", "tuning_steps", "tuning_batch", "first", "draws", "updates"), 1),
    **dict.fromkeys(("test", "instances"), 1),
    **dict.fromkeys(("group", "samples"), 2),
    "shown": 0,
}

PRESETS = {
    "smoke": Config(
        mixer=("lla",),
        arms=("hiper", "turn", "gigpo"),
        cells=(),
        limit=6,
        dim=32,
        depth=1,
        heads=2,
        traces=8,
        tuning_steps=10,
        first=4,
        draws=2,
        episodes=4,
        group=2,
        test=4,
        shown=1,
        instances=1,
        samples=200,
        seeds=1,
    ),
    "small": Config(),
    "gpu": Config(
        mixer=("lla", "softmax", "parallax", "mesanet", "gated_deltanet"),
        full_mixer=("lla", "softmax"),
        kinds=("pick", "look", "clean", "heat", "cool", "pick2"),
        receptacles=(8, 15),
        limit=25,
        dim=256,
        depth=4,
        heads=4,
        traces=1024,
        tuning_steps=400,
        tuning_batch=256,
        tuning_rate=5e-3,
        first=256,
        draws=100,
        episodes=128,
        updates=4,
        rate=3e-4,
        test=512,
        instances=16,
        samples=40_000,
        seeds=3,
        device="cuda",
    ),
}


@dataclass(frozen=True)
class Trial:
    """One mixer in one cell with its arms; or the theory, which has no mixer and trains nothing."""

    cell: str
    mixer: str
    seed: int
    arms: tuple[str, ...]
    subtasks: int
    history: int
    shuffled: bool
    kinds: tuple[str, ...]
    receptacles: tuple[int, ...]
    limit: int
    dim: int
    depth: int
    heads: int
    traces: int
    noise: float
    tuning_steps: int
    tuning_batch: int
    tuning_rate: float
    first: int
    draws: int
    episodes: int
    group: int
    updates: int
    rate: float
    test: int
    shown: int
    instances: int
    samples: int
    device: str


_SIZES = tuple(Trial.__dataclass_fields__)[7:-4]


def trials(config: Config) -> Iterator[Trial]:
    """Every mixer in the main cell, some in the others, and the theory; mixers of a seed meet the same
    houses.
    """
    sizes = {name: getattr(config, name) for name in _SIZES}
    rest = {"instances": 0, "samples": 0, "device": config.device}
    for seed in range(config.seeds):
        shown = config.shown if seed == 0 else 0  # for people to read
        for mixer in config.mixer:
            full = mixer in config.full_mixer
            for cell in ("main", *config.cells) if full else ("main",):
                arms = PAIR if not full else config.arms if cell == "main" else config.cell_arms
                yield Trial(cell, mixer, seed, arms, *CELLS[cell], **sizes, shown=shown, **rest)
    nothing = {name: type(value)() for name, value in sizes.items()}
    exact = {"instances": config.instances, "samples": config.samples, "device": "cpu"}
    yield Trial("theory", "", 0, (), 0, 0, False, **nothing, shown=0, **exact)


def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """Rows of several kinds: ``arm`` with one for each, the base policy among them, ``draw`` on the way,
    ``episode`` in words, ``mask`` with gradients, and ``theory``.
    """
    if trial.cell == "theory":
        return theory.rows(trial.instances, trial.samples)
    study = Study(trial, folder)
    for arm in trial.arms:
        study.add(arm)
    return study.rows
