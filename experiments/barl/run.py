"""Configuration, trials, and what one trial computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashlla.models import LanguageModel
from flashlla.models.mixers import MIXERS

from ..common.experiment import ExperimentConfig
from . import answers, arithmetic, exploration, gradients, trees, triplets
from .model import model_config
from .objectives import ARMS, barl_name

MAIN = ("reinforce", barl_name(3, 5))  # arms of every mixer


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """BARL on triplets, trees and sums.

    Attributes:
        mixer: token mixers that are compared on triplets, with REINFORCE and BARL.
        side_mixer: those that have all other arms as well.
        answer_mixer: those of the sums; none leaves them out.
        horizon: tokens of an episode of the triplets.
        dim, depth, heads: of the model.
        episodes: of an update, half of them for either prompt of the training.
        updates, learning_rate: of the training, with Muon.
        every: updates between two measurements.
        probes, test: episodes for each prompt, of such a measurement and of the last one.
        operations: of a sum.
        answer_dim, answer_depth, answer_heads: of the model of the sums.
        base_steps, base_batch, base_rate: of its training on the corpus, with Muon; a batch is in texts.
        answer_prompts, samples: sums of a draw, and texts for each.
        answer_draws, answer_rate: of reinforcement learning on sums, with AdamW.
        chunk: tokens of a part of a thought, in which values are constant.
        answer_test, tries: sums of the test, and texts for each.
        instances: random policies whose gradients are enumerated.
        children, levels: of the largest trees: arms of one level, and levels with two branches.
    """

    mixer: tuple[str, ...] = ("softmax", "lla", "parallax", "mesanet", "gated_deltanet")
    side_mixer: tuple[str, ...] = ("softmax",)
    answer_mixer: tuple[str, ...] = ()
    horizon: int = 29
    dim: int = 64
    depth: int = 2
    heads: int = 2
    episodes: int = 64
    updates: int = 40
    learning_rate: float = 1e-2
    every: int = 5
    probes: int = 32
    test: int = 128
    operations: int = 3
    answer_dim: int = 64
    answer_depth: int = 2
    answer_heads: int = 2
    base_steps: int = 400
    base_batch: int = 128
    base_rate: float = 1e-2
    answer_prompts: int = 32
    samples: int = 5
    answer_draws: int = 60
    answer_rate: float = 1e-3
    chunk: int = 3
    answer_test: int = 256
    tries: int = 16
    instances: int = 8
    children: int = 10
    levels: int = 12
    seeds: int = 3

    def __post_init__(self):
        super().__post_init__()
        self._check_names("side_mixer", self.mixer)
        self._check_names("answer_mixer", MIXERS)
        self._check_at_least(_LEAST)
        self._check_positive("learning_rate", "base_rate", "answer_rate")
        if self.episodes % len(triplets.SEEN):
            raise ValueError(f"episodes={self.episodes} must be even: there are two prompts")
        for mixer in self.mixer:  # sizes that do not fit are told apart here, not in every trial
            config = model_config(triplets.TOKENS, mixer, self.dim, self.depth, self.heads)
            LanguageModel(config, device="meta")
        for mixer in self.answer_mixer:
            config = model_config(
                arithmetic.VOCABULARY, mixer, self.answer_dim, self.answer_depth, self.answer_heads
            )
            LanguageModel(config, device="meta")


_LEAST = {
    **dict.fromkeys(("updates", "every", "probes", "test", "instances", "operations", "chunk"), 1),
    **dict.fromkeys(
        ("base_steps", "base_batch", "answer_prompts", "answer_draws", "answer_test", "tries"), 1
    ),
    "horizon": triplets.PROBE,
    "episodes": 4,
    "samples": 2,
    "children": 2,
    "levels": 2,
}

PRESETS = {
    "smoke": Config(
        mixer=("softmax", "lla"),
        side_mixer=(),
        answer_mixer=("softmax",),
        dim=16,
        depth=1,
        heads=1,
        episodes=16,
        updates=3,
        every=3,
        probes=16,
        test=16,
        operations=2,
        answer_dim=16,
        answer_depth=1,
        answer_heads=1,
        base_steps=10,
        base_batch=32,
        answer_prompts=4,
        samples=3,
        answer_draws=2,
        answer_test=8,
        tries=4,
        instances=2,
        levels=5,
        seeds=1,
    ),
    "small": Config(),
    "gpu": Config(
        side_mixer=("lla",),
        answer_mixer=("lla",),
        episodes=256,
        updates=300,
        every=15,
        probes=128,
        test=1024,
        operations=6,
        answer_dim=256,
        answer_depth=4,
        answer_heads=4,
        base_steps=1500,
        base_batch=1024,
        base_rate=5e-3,
        answer_prompts=128,
        samples=8,
        answer_rate=3e-4,
        answer_test=1024,
        tries=64,
        instances=24,
        levels=20,
        device="cuda",
    ),
}


@dataclass(frozen=True)
class Trial:
    """One arm of one mixer on triplets; all arms of one mixer on sums; or what is exact, without a model.

    What a task does not have is 0.
    """

    task: str
    mixer: str
    arm: str
    seed: int
    device: str
    dim: int = 0
    depth: int = 0
    heads: int = 0
    episodes: int = 0
    updates: int = 0
    learning_rate: float = 0.0
    test: int = 0
    horizon: int = 0
    every: int = 0
    probes: int = 0
    operations: int = 0
    base_steps: int = 0
    base_batch: int = 0
    base_rate: float = 0.0
    samples: int = 0
    chunk: int = 0
    tries: int = 0
    instances: int = 0
    children: int = 0
    levels: int = 0


_TRIPLETS = (
    "dim",
    "depth",
    "heads",
    "episodes",
    "updates",
    "learning_rate",
    "test",
    "horizon",
    "every",
    "probes",
)
_SUMS = ("operations", "base_steps", "base_batch", "base_rate", "samples", "chunk", "tries")
_SUMS_RENAMED = {
    "dim": "answer_dim",
    "depth": "answer_depth",
    "heads": "answer_heads",
    "episodes": "answer_prompts",
    "updates": "answer_draws",
    "learning_rate": "answer_rate",
    "test": "answer_test",
}
_EXACT = ("horizon", "instances", "children", "levels")


def trials(config: Config) -> Iterator[Trial]:
    """Every mixer with the main arms, some with all; sums; and what is exact. A seed gives all arms of a
    mixer the same model at first.
    """
    triplet = {name: getattr(config, name) for name in _TRIPLETS}
    sums = {name: getattr(config, name) for name in _SUMS}
    sums |= {name: getattr(config, source) for name, source in _SUMS_RENAMED.items()}
    exact = {name: getattr(config, name) for name in _EXACT}
    for seed in range(config.seeds):
        for mixer in config.mixer:
            for arm in ARMS if mixer in config.side_mixer else MAIN:
                yield Trial("triplets", mixer, arm, seed, config.device, **triplet)
        for mixer in config.answer_mixer:
            yield Trial("sums", mixer, "", seed, config.device, **sums)
    yield Trial("exact", "", "", 0, "cpu", **exact)


def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """Rows of several kinds: ``prompt``, ``curve`` and ``episode`` of triplets, ``answers``, ``pass`` and
    ``episode`` of sums, and ``tree``, ``gradient`` and ``floor``, which are exact.
    """
    if trial.task == "triplets":
        return exploration.learn(trial, folder)
    if trial.task == "sums":
        return answers.learn(trial, folder)
    found = {"success": triplets.floor(trial.horizon), "success_9": triplets.floor(triplets.PROBE)}
    exact = trees.rows(trial.children, trial.levels) + gradients.rows(trial.instances)
    return [{"kind": "floor", "arm": "random", **found}, *exact]
