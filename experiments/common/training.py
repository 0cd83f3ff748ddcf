"""Training inside a trial: one recipe for every mixer, and the learning rate that each is reported at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flashlla.models import training

if TYPE_CHECKING:
    from .table import Table

WARMUP = 0.1  # share of the steps


def train(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batch: Callable[[torch.Generator], Any],
    folder: Path,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    optimizer: str = "adamw",
) -> list[dict[str, Any]]:
    """Train a model in place; a trial that was interrupted goes on from the checkpoint in ``folder``.

    Args:
        loss: ``loss(model, batch)``, 0-dim.
        batch: draws one with a generator that depends on seed and step alone, so that mixers meet the same.
        folder: of the trial.
        learning_rate: at the peak of a cosine behind a warm-up of a tenth of the steps.

    Returns:
        The records of the steps, as in ``metrics.jsonl``.

    Raises:
        NonFiniteError: the loss became no number.
    """
    config = training.TrainerConfig(
        steps=steps,
        seed=seed,
        optimizer=training.OptimizerConfig(optimizer, learning_rate, weight_decay=0.1),
        schedule=training.ScheduleConfig("cosine", warmup_steps=int(WARMUP * steps)),
        log_every=max(1, steps // 20),
        checkpoint_every=max(1, steps // 4),
    )
    trainer = training.Trainer(
        model,
        loss,
        lambda step, rank: batch(training.batch_generator(seed, step, rank)),
        config,
        folder / "training",
        world=training.World.join(device=next(model.parameters()).device),
        progress=False,
    )
    trainer.fit()
    return [
        record for record in training.read_metrics(folder / "training" / "metrics.jsonl") if "loss" in record
    ]


def at_best_rate(table: Table, by: Sequence[str], metric: str, *, highest: bool = False) -> Table:
    """Rows at the learning rate with the best ``metric``, mean over seeds, for each group of columns ``by``.

    The same seeds choose and are reported, for every mixer alike: with few rates that is a small favour, and
    the same one to all.
    """
    means = table.groupby([*by, "learning_rate"])[metric].mean().reset_index()
    order = means.sort_values(metric, ascending=not highest, kind="stable")
    best = order.drop_duplicates(subset=list(by))[[*by, "learning_rate"]]
    return table.merge(best, on=[*by, "learning_rate"])
