"""Training one mixer: what the library's loop, which also saves and resumes, has to know of it."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flashlla import models
from flashlla.models import training

from . import data
from .data import Corpus
from .settings import MIXERS, DemoError, Settings

WARMUP_STEPS = 20
EVALUATIONS = 10
TIMED_STEPS = 4
METRICS = "metrics.jsonl"


class Stopped(Exception):
    """The run was asked to stop; its state is on disk."""


@dataclass(frozen=True)
class Curves:
    """What the log of one mixer's training says; losses in nats a byte."""

    train_losses: list[float]  # of every step
    step_seconds: list[float]  # of every step
    validation: list[tuple[int, float]]  # (steps done, loss)
    evaluation_seconds: float  # of all evaluations together

    @classmethod
    def of(cls, records: list[dict[str, Any]]) -> Curves:
        steps = [record for record in records if "loss" in record]
        evaluations = [record for record in records if "validation_loss" in record]
        return cls(
            train_losses=[record["loss"] for record in steps],
            step_seconds=[record["seconds"] for record in steps],
            validation=[(record["step"], record["validation_loss"]) for record in evaluations],
            evaluation_seconds=sum(record["evaluation_seconds"] for record in evaluations),
        )


def train(
    mixer: str,
    settings: Settings,
    corpus: Corpus,
    folder: Path,
    *,
    on_log: Callable[[list[dict[str, Any]]], None] = lambda records: None,
    should_stop: Callable[[], bool] = lambda: False,
    evaluations: int = EVALUATIONS,
) -> Curves:
    """Train, or go on with what ``folder`` holds; the trained model is then there too.

    Args:
        on_log: called with new lines of the log, and first with those of the part that is done already.
        should_stop: asked after every step.

    Raises:
        Stopped: ``should_stop`` said so, and the state was saved.
        DemoError: the loss is no longer a number, or what ``folder`` holds is damaged.
    """
    trainer = _trainer(mixer, settings, corpus, folder, on_log, evaluations)
    try:
        if done := trainer.resume():
            records = training.read_metrics(folder / METRICS)
            if (logged := len(Curves.of(records).train_losses)) != done:
                raise DemoError(
                    f"{folder / METRICS} is damaged: it has {logged} of {done} steps; start anew with --fresh"
                )
            on_log(records)
        finished = trainer.fit(should_stop=should_stop)
    except (training.CheckpointError, training.NonFiniteError, FileNotFoundError) as error:
        raise DemoError(f"{error}; start anew with --fresh") from error
    if not finished:
        raise Stopped
    models.save_model(trainer.model, folder)
    return Curves.of(training.read_metrics(folder / METRICS))


def _trainer(
    mixer: str, settings: Settings, corpus: Corpus, folder: Path, on_log: Callable, evaluations: int
) -> training.Trainer:
    """The run of one mixer; all but the model is the same for every mixer, the order of the data too."""
    torch.manual_seed(settings.seed)
    model = models.LanguageModel(settings.model_config(mixer)).to(settings.device)

    def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
        generator = training.batch_generator(settings.seed, step, rank)
        return data.random_batch(corpus.train, settings.batch, settings.context, generator)

    def evaluate(model: models.LanguageModel) -> dict[str, float]:
        began = time.perf_counter()
        loss = validation_losses(model, settings, corpus).mean().item()
        return {"validation_loss": loss, "evaluation_seconds": time.perf_counter() - began}

    every = math.ceil(settings.steps / evaluations)
    config = training.TrainerConfig(
        steps=settings.steps,
        seed=settings.seed,
        optimizer=training.OptimizerConfig("adamw", settings.learning_rate, weight_decay=0.1),
        schedule=training.ScheduleConfig("cosine", warmup_steps=min(WARMUP_STEPS, settings.steps)),
        log_every=1,  # Ctrl-C stops after a step
        evaluate_every=every,
        checkpoint_every=every,
    )
    return training.Trainer(
        model,
        lambda model, batch: _losses(model, *batch).mean(),
        batch,
        config,
        folder,
        evaluate=evaluate,
        world=training.World.join(device=next(model.parameters()).device),  # "cuda" has become "cuda:0"
        progress=False,
        on_log=on_log,
    )


def _losses(model: models.LanguageModel, x: Tensor, y: Tensor) -> Tensor:
    """Mean loss of every row, ``[batch]``."""
    return F.cross_entropy(model(x).transpose(1, 2), y, reduction="none").mean(1)


@torch.no_grad()
def validation_losses(model: models.LanguageModel, settings: Settings, corpus: Corpus) -> Tensor:
    """Loss of every validation window, on the CPU."""
    batches = data.validation_batches(corpus.validation, settings.batch, settings.context)
    return torch.cat([_losses(model, *(t.to(settings.device) for t in batch)).cpu() for batch in batches])


def steps_in(minutes: float, settings: Settings, corpus: Corpus) -> int:
    """How many steps of every mixer, one after the other, fit in ``minutes``, by timing a few of each.

    Raises:
        DemoError: hardly any.
    """
    began = time.perf_counter()
    seconds = evaluation = 0.0
    for mixer in MIXERS:
        with tempfile.TemporaryDirectory() as folder:
            short = replace(settings, steps=1 + TIMED_STEPS)
            curves = train(mixer, short, corpus, Path(folder), evaluations=1)
        seconds += statistics.median(curves.step_seconds[1:])  # the first one loads the kernels
        evaluation += curves.evaluation_seconds
    other = time.perf_counter() - began + EVALUATIONS * evaluation
    steps = int((minutes * 60 - other) / seconds)
    if steps < EVALUATIONS:
        raise DemoError(
            f"{minutes:g} minutes are too short: a step of both mixers takes {seconds:.2f} s here, timing "
            f"and evaluations {other:.0f} s; allow {(other + 20 * seconds) / 60 + 0.1:.1f} minutes"
        )
    return steps
