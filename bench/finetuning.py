"""Fine-tuning after conversion: the demo's softmax model goes on as it was, as LLA, and as Parallax.

    python bench/finetuning.py [--seeds 5] [--quick]

Every seed pre-trains the softmax model of ``flashlla demo``, and fine-tunes all three from there on the
same batches. Learning rates are chosen on seed 0, which is in no mean. It all runs on the CPU in one
thread. Finished runs are kept in ``runs/finetuning``, and a rerun takes them from there. The tables are
printed, saved as ``finetuning.json`` under ``bench/results/<machine>``, and put into docs/conversion.md;
with ``--quick`` they are only printed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import textwrap
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from _common import (
    ROOT,
    describe,
    machine,
    markdown_table,
    replace_between_markers,
    results_folder,
    save_json,
)
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from flashlla import models
from flashlla.experiments import demo
from flashlla.experiments.demo import data
from flashlla.experiments.demo.settings import DEFAULT_STEPS
from flashlla.experiments.demo.training import train as train_demo
from flashlla.integrations import convert
from flashlla.models import training

PAGE = ROOT / "docs" / "conversion.md"
ARMS = ("softmax", "lla", "parallax")  # the first one is the control
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)  # peak learning rates to choose from
RATE_SEED = 0
MOST_SEEDS = 10


@dataclass(frozen=True)
class Protocol:
    """What all runs have in common; ``windows`` of held-out text give a loss."""

    pretrain_steps: int = DEFAULT_STEPS
    steps: int = 200
    warmup_steps: int = 20
    windows: int = 512

    @cached_property
    def corpus(self) -> data.Corpus:
        return data.load_corpus()

    @property
    def folder(self) -> Path:
        """Of finished runs: another one for other settings or another text."""
        name = "-".join(str(value) for value in asdict(self).values())
        return ROOT / "runs" / "finetuning" / f"{self.corpus.digest}-{name}"

    def settings(self, seed: int) -> demo.Settings:
        return demo.Settings(seed=seed, steps=self.pretrain_steps, corpus=self.corpus.digest)


@dataclass(frozen=True)
class Run:
    """One fine-tuning; losses on held-out text in nats a byte, ``gate`` as :func:`mean_gate` has it."""

    arm: str
    seed: int
    learning_rate: float
    before: float
    after: float
    gate: float
    seconds: float  # of all training steps


# ---- one run ------------------------------------------------------------------------------------------


def pretrained(protocol: Protocol, seed: int) -> models.LanguageModel:
    """The demo's softmax model, trained as the demo does it, or as it was left by an earlier run."""
    folder = protocol.folder / f"pretrained-{seed}"
    train_demo("softmax", protocol.settings(seed), protocol.corpus, folder)
    return models.load_model(folder)


def loss(model: models.LanguageModel, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of inputs and targets, ``[batch, seq]`` each."""
    tokens, targets = batch
    return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


@torch.no_grad()
def held_out_loss(model: models.LanguageModel, protocol: Protocol) -> float:
    """Mean loss over windows of the validation text, always the same ones."""
    settings, generator = protocol.settings(0), torch.Generator().manual_seed(0)
    batch = data.random_batch(protocol.corpus.validation, protocol.windows, settings.context, generator)
    parts = zip(*(t.split(settings.batch) for t in batch), strict=True)
    model.eval()
    return statistics.fmean(loss(model, part).item() for part in parts)


def mean_gate(model: models.LanguageModel) -> float:
    """Mean absolute gate over all heads: LLA's gate, Parallax's scale of the probe; 0 without either."""
    gates = [p for name, p in model.named_parameters() if name.endswith(("gate.raw", "r_scale"))]
    return torch.cat(gates).abs().mean().item() if gates else 0.0


def finetune(protocol: Protocol, arm: str, seed: int, learning_rate: float) -> Run:
    """Convert the model of ``seed`` to ``arm``, train it on and measure; a run that is there is read."""
    path = protocol.folder / f"{arm}-{seed}-{learning_rate:g}.json"
    if path.exists():
        return Run(**json.loads(path.read_text()))
    model = pretrained(protocol, seed)
    torch.manual_seed(seed)  # of Parallax's new projection
    if arm != "softmax":
        convert(model, to=arm)
    before = held_out_loss(model, protocol)
    seconds = train(model, protocol, seed, learning_rate)
    after = held_out_loss(model, protocol)
    run = Run(arm, seed, learning_rate, before, after, mean_gate(model), seconds)
    save_json(path, asdict(run))
    return run


def train(model: models.LanguageModel, protocol: Protocol, seed: int, learning_rate: float) -> float:
    """Take the steps with a new optimizer; their seconds. The batches depend on nothing but the seed."""
    settings = protocol.settings(seed)

    def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
        # The steps are counted on, so that none of the batches was one of pre-training.
        generator = training.batch_generator(seed, protocol.pretrain_steps + step, rank)
        return data.random_batch(protocol.corpus.train, settings.batch, settings.context, generator)

    config = training.TrainerConfig(
        protocol.steps,
        seed=seed,
        optimizer=training.OptimizerConfig("adamw", learning_rate, weight_decay=0.1),
        schedule=training.ScheduleConfig("cosine", warmup_steps=protocol.warmup_steps, floor=0.0),
    )
    world = training.World.join(device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        training.Trainer(model, loss, batch, config, folder, world=world, progress=False).fit()
        return sum(record["seconds"] for record in training.read_metrics(Path(folder, "metrics.jsonl")))


# ---- all runs -----------------------------------------------------------------------------------------


def reported(protocol: Protocol, arm: str, seed: int, learning_rate: float) -> Run:
    """:func:`finetune` with a line on the terminal."""
    run = finetune(protocol, arm, seed, learning_rate)
    print(
        f"seed {seed}, {arm} at {learning_rate:g}: {run.before:.4f} -> {run.after:.4f}, "
        f"gate {run.gate:.3f}, {run.seconds:.0f} s",
        flush=True,
    )
    return run


def choose(tried: list[Run]) -> dict[str, float]:
    """The learning rate of the lowest loss, for every arm."""
    best = {arm: min((r for r in tried if r.arm == arm), key=lambda run: run.after) for arm in ARMS}
    return {arm: run.learning_rate for arm, run in best.items()}


def mean_and_half_width(samples: list[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval by Student's t."""
    error = statistics.stdev(samples) / math.sqrt(len(samples))
    return statistics.fmean(samples), stats.t.ppf(0.975, len(samples) - 1) * error


# ---- the table ----------------------------------------------------------------------------------------


def cells(arm: str, runs: list[Run]) -> list[str]:
    """The row of an arm: means over seeds, and differences to the control of the same seed."""
    control = {run.seed: run for run in runs if run.arm == ARMS[0]}
    mine = [run for run in runs if run.arm == arm]
    before, after, gate, seconds = (
        statistics.fmean(getattr(run, name) for run in mine)
        for name in ("before", "after", "gate", "seconds")
    )
    differences = [run.after - control[run.seed].after for run in mine]
    mean, half = mean_and_half_width(differences)
    against = [f"{mean:+.4f} ± {half:.4f}", f"{sum(d < 0 for d in differences)} of {len(mine)}"]
    return [
        arm,
        f"{mine[0].learning_rate:g}",
        f"{before:.4f}",
        f"{after:.4f}",
        f"{after - before:+.4f}",
        *(["-", "-"] if arm == ARMS[0] else against),
        "-" if arm == ARMS[0] else f"{gate:.3f}",
        f"{seconds:.0f}",
    ]


def rate_table(tried: list[Run]) -> str:
    """Losses at the end, by arm and learning rate."""
    losses = {(run.arm, run.learning_rate): f"{run.after:.4f}" for run in tried}
    header = [f"seed {RATE_SEED}, learning rate", *(f"{rate:g}" for rate in RATES)]
    return markdown_table(header, [[arm, *(losses[arm, rate] for rate in RATES)] for arm in ARMS])


def section(protocol: Protocol, tried: list[Run], runs: list[Run], this: dict) -> str:
    """The tables, and what was measured."""
    header = ["arm", "learning rate", "loss before", "after", "change", "after, minus softmax"]
    header += ["below softmax", "mean abs. gate", "seconds"]
    control = {run.seed: run.before for run in runs if run.arm == ARMS[0]}
    shift = max(abs(run.before - control[run.seed]) for run in runs)
    notes = (
        f"Means over {len(control)} seeds, {protocol.pretrain_steps} steps of pre-training and then "
        f"{protocol.steps} of fine-tuning. Losses are in nats a byte, over {protocol.windows} windows "
        "of held-out text. Differences are paired by seed, with a 95 % interval (Student's t). The "
        "gate of Parallax is the scale of its probe. The largest change of a loss by the conversion "
        f"itself is {shift:.1g}."
    )
    table = markdown_table(header, [cells(arm, runs) for arm in ARMS])
    head = f"{describe(this)} One thread."
    return f"{head}\n\n{table}\n\n{textwrap.fill(notes, 118)}\n\n{rate_table(tried)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seeds",
        type=int,
        choices=range(2, MOST_SEEDS + 1),
        default=5,
        help="in the table, 2 to 10 (default: 5)",
    )
    parser.add_argument("--quick", action="store_true", help="few steps; the tables are only printed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    this = machine()
    protocol = Protocol(10, 5, 2, 16) if options.quick else Protocol()
    tried = [reported(protocol, arm, RATE_SEED, rate) for arm in ARMS for rate in RATES]
    rates = choose(tried)
    seeds = range(RATE_SEED + 1, RATE_SEED + 1 + options.seeds)
    runs = [reported(protocol, arm, seed, rates[arm]) for seed in seeds for arm in ARMS]
    text = section(protocol, tried, runs, this)
    print(text)
    if options.quick:
        return
    entries = {"tried": [asdict(run) for run in tried], "runs": [asdict(run) for run in runs]}
    save_json(
        results_folder() / "finetuning.json", {"machine": this, "protocol": asdict(protocol), **entries}
    )
    replace_between_markers(PAGE, "finetuning", text)


if __name__ == "__main__":
    main()
