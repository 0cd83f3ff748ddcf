"""One training run, with tests along the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flashlla.models import training

from ..common.training import WARMUP
from .data import Sequences

EVALUATIONS = 4  # spread evenly over the steps


def mean_loss(model: nn.Module, batch: Sequences) -> Tensor:
    """Cross-entropy over the tokens that are taught, nats, 0-dim."""
    taught = batch.taught[:, 1:]
    hidden = model.hidden(batch.tokens[:, :-1])
    return F.cross_entropy(model.logits(hidden[taught]), batch.tokens[:, 1:][taught])


def train(
    model: nn.Module,
    batch: Callable[[torch.Generator], Sequences],
    evaluate: Callable[[nn.Module], Mapping[str, float]],
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
        evaluate: gives numbers by name, four times a run and at its end.
        folder: of the trial; one that was interrupted goes on from the checkpoint there.
        learning_rate: peak of a cosine behind a warm-up of a tenth of the steps.

    Returns:
        A record for every evaluation: the steps done, the numbers, ``loss``, the mean since the record
        before, and ``step_seconds``, the same of the wall-clock time of a step.

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
    trainer = training.Trainer(
        model,
        mean_loss,
        lambda step, rank: batch(training.batch_generator(seed, step, rank)),
        config,
        folder / "training",
        evaluate=evaluate,
        world=training.World.join(device=next(model.parameters()).device),
        progress=False,
    )
    trainer.fit()
    return _by_evaluation(training.read_metrics(folder / "training" / "metrics.jsonl"))


def _by_evaluation(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records of evaluations, each with means over the records of steps in front of it."""
    found, since = [], []
    for record in records:
        if "loss" in record:
            since.append(record)
            continue
        means = {name: sum(step[name] for step in since) / len(since) for name in ("loss", "seconds")}
        found.append({**record, "loss": means["loss"], "step_seconds": means["seconds"]})
        since = []
    return found
