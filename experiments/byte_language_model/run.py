"""Configuration, trials, and what one trial computes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashlla.models import LanguageModel, LanguageModelConfig

from ..common.experiment import ExperimentConfig
from ..common.training import token_loss, train
from ..demo.data import random_batch
from .data import corpus, held_out
from .training import EVALUATIONS, bits_per_byte, by_evaluation

VOCABULARY = 256  # bytes
MAX_CONTEXT = 4096


def model_config(mixer: str, dim: int, depth: int, heads: int) -> LanguageModelConfig:
    """As many parameters as softmax attention has, whatever the mixer: the SwiGLUs give way.

    Raises:
        ValueError: sizes that do not fit.
    """
    return LanguageModelConfig(
        vocab_size=VOCABULARY, dim=dim, depth=depth, heads=heads, mixer=mixer
    ).matched()


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """Byte-level language modelling.

    Attributes:
        mixer: token mixers to compare.
        adamw: learning rates that are tried with AdamW, peaks; none leaves this optimizer out.
        muon: the same with Muon.
        dim, depth, heads: of the model.
        context: bytes of a window, at most 4096.
        batch: windows of a step.
        steps: of training.
        windows: that the validation loss is measured on.
    """

    mixer: tuple[str, ...] = ("lla", "parallax", "softmax")
    adamw: tuple[float, ...] = (1.5e-3, 3e-3)
    muon: tuple[float, ...] = (5e-3, 1e-2)
    dim: int = 96
    depth: int = 2
    heads: int = 3
    context: int = 128
    batch: int = 4
    steps: int = 400
    windows: int = 64

    def __post_init__(self):
        super().__post_init__()
        if not (self.adamw or self.muon):
            raise ValueError("adamw and muon must name at least one learning rate, either of them")
        if not all(rate > 0 for rate in (*self.adamw, *self.muon)):
            raise ValueError(f"adamw={self.adamw}, muon={self.muon} must be positive learning rates")
        if not 1 <= self.context <= MAX_CONTEXT:
            raise ValueError(f"context={self.context} must be 1 to {MAX_CONTEXT}")
        if min(self.batch, self.steps, self.windows) < 1:
            raise ValueError(
                f"batch={self.batch}, steps={self.steps} and windows={self.windows} must be at least 1"
            )
        for mixer in self.mixer:  # sizes that do not fit are told apart here, not in every trial
            LanguageModel(model_config(mixer, self.dim, self.depth, self.heads), device="meta")


PRESETS = {
    "smoke": Config(
        adamw=(3e-3,),
        muon=(1e-2,),
        dim=32,
        depth=1,
        heads=1,
        context=64,
        batch=2,
        steps=8,
        windows=8,
        seeds=2,
    ),
    "small": Config(),
    "gpu": Config(
        adamw=(1e-3, 3e-3),
        muon=(3e-3, 1e-2),
        dim=256,
        depth=6,
        heads=4,
        context=512,
        batch=32,
        steps=400,
        windows=256,
        device="cuda",
    ),
}


@dataclass(frozen=True)
class Trial:
    """One mixer, one optimizer, one learning rate."""

    mixer: str
    optimizer: str
    learning_rate: float
    seed: int
    dim: int
    depth: int
    heads: int
    context: int
    batch: int
    steps: int
    windows: int
    device: str


def trials(config: Config) -> Iterator[Trial]:
    """All combinations; the mixers of a seed see the same text in the same order."""
    sizes = (config.dim, config.depth, config.heads)
    data = (config.context, config.batch, config.steps, config.windows)
    for seed in range(config.seeds):
        for optimizer in ("adamw", "muon"):
            for rate in getattr(config, optimizer):
                for mixer in config.mixer:
                    yield Trial(mixer, optimizer, rate, seed, *sizes, *data, config.device)


def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """A row for every evaluation: tokens and seconds of training so far, and bits a byte on held-out text."""
    torch.manual_seed(trial.seed)
    config = model_config(trial.mixer, trial.dim, trial.depth, trial.heads)
    model, text = LanguageModel(config).to(trial.device), corpus()

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return random_batch(text.train, trial.batch, trial.context, generator)

    windows = held_out(text, trial.windows, trial.context)
    history = train(
        model,
        token_loss,
        batch,
        folder,
        steps=trial.steps,
        optimizer=trial.optimizer,
        learning_rate=trial.learning_rate,
        seed=trial.seed,
        evaluate=lambda model, _: {"bits": bits_per_byte(model, windows)},
        evaluate_every=math.ceil(trial.steps / EVALUATIONS),
    )
    about = {"parameters": model.num_parameters(), "corpus": text.digest}
    return [
        {"tokens": record["step"] * trial.batch * trial.context, **record, **about}
        for record in by_evaluation(history)
    ]
