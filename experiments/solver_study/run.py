"""Configuration, trials, and what one trial computes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashlla.models import LanguageModel

from ..common.experiment import ExperimentConfig
from ..common.files import write_json
from ..common.training import token_loss, train
from ..demo.data import load_corpus, random_batch
from .measure import CAPS, losses, solver_rows
from .model import StudiedAttention, attention_layers, build

PARTS = 4  # of training; measured before the first of them and behind each
RIDGE, BANDWIDTH = 1.0, 1.0  # where learned ones start, and the one that stays while the other is varied
LEARNED = ("ridge", "bandwidth")


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """Solver study.

    Attributes:
        mixer: LLA alone; no other mixer has a solver and a ridge.
        ridge: fixed ones beside 1, in squared units of the keys, whose entries have the mean square 1.
        bandwidth: fixed ones beside 1, in units of sqrt(head_dim).
        learned: what is learned in trials of its own, from 1: ridge, bandwidth.
        dim, depth, heads: of the model.
        context: bytes of a training sequence.
        batch: sequences of a step.
        steps: of training, a multiple of 4.
        learning_rate: at its peak.
        longest: keys up to which the solver is measured.
        sequences: that the solver is measured on, of ``longest`` bytes.
        test: sequences that the loss is measured on, of ``context`` bytes.
    """

    mixer: tuple[str, ...] = ("lla",)
    ridge: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    bandwidth: tuple[float, ...] = (0.5, 1.0, 2.0)
    learned: tuple[str, ...] = LEARNED
    dim: int = 64
    depth: int = 3
    heads: int = 1
    context: int = 512
    batch: int = 2
    steps: int = 200
    learning_rate: float = 1e-2
    longest: int = 1024
    sequences: int = 2
    test: int = 32

    def __post_init__(self):
        super().__post_init__()
        if self.mixer != ("lla",):
            raise ValueError(f"mixer={' '.join(self.mixer)!r} must be lla alone; no other mixer has a solver")
        for name in ("ridge", "bandwidth"):
            values = getattr(self, name)
            if not values or min(values) <= 0 or len(set(values)) < len(values):
                raise ValueError(f"{name}={values} must be positive numbers, at least one and each once")
        if set(self.learned) - set(LEARNED) or len(set(self.learned)) < len(self.learned):
            raise ValueError(f"learned={self.learned} may name ridge and bandwidth, each once")
        if self.steps < PARTS or self.steps % PARTS:
            raise ValueError(f"steps={self.steps} must be a positive multiple of {PARTS}")
        if min(self.context, self.batch, self.sequences, self.test) < 1 or self.learning_rate <= 0:
            raise ValueError(
                f"context={self.context}, batch={self.batch}, sequences={self.sequences}, test={self.test} "
                f"must be at least 1, and learning_rate={self.learning_rate} positive"
            )
        with torch.device("meta"):
            build(self.dim, self.depth, self.heads)  # sizes that do not fit are told here, not in every trial
        shortest = 2 * (self.dim // self.heads)
        if self.longest < shortest:
            raise ValueError(f"longest={self.longest} must be at least {shortest}, twice the head dimension")


PRESETS = {
    "smoke": Config(
        ridge=(0.1, 1.0),
        bandwidth=(1.0,),
        learned=("ridge",),
        dim=32,
        depth=2,
        context=128,
        steps=8,
        longest=256,
        sequences=1,
        test=4,
        seeds=2,
    ),
    "small": Config(),
    "gpu": Config(dim=128, depth=4, heads=2, context=1024, batch=4, steps=240, longest=4096, device="cuda"),
}


@dataclass(frozen=True)
class Trial:
    """One model: where ridge and bandwidth start, which of them is learned, and a seed."""

    seed: int
    ridge: float
    bandwidth: float
    learned: str
    dim: int
    depth: int
    heads: int
    context: int
    batch: int
    steps: int
    learning_rate: float
    longest: int
    sequences: int
    test: int
    device: str


def trials(config: Config) -> Iterator[Trial]:
    """Fixed ridges at bandwidth 1, fixed bandwidths at ridge 1, and what is learned from there.

    Small ridges, which take longest, come first. The models of a seed start from the same weights and see
    the same text.
    """
    fixed = {(ridge, BANDWIDTH) for ridge in config.ridge} | {(RIDGE, wide) for wide in config.bandwidth}
    settings = [(*setting, "nothing") for setting in sorted({*fixed, (RIDGE, BANDWIDTH)})]
    settings += [(RIDGE, BANDWIDTH, learned) for learned in config.learned]
    sizes = (config.dim, config.depth, config.heads, config.context, config.batch, config.steps)
    measured = (config.longest, config.sequences, config.test, config.device)
    for setting in settings:
        for seed in range(config.seeds):
            yield Trial(seed, *setting, *sizes, config.learning_rate, *measured)


def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """A row for every measured step, layer, length and cap; losses stopped at the cap at the last step."""
    torch.manual_seed(trial.seed)
    sizes = (trial.dim, trial.depth, trial.heads)
    model = build(*sizes, trial.ridge, trial.bandwidth, trial.learned).to(trial.device)
    corpus, generator = load_corpus(), torch.Generator().manual_seed(trial.seed)
    sequences, _ = random_batch(corpus.validation, trial.sequences, trial.longest, generator)
    test = [t.to(trial.device) for t in random_batch(corpus.validation, trial.test, trial.context, generator)]

    def measure(model: LanguageModel, step: int) -> dict[str, float]:
        """Write the rows of a step to where a trial that goes on later finds them; no number for the log."""
        found = losses(model, *test, CAPS if step == trial.steps else ())
        with torch.no_grad():
            model(sequences.to(trial.device))
        rows = [
            {**_constants(layer), "step": step, "layer": number, "loss": found[None], **row}
            for number, layer in enumerate(attention_layers(model), 1)
            for row in solver_rows(layer.operands, trial.longest)
        ]
        rows = [{**row, "loss_stopped": found.get(row["cap"])} for row in rows]
        write_json(_measured(folder, step), rows)
        return {}

    measure(model, 0)
    train(
        model,
        token_loss,
        lambda generator: random_batch(corpus.train, trial.batch, trial.context, generator),
        folder,
        steps=trial.steps,
        optimizer="muon",
        learning_rate=trial.learning_rate,
        seed=trial.seed,
        evaluate=measure,
        evaluate_every=trial.steps // PARTS,
    )
    steps = range(0, trial.steps + 1, trial.steps // PARTS)
    return [row for step in steps for row in json.loads(_measured(folder, step).read_text())]


def _measured(folder: Path, step: int) -> Path:
    return folder / "measured" / f"{step}.json"


def _constants(layer: StudiedAttention) -> dict[str, float]:
    """Ridge and bandwidth of a layer as they are now: geometric means over the heads."""
    return {f"{name}_now": getattr(layer, name)().detach().log().mean().exp().item() for name in LEARNED}
