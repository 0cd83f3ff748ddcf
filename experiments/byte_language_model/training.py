"""One training run, with evaluations that its clock leaves out."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flashlla.models import LanguageModel, training

from ..common.training import WARMUP

EVALUATIONS = 8  # spread evenly over the steps
EVALUATED_TOGETHER = 16  # windows

Batch = tuple[Tensor, Tensor]


def mean_loss(model: LanguageModel, batch: Batch) -> Tensor:
    """Cross-entropy over a batch of inputs and targets, nats a byte, 0-dim."""
    x, y = batch
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def train(
    model: LanguageModel,
    batch: Callable[[torch.Generator], Batch],
    held_out: Batch,
    folder: Path,
    *,
    steps: int,
    optimizer: str,
    learning_rate: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Train a model in place, by the recipe of :mod:`flashlla.experiments.common.training`.

    Args:
        batch: draws one with a generator that depends on seed and step alone, so that mixers meet the same.
        held_out: windows that the loss is measured on.
        folder: of the trial; one that was interrupted goes on from the checkpoint there.
        optimizer: ``"adamw"`` or ``"muon"``.

    Returns:
        A record for every evaluation: steps done, ``bits`` a byte on held_out, and ``training_seconds``, the
        wall-clock time of these steps alone.

    Raises:
        NonFiniteError: the loss became no number.
    """
    every = math.ceil(steps / EVALUATIONS)
    config = training.TrainerConfig(
        steps=steps,
        seed=seed,
        optimizer=training.OptimizerConfig(optimizer, learning_rate, weight_decay=0.1),
        schedule=training.ScheduleConfig("cosine", warmup_steps=int(WARMUP * steps)),
        log_every=every,
        evaluate_every=every,
        checkpoint_every=every,
    )
    device = next(model.parameters()).device

    def evaluate(model: LanguageModel) -> dict[str, float]:
        windows = zip(*(t.to(device).split(EVALUATED_TOGETHER) for t in held_out), strict=True)
        total = sum(len(x) * mean_loss(model, (x, y)).item() for x, y in windows)
        return {"bits": total / len(held_out[0]) / math.log(2)}

    trainer = training.Trainer(
        model,
        mean_loss,
        lambda step, rank: batch(training.batch_generator(seed, step, rank)),
        config,
        folder / "training",
        evaluate=evaluate,
        world=training.World.join(device=device),
        progress=False,
    )
    trainer.fit()
    records = training.read_metrics(folder / "training" / "metrics.jsonl")
    seconds = [0.0, *accumulate(record["seconds"] for record in records if "loss" in record)]
    return [{**record, "training_seconds": seconds[record["step"]]} for record in records if "bits" in record]
