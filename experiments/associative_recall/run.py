"""Configuration, trials, and what one trial computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flashlla.models import LanguageModel, LanguageModelConfig
from flashlla.models.mixers import ATTENTION_MIXERS

from ..common.experiment import ExperimentConfig
from ..common.training import train
from .data import IGNORED, recall

TEST_SEED = 10**6  # apart from the seeds of training


def model_config(
    mixer: str, vocab: int, length: int, dim: int, depth: int, heads: int
) -> LanguageModelConfig:
    """A model without short convolutions, for sequences of up to ``length`` tokens.

    Raises:
        ValueError: sizes that do not fit.
    """
    options: dict[str, Any] = {} if mixer in ATTENTION_MIXERS else {"short_conv": None}
    if mixer == "hyena":
        options["filter_length"] = length
    return LanguageModelConfig(
        vocab_size=vocab,
        dim=dim,
        depth=depth,
        heads=heads,
        mixer=mixer,
        mixer_options=options,
        tie_embeddings=False,
    )


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """Multi-query associative recall.

    Attributes:
        mixer: token mixers to compare.
        dim: widths of the models.
        pairs: keys and values of a sequence. Every model learns all of these, a number a step, and is tested
            on each.
        length: of the sequences with so many pairs, at least four times as long.
        learning_rate: peaks that are tried for each mixer and width.
        vocab: tokens; half of them are keys, half values.
        depth, heads: of the model.
        tokens: of a step, in as many sequences as they suffice for.
        steps: of training.
        test: sequences of the test, for each number of pairs.
    """

    mixer: tuple[str, ...] = ("lla", "softmax", "parallax", "mesanet", "gla", "gated_deltanet", "mamba2")
    dim: tuple[int, ...] = (16, 32)
    pairs: tuple[int, ...] = (2, 4, 8, 16)
    length: tuple[int, ...] = (12, 24, 48, 96)
    learning_rate: tuple[float, ...] = (5e-3, 2e-2)
    vocab: int = 64
    depth: int = 2
    heads: int = 1
    tokens: int = 512
    steps: int = 700
    test: int = 256
    seeds: int = 2

    def __post_init__(self):
        super().__post_init__()
        if not (self.dim and self.pairs and self.learning_rate):
            raise ValueError("dim, pairs and learning_rate must name at least one value each")
        if len(self.length) != len(self.pairs) or len(set(self.pairs)) < len(self.pairs):
            raise ValueError(
                f"length={self.length} must have one value for each of pairs={self.pairs}, which differ"
            )
        for pairs, length in zip(self.pairs, self.length, strict=True):
            if not 1 <= pairs < self.vocab // 2:
                raise ValueError(
                    f"pairs={pairs} must be 1 to {self.vocab // 2 - 1}, the keys of vocab={self.vocab}"
                )
            if not 4 * pairs <= length <= self.tokens:
                raise ValueError(
                    f"length={length} must be {4 * pairs} (pairs and queries) to tokens={self.tokens}"
                )
        if min(self.steps, self.test) < 1 or not all(rate > 0 for rate in self.learning_rate):
            raise ValueError(
                f"steps={self.steps} and test={self.test} must be at least 1 and "
                f"learning_rate={self.learning_rate} positive"
            )
        for mixer in self.mixer:  # sizes that do not fit are told apart here, not in every trial
            for dim in self.dim:
                config = model_config(mixer, self.vocab, max(self.length), dim, self.depth, self.heads)
                LanguageModel(config, device="meta")


PRESETS = {
    "smoke": Config(
        mixer=("lla", "softmax", "gated_deltanet", "mamba2"),
        dim=(16,),
        pairs=(1, 2),
        length=(8, 12),
        learning_rate=(3e-2,),
        tokens=96,
        steps=20,
        test=64,
    ),
    "small": Config(),
    "gpu": Config(
        dim=(64, 128),
        pairs=(4, 8, 16, 64),
        length=(64, 128, 256, 512),
        vocab=8192,
        tokens=2**15,
        steps=600,
        test=256,
        device="cuda",
    ),
}


@dataclass(frozen=True)
class Trial:
    """One mixer at one width and learning rate."""

    mixer: str
    seed: int
    dim: int
    learning_rate: float
    pairs: tuple[int, ...]
    length: tuple[int, ...]
    vocab: int
    depth: int
    heads: int
    tokens: int
    steps: int
    test: int
    device: str


def trials(config: Config) -> Iterator[Trial]:
    """All combinations; the mixers of a seed see the same sequences."""
    task = (config.pairs, config.length, config.vocab)
    sizes = (config.depth, config.heads, config.tokens, config.steps, config.test, config.device)
    for seed in range(config.seeds):
        for dim in config.dim:
            for mixer in config.mixer:
                for rate in config.learning_rate:
                    yield Trial(mixer, seed, dim, rate, *task, *sizes)


def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """A row for every number of pairs: the share of queries that are answered with the right value."""
    torch.manual_seed(trial.seed)
    longest = max(trial.length)
    config = model_config(trial.mixer, trial.vocab, longest, trial.dim, trial.depth, trial.heads)
    model = LanguageModel(config)
    model.embedding.reset_parameters()  # variance 1: the README says why
    tasks = list(zip(trial.pairs, trial.length, strict=True))

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        pairs, length = tasks[torch.randint(len(tasks), (), generator=generator)]
        return recall(trial.tokens // length, length, pairs, trial.vocab, generator)

    history = train(
        model.to(trial.device),
        lambda model, batch: F.cross_entropy(*_answers(model, *batch)),
        draw,
        folder,
        steps=trial.steps,
        learning_rate=trial.learning_rate,
        seed=trial.seed,
        optimizer="muon",
    )
    about = {"parameters": model.num_parameters(), "step_seconds": history.seconds / trial.steps}
    return [
        {"pairs": pairs, "length": length, "accuracy": _accuracy(model, trial, pairs, length), **about}
        for pairs, length in tasks
    ]


def _answers(model: LanguageModel, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``[queries, vocab]`` and targets ``[queries]`` where something is asked."""
    asked = targets != IGNORED
    return model.logits(model.hidden(tokens)[asked]), targets[asked]


@torch.no_grad()
def _accuracy(model: LanguageModel, trial: Trial, pairs: int, length: int) -> float:
    generator = torch.Generator().manual_seed(TEST_SEED + trial.seed)
    batch = recall(trial.test, length, pairs, trial.vocab, generator)
    logits, targets = _answers(model.eval(), *(part.to(trial.device) for part in batch))
    return (logits.argmax(-1) == targets).double().mean().item()
