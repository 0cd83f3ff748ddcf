"""One training run, measured on its way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from flashlla.models import LanguageModel, training

from ..common.training import WARMUP

Batch = tuple[Tensor, Tensor]


def train(
    model: LanguageModel,
    batch: Callable[[torch.Generator], Batch],
    measure: Callable[[int], None],
    folder: Path,
    *,
    steps: int,
    parts: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train a model in place with Muon, by the recipe of :mod:`flashlla.experiments.common.training`.

    Args:
        batch: draws inputs and targets with a generator that depends on seed and step alone.
        measure: ``measure(step)``, called behind every one of ``parts`` equal parts of the steps.
        folder: of the trial; one that was interrupted goes on from the checkpoint there.

    Raises:
        NonFiniteError: the loss became no number.
    """
    config = training.TrainerConfig(
        steps=steps,
        seed=seed,
        optimizer=training.OptimizerConfig("muon", learning_rate, weight_decay=0.1),
        schedule=training.ScheduleConfig("cosine", warmup_steps=int(WARMUP * steps)),
        evaluate_every=steps // parts,
        checkpoint_every=steps // parts,
    )

    def loss(model: LanguageModel, batch: Batch) -> Tensor:
        tokens, targets = batch
        return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())

    def evaluate(model: LanguageModel) -> dict[str, float]:
        measure(trainer.step)
        return {}

    trainer = training.Trainer(
        model,
        loss,
        lambda step, rank: batch(training.batch_generator(seed, step, rank)),
        config,
        folder / "training",
        evaluate=evaluate,
        world=training.World.join(device=next(model.parameters()).device),
        progress=False,
    )
    trainer.fit()
