"""Training inside a trial: one recipe for every mixer, and the learning rate that each is reported at."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flashlla.models import training

if TYPE_CHECKING:
    from .table import Table

WARMUP = 0.1  # share of the steps


class History(NamedTuple):
    """What a training run has written down.

    Attributes:
        steps: a record for every step: ``step``, counted from 1, ``loss``, ``seconds`` and more.
        evaluations: a record for every evaluation: the ``step`` behind which it was, and its numbers.
    """

    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]

    @property
    def seconds(self) -> float:
        """Wall-clock time of all steps, without the evaluations."""
        return sum(record["seconds"] for record in self.steps)


def train(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batch: Callable[[torch.Generator], Any],
    folder: Path,
    *,
    seed: int,
    **recipe: Any,
) -> History:
    """Train a model in place; a trial that was interrupted goes on from the checkpoint in ``folder``.

    Args:
        loss: ``loss(model, batch)``, 0-dim.
        batch: draws one with a generator that depends on seed and step alone, so that mixers meet the same.
        folder: of the run.
        recipe: as for :func:`fit`.

    Raises:
        NonFiniteError: the loss became no number.
    """

    def draw(step: int, rank: int) -> Any:
        return batch(training.batch_generator(seed, step, rank))

    return fit(model, loss, draw, folder, seed=seed, **recipe)


def train_policy(
    policy: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    draw: Callable[[int], Sequence[Any]],
    folder: Path,
    *,
    draws: int,
    updates: int = 1,
    evaluate_every: int | None = None,
    checkpoint_every: int | None = None,
    **recipe: Any,
) -> History:
    """Train a policy in place on what it writes itself, with some updates behind every draw.

    Args:
        loss: ``loss(policy, batch)``, 0-dim.
        draw: ``draw(step)``, with the number of updates so far, gives the batches of the next ``updates``
            steps. It must depend on seed, step and policy alone.
        folder: of the run; one that was interrupted goes on from the checkpoint there, in front of a draw.
        draws: of the run.
        evaluate_every, checkpoint_every: draws between two of them.
        recipe: as for :func:`fit`.

    Returns:
        The history; its ``steps`` are updates, and the ``step`` of an evaluation is in draws.

    Raises:
        NonFiniteError: the loss became no number.
    """
    batches: list[Any] = []

    def batch(step: int, rank: int) -> Any:
        if step % updates == 0:
            batches[:] = draw(step)
        return batches[step % updates]

    history = fit(
        policy,
        loss,
        batch,
        folder,
        steps=draws * updates,
        evaluate_every=evaluate_every and evaluate_every * updates,
        checkpoint_every=updates * (checkpoint_every or evaluate_every or max(1, draws // 4)),
        **recipe,
    )
    evaluations = [{**record, "step": record["step"] // updates} for record in history.evaluations]
    return history._replace(evaluations=evaluations)


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batch: Callable[[int, int], Any],
    folder: Path,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    optimizer: str = "adamw",
    weight_decay: float = 0.1,
    warmup: float = WARMUP,
    floor: float = 0.1,
    evaluate: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    evaluate_every: int | None = None,
    checkpoint_every: int | None = None,
) -> History:
    """The trainer of :mod:`flashlla.models.training` with the schedule that experiments share.

    Args:
        batch: ``batch(step, rank)``, as the trainer wants it.
        learning_rate: at the peak of a cosine behind a warm-up.
        optimizer: ``"adamw"`` or ``"muon"``.
        warmup: share of the steps.
        floor: share of the peak that the cosine ends at.
        evaluate: ``evaluate(model, step)``, numbers by name, without gradient and in eval mode.
        evaluate_every, checkpoint_every: steps between two of them; both are at the end as well. Checkpoints
            are by default where evaluations are, or else behind each quarter.
    """
    config = training.TrainerConfig(
        steps=steps,
        seed=seed,
        optimizer=training.OptimizerConfig(optimizer, learning_rate, weight_decay=weight_decay),
        schedule=training.ScheduleConfig("cosine", warmup_steps=int(warmup * steps), floor=floor),
        log_every=max(1, steps // 20),
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every or evaluate_every or max(1, steps // 4),
    )
    trainer = training.Trainer(
        model,
        loss,
        batch,
        config,
        folder / "training",
        evaluate=evaluate and (lambda model: evaluate(model, trainer.step)),
        world=training.World.join(device=next(model.parameters()).device),
        progress=False,
    )
    trainer.fit()
    records = training.read_metrics(folder / "training" / "metrics.jsonl")
    return History(*([r for r in records if ("seconds" in r) is step] for step in (True, False)))


def token_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy over a batch of tokens and targets, ``[batch, seq]`` each, nats, 0-dim."""
    tokens, targets = batch
    return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def seed_for(seed: int, purpose: str, *more: int) -> int:
    """A seed of 63 bits that depends on a trial's seed and what it is for."""
    return training.batch_seed(seed, zlib.crc32(purpose.encode()), 0, *more)


def at_best_rate(table: Table, by: Sequence[str], metric: str, *, highest: bool = False) -> Table:
    """Rows at the learning rate with the best ``metric``, mean over seeds, for each group of columns ``by``.

    The same seeds choose and are reported, for every mixer alike: with few rates that is a small favour, and
    the same one to all.
    """
    means = table.groupby([*by, "learning_rate"])[metric].mean().reset_index()
    order = means.sort_values(metric, ascending=not highest, kind="stable")
    best = order.drop_duplicates(subset=list(by))[[*by, "learning_rate"]]
    return table.merge(best, on=[*by, "learning_rate"])
