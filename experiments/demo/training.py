"""Training one mixer: a loop that can be stopped after any step and goes on as if it had not been."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from flashlla import models

from . import data
from .data import Corpus
from .files import read_json, write_json
from .settings import MIXERS, DemoError, Settings

WARMUP_STEPS = 20
EVALUATIONS = 10
TIMED_STEPS = 4


class Stopped(Exception):
    """The run was asked to stop; its state is on disk."""


@dataclass
class Progress:
    """What a mixer's training has measured so far; losses in nats a byte."""

    train_losses: list[float] = field(default_factory=list)  # of every step
    step_seconds: list[float] = field(default_factory=list)  # of every step
    validation: list[tuple[int, float]] = field(default_factory=list)  # (steps done, loss)
    wall_seconds: float = 0.0  # evaluations and saving included

    def cut(self, steps: int) -> Progress:
        """The part up to ``steps`` steps."""
        points = [(step, loss) for step, loss in self.validation if step <= steps]
        return Progress(self.train_losses[:steps], self.step_seconds[:steps], points, self.wall_seconds)


def train(
    mixer: str,
    settings: Settings,
    corpus: Corpus,
    folder: Path,
    on_step: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> Progress:
    """Train, or go on with what ``folder`` holds; the trained model is then there too.

    Raises:
        Stopped: ``should_stop`` said so, and the state was saved.
        DemoError: the loss is no longer a number.
    """
    run = _Run(mixer, settings, corpus)
    progress = run.restore(folder)
    began = time.perf_counter() - progress.wall_seconds
    on_step(progress)

    def save() -> None:
        # The list may be longer than the state but never shorter: it is cut to the state's step later.
        progress.wall_seconds = time.perf_counter() - began
        write_json(folder / "progress.json", asdict(progress))
        run.save(folder)

    every = math.ceil(settings.steps / EVALUATIONS)
    while run.step < settings.steps:
        if should_stop():
            save()
            raise Stopped
        loss, seconds = run.train_step()
        progress.train_losses.append(loss)
        progress.step_seconds.append(seconds)
        if run.step % every == 0 or run.step == settings.steps:
            loss = validation_losses(run.model, settings, corpus).mean().item()
            progress.validation.append((run.step, loss))
            save()
        on_step(progress)
    models.save_model(run.model, folder)
    return progress


class _Run:
    """Model, optimiser and the order of the data; the latter two are the same for every mixer."""

    def __init__(self, mixer: str, settings: Settings, corpus: Corpus):
        self.settings, self.corpus, self.step = settings, corpus, 0
        torch.manual_seed(settings.seed)
        self.model = models.LanguageModel(settings.model_config(mixer)).to(settings.device)
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95))
        self.generator = torch.Generator().manual_seed(settings.seed)

    def train_step(self) -> tuple[float, float]:
        """One step; its loss and its seconds."""
        began = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * self._schedule()
        x, y = data.random_batch(
            self.corpus.train, self.settings.batch, self.settings.context, self.generator
        )
        loss = _losses(self.model, x, y, self.settings.device).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        value = loss.item()
        if not math.isfinite(value):
            raise DemoError(f"the loss is {value} at step {self.step}; try a larger --ridge")
        return value, time.perf_counter() - began

    def _schedule(self) -> float:
        """Share of the learning rate: a linear rise, then a cosine down to a tenth."""
        steps = self.settings.steps or TIMED_STEPS
        rise = min(1.0, (self.step + 1) / min(WARMUP_STEPS, steps))
        return rise * (0.55 + 0.45 * math.cos(math.pi * self.step / steps))

    def save(self, folder: Path) -> None:
        models.save_training_state(folder, self.model, self.optimizer, self.step, generator=self.generator)

    def restore(self, folder: Path) -> Progress:
        if not (folder / "training.pt").exists():
            return Progress()
        stored = read_json(folder / "progress.json") or {}
        try:
            self.step = models.load_training_state(
                folder, self.model, self.optimizer, generator=self.generator
            )
        except ValueError as error:
            raise DemoError(f"{error}; or start anew with --fresh") from error
        return Progress(**stored).cut(self.step)


def _losses(model: models.LanguageModel, x: Tensor, y: Tensor, device: str) -> Tensor:
    """Mean loss of every row, ``[batch]``."""
    logits = model(x.to(device))
    return F.cross_entropy(logits.transpose(1, 2), y.to(device), reduction="none").mean(1)


@torch.no_grad()
def validation_losses(model: models.LanguageModel, settings: Settings, corpus: Corpus) -> Tensor:
    """Loss of every validation window, on the CPU."""
    batches = data.validation_batches(corpus.validation, settings.batch, settings.context)
    return torch.cat([_losses(model, x, y, settings.device).cpu() for x, y in batches])


def steps_in(minutes: float, settings: Settings, corpus: Corpus) -> int:
    """How many steps of every mixer, one after the other, fit in ``minutes``, by timing a few of each.

    Raises:
        DemoError: hardly any.
    """
    seconds = 0.0
    for mixer in MIXERS:
        run = _Run(mixer, settings, corpus)
        seconds += statistics.median([run.train_step()[1] for _ in range(1 + TIMED_STEPS)][1:])
    # A window of an evaluation costs about a third of one in training: it has no backward pass.
    evaluations = EVALUATIONS * data.VALIDATION_WINDOWS / settings.batch / 3
    steps = int(minutes * 60 / seconds - evaluations - TIMED_STEPS)
    if steps < EVALUATIONS:
        raise DemoError(
            f"{minutes:g} minutes are too short: a step of both mixers takes {seconds:.2f} s here, and "
            f"evaluations as long as {evaluations:.0f} steps; allow "
            f"{(evaluations + 20) * seconds / 60 + 0.1:.1f} minutes"
        )
    return steps
