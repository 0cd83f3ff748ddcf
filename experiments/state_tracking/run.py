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
from .data import sequences

PARTS = 8  # of a sequence: rows of the table
TEST_SEED = 10**6  # apart from the seeds of training
# What lets these follow a parity, arXiv 2411.12537.
OPTIONS = {"deltanet": {"negative_eigenvalues": True}, "gated_deltanet": {"negative_eigenvalues": True}}


def model_config(mixer: str, positions: int, dim: int, depth: int, heads: int) -> LanguageModelConfig:
    """Swaps are tokens and permutations classes of one vocabulary.

    Raises:
        ValueError: sizes that do not fit.
    """
    return LanguageModelConfig(
        vocab_size=math.factorial(positions),
        dim=dim,
        depth=depth,
        heads=heads,
        mixer=mixer,
        mixer_options=OPTIONS.get(mixer, {}),
        tie_embeddings=False,
    )


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """Permutation state tracking.

    Attributes:
        mixer: token mixers to compare.
        positions: what is swapped; the classes are the permutations of so many things, 2 to 5.
        length: swaps in a sequence, a multiple of 8.
        learning_rate: peaks that are tried for each mixer.
        dim, depth, heads: of the model.
        batch: sequences of a step.
        steps: of training.
        test: sequences of the test.
    """

    mixer: tuple[str, ...] = ("lla", "softmax", "deltanet", "gated_deltanet", "mamba2")
    positions: tuple[int, ...] = (2, 3, 5)
    length: tuple[int, ...] = (32,)
    learning_rate: tuple[float, ...] = (1e-3, 3e-3)
    dim: int = 64
    depth: int = 2
    heads: int = 2
    batch: int = 16
    steps: int = 400
    test: int = 256

    def __post_init__(self):
        super().__post_init__()
        for positions in self.positions:
            if not 2 <= positions <= 5:
                raise ValueError(f"positions={positions} must be 2 to 5: 5 things have 120 permutations")
        for length in self.length:
            if length < PARTS or length % PARTS:
                raise ValueError(f"length={length} must be a positive multiple of {PARTS}")
        if min(self.batch, self.steps, self.test) < 1 or not all(rate > 0 for rate in self.learning_rate):
            raise ValueError(
                f"batch={self.batch}, steps={self.steps}, test={self.test} must be at least 1 and "
                f"learning_rate={self.learning_rate} positive"
            )
        if not (self.positions and self.length and self.learning_rate):
            raise ValueError("positions, length and learning_rate must name at least one value each")
        for mixer in self.mixer:  # sizes that do not fit are told apart here, not in every trial
            LanguageModel(model_config(mixer, 2, self.dim, self.depth, self.heads), device="meta")


PRESETS = {
    "smoke": Config(
        mixer=("lla", "softmax", "deltanet"),
        positions=(2,),
        length=(16,),
        learning_rate=(3e-3,),
        dim=32,
        depth=1,
        batch=16,
        steps=30,
        test=64,
        seeds=2,
    ),
    "small": Config(),
    "gpu": Config(
        positions=(2, 3, 4, 5),
        length=(64, 256),
        learning_rate=(3e-4, 1e-3, 3e-3),
        dim=128,
        batch=128,
        steps=2000,
        test=1024,
        device="cuda",
    ),
}


@dataclass(frozen=True)
class Trial:
    """One mixer at one learning rate on one task."""

    mixer: str
    seed: int
    positions: int
    length: int
    learning_rate: float
    dim: int
    depth: int
    heads: int
    batch: int
    steps: int
    test: int
    device: str


def trials(config: Config) -> Iterator[Trial]:
    """All combinations; the mixers of a seed see the same sequences."""
    sizes = (config.dim, config.depth, config.heads, config.batch, config.steps, config.test, config.device)
    for seed in range(config.seeds):
        for positions in config.positions:
            for length in config.length:
                for mixer in config.mixer:
                    for rate in config.learning_rate:
                        yield Trial(mixer, seed, positions, length, rate, *sizes)


def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """A row for every eighth of the positions: the share of permutations that are named right there."""
    torch.manual_seed(trial.seed)
    config = model_config(trial.mixer, trial.positions, trial.dim, trial.depth, trial.heads)
    model = LanguageModel(config).to(trial.device)

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return sequences(batch, trial.length, trial.positions, generator)

    history = train(
        model,
        token_loss,
        lambda generator: draw(trial.batch, generator),
        folder,
        steps=trial.steps,
        learning_rate=trial.learning_rate,
        seed=trial.seed,
    )
    tokens, states = draw(trial.test, torch.Generator().manual_seed(TEST_SEED + trial.seed))
    right = _predictions(model, tokens.to(trial.device)).cpu() == states
    shares = right.double().mean(0).unflatten(0, (PARTS, -1)).mean(1).tolist()
    place = trial.length // PARTS
    about = {"parameters": model.num_parameters(), "step_seconds": history.seconds / trial.steps}
    return [{"position": (i + 1) * place, "accuracy": share, **about} for i, share in enumerate(shares)]


@torch.no_grad()
def _predictions(model: LanguageModel, tokens: Tensor) -> Tensor:
    return model.eval()(tokens).argmax(-1)
