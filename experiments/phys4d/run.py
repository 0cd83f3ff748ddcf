"""Configuration, trials, and what one trial computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.experiment import ExperimentConfig
from .model import PATCH, WorldModel
from .study import ARMS, Study


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """Stages of Phys4D on small worlds.

    Attributes:
        generated: frames behind the two that are known.
        size: pixels of a side, a multiple of 4.
        clips: of the broken and of the true worlds to train on, each.
        test: clips of the evaluation.
        dim, depth, heads: of the backbone; dim a multiple of 6.
        batch: clips of a step.
        base_steps, base_rate: of pretraining on broken worlds, with Muon.
        head_steps, head_rate: of stage 1, with AdamW, as all that follows.
        tuning_steps, tuning_rate, rank: of stage 2; rank is that of the adapters of stages 2 and 3.
        rl_draws, rl_prompts, rl_samples: of stage 3: draws with two updates each, beginnings of a draw,
            and clips for each.
        rl_steps, rl_trained: steps of denoising in stage 3, and how many of them the updates are for.
        rl_rate: of stage 3.
        divergence: weight of the KL to the model of stage 2.
        tuning_weight: weight of the loss of stage 2 in stage 3.
        sampler_steps: of denoising in the evaluation.
    """

    generated: int = 4
    size: int = 16
    clips: int = 2048
    test: int = 96
    dim: int = 48
    depth: int = 2
    heads: int = 2
    batch: int = 32
    base_steps: int = 800
    base_rate: float = 2e-2
    head_steps: int = 200
    head_rate: float = 5e-3
    tuning_steps: int = 250
    tuning_rate: float = 5e-3
    rank: int = 8
    rl_draws: int = 40
    rl_prompts: int = 4
    rl_samples: int = 8
    rl_steps: int = 6
    rl_trained: int = 4
    rl_rate: float = 1e-3
    divergence: float = 0.1
    tuning_weight: float = 0.2
    sampler_steps: int = 8
    seeds: int = 2

    def __post_init__(self):
        super().__post_init__()
        self._check_at_least(_LEAST)
        self._check_positive("base_rate", "head_rate", "tuning_rate", "rl_rate")
        if self.size % PATCH:
            raise ValueError(f"size={self.size} must be a multiple of {PATCH}, the side of a patch")
        if self.rl_trained > self.rl_steps:
            raise ValueError(f"rl_trained={self.rl_trained} must be at most rl_steps={self.rl_steps}")
        if self.rl_prompts > self.clips:
            raise ValueError(f"rl_prompts={self.rl_prompts} must be at most clips={self.clips}")
        for mixer in self.mixer:  # sizes that do not fit are told apart here, not in every trial
            WorldModel(mixer, self.dim, self.depth, self.heads)


_LEAST = {
    **dict.fromkeys(("generated", "clips", "batch", "base_steps", "head_steps", "tuning_steps"), 1),
    **dict.fromkeys(("rank", "rl_draws", "rl_prompts", "rl_steps", "sampler_steps"), 1),
    **dict.fromkeys(("test", "rl_samples", "rl_trained"), 2),
    **dict.fromkeys(("divergence", "tuning_weight"), 0),
}

PRESETS = {
    "smoke": Config(
        clips=32,
        test=8,
        dim=24,
        depth=1,
        batch=4,
        base_steps=4,
        head_steps=2,
        tuning_steps=2,
        rank=2,
        rl_draws=2,
        rl_prompts=2,
        rl_samples=2,
        rl_steps=2,
        rl_trained=2,
        sampler_steps=2,
        seeds=1,
    ),
    "small": Config(),
    "gpu": Config(
        mixer=("softmax", "lla", "parallax", "mesanet", "gated_deltanet"),
        generated=14,
        size=32,
        clips=16384,
        test=256,
        dim=252,
        depth=6,
        heads=6,
        batch=64,
        base_steps=4000,
        base_rate=5e-3,
        head_steps=500,
        head_rate=2e-3,
        tuning_steps=1500,
        tuning_rate=2e-3,
        rank=16,
        rl_draws=200,
        rl_prompts=8,
        rl_samples=16,
        rl_steps=10,
        rl_trained=4,
        rl_rate=3e-4,
        sampler_steps=10,
        seeds=3,
        device="cuda",
    ),
}


@dataclass(frozen=True)
class Trial:
    """All stages and controls of one mixer."""

    mixer: str
    seed: int
    generated: int
    size: int
    clips: int
    test: int
    dim: int
    depth: int
    heads: int
    batch: int
    base_steps: int
    base_rate: float
    head_steps: int
    head_rate: float
    tuning_steps: int
    tuning_rate: float
    rank: int
    rl_draws: int
    rl_prompts: int
    rl_samples: int
    rl_steps: int
    rl_trained: int
    rl_rate: float
    divergence: float
    tuning_weight: float
    sampler_steps: int
    device: str


def trials(config: Config) -> Iterator[Trial]:
    """Every mixer; those of a seed share worlds, beginnings and noise."""
    shared = {name: getattr(config, name) for name in list(Trial.__dataclass_fields__)[2:]}
    for seed in range(config.seeds):
        for mixer in config.mixer:
            yield Trial(mixer, seed, **shared)


def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """Rows of several kinds: ``reference``, ``arm`` with one for each, ``drift`` by frame, and ``reward`` on
    the way through stage 3. Films of the first seed are written into the folder.
    """
    study = Study(trial, folder)
    for arm in ARMS:
        study.add(arm)
    return study.rows
