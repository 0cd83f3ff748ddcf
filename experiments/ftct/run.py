"""Configuration, trials, and what one trial computes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashlla.models import LanguageModel, LanguageModelConfig
from flashlla.models.mixers import MIXERS
from flashlla.models.training import batch_generator

from ..common.costs import costs
from ..common.experiment import ExperimentConfig
from ..common.training import train
from .data import LONGER, Task, longest_fragment, make_task, training_sequences
from .graph import CHAINS
from .mlp import MLP, WindowMLP
from .probes import induction_scores, probe_accuracies
from .testing import ACCURACIES, accuracies
from .training import EVALUATIONS, by_evaluation, mean_loss
from .vocabulary import LETTERS

TEST_SEED = 10**6  # apart from the seeds of training
MLP_DEPTH, MLP_RATE = 2, 3e-3  # hidden layers of the baseline, and its learning rate, with AdamW
# Sooner: sequences are short, and a chunk costs what a whole one does.
OPTIONS = {"mesanet": {"chunk_size": 16, "rtol": 1e-3}, "gated_deltanet": {"chunk_size": 32}}
PROBED = 1  # shots in front of the line that is probed
PROBES = 2  # prompts of a probe, for each of a test
CHECKED = 10  # batches of a training whose lines are searched for chains
RECORDED = ("step", "loss", "step_seconds")


def model_config(mixer: str, vocab: int, dim: int, depth: int, heads: int) -> LanguageModelConfig:
    """As many parameters as softmax attention has, whatever the mixer: the SwiGLUs give way.

    Raises:
        ValueError: sizes that do not fit.
    """
    sizes = {"vocab_size": vocab, "dim": dim, "depth": depth, "heads": heads}
    options = OPTIONS.get(mixer, {})
    return LanguageModelConfig(**sizes, mixer=mixer, mixer_options=options, tie_embeddings=False).matched()


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """Fragmented at training, chained at testing.

    The first of the pairs (chain, fragment) with the first of the pairs (depth, heads) is the main cell,
    where all mixers are compared. The other pairs, each with the first of the others, are for some of them.

    Attributes:
        mixer: token mixers to compare in the main cell.
        other_mixer: those to compare in the other cells.
        chain: N, the vertices of a complete chain.
        fragment: M, the most of them that a training sequence shows, one value for each of chain.
        depth: blocks of the model.
        heads: of its mixers, one value for each of depth.
        window: tokens that the MLP of the baseline sees, in the main cell; 0 leaves it out.
        dim: width of the models; the MLP's is twice as much.
        contexts: tokens that each letter owns.
        inserted: the most of them in front of a vertex.
        roots: values of the root, 100 and up.
        held_out: so many of them are kept from training.
        lines: of a training sequence.
        max_shots: the most examples of a test; 0 and all between are tested as well.
        learning_rate: peak, with Muon.
        batch: sequences of a step.
        steps: of training; cells whose training shows an edge more rarely than the main cell have more.
        test: prompts of a test; a probe has twice as many.
    """

    mixer: tuple[str, ...] = ("softmax", "lla", "parallax", "mesanet", "gated_deltanet", "linear_attention")
    other_mixer: tuple[str, ...] = ("softmax", "lla")
    chain: tuple[int, ...] = (8, 8)
    fragment: tuple[int, ...] = (4, 2)
    depth: tuple[int, ...] = (2, 1)
    heads: tuple[int, ...] = (4, 1)
    window: int = 64
    dim: int = 64
    contexts: int = 2
    inserted: int = 2
    roots: int = 14
    held_out: int = 2
    lines: int = 2
    max_shots: int = 4
    learning_rate: float = 4e-2
    batch: int = 16
    steps: int = 700
    test: int = 64
    seeds: int = 2

    def __post_init__(self):
        super().__post_init__()
        self._check_names("other_mixer", MIXERS)
        self._check_pairs("chain", "fragment")
        self._check_pairs("depth", "heads")
        most = (len(LETTERS) - LONGER + 1) // (CHAINS + 1)
        for chain, fragment in zip(self.chain, self.fragment, strict=True):
            if not 5 <= chain <= most:
                raise ValueError(f"chain={chain} must be 5 to {most}, or there are no letters for noise")
            if not 2 <= fragment < chain:
                raise ValueError(f"fragment={fragment} must be 2 to {chain - 1}, less than chain={chain}")
        if not 1 <= self.inserted <= self.contexts:
            raise ValueError(f"inserted={self.inserted} must be 1 to contexts={self.contexts}")
        if not PROBED <= self.max_shots < self.roots - self.held_out or self.held_out < 1:
            raise ValueError(
                f"max_shots={self.max_shots} must be {PROBED} at least and less than roots={self.roots} less "
                f"held_out={self.held_out}, which is at least 1: every line of a test has another root"
            )
        sizes = ("dim", "lines", "batch", "steps", "test")
        if min(getattr(self, name) for name in sizes) < 1 or self.window < 0 or not self.learning_rate > 0:
            raise ValueError(
                f"dim={self.dim}, lines={self.lines}, batch={self.batch}, steps={self.steps}, "
                f"test={self.test} must be at least 1, window={self.window} not negative, "
                f"learning_rate={self.learning_rate} positive"
            )
        for mixer in {*self.mixer, *self.other_mixer}:  # sizes that do not fit are told apart here
            for depth, heads in zip(self.depth, self.heads, strict=True):
                LanguageModel(model_config(mixer, 2, self.dim, depth, heads), device="meta")

    def _check_pairs(self, one: str, other: str) -> None:
        pairs = list(zip(getattr(self, one), getattr(self, other), strict=False))
        lengths = {len(getattr(self, name)) for name in (one, other)}
        if len(lengths) > 1 or not pairs or len(set(pairs)) < len(pairs):
            raise ValueError(
                f"{one}={getattr(self, one)} and {other}={getattr(self, other)} must have as many values, "
                "at least one each, and no pair twice"
            )


PRESETS = {
    "smoke": Config(
        mixer=("softmax", "lla"),
        other_mixer=("softmax",),
        chain=(5, 5),
        fragment=(3, 2),
        depth=(2, 1),
        heads=(2, 1),
        window=16,
        dim=16,
        roots=5,
        held_out=1,
        max_shots=2,
        batch=4,
        steps=2,
        test=5,
    ),
    "small": Config(),
    "gpu": Config(
        chain=(10, 10, 10, 5, 5),
        fragment=(4, 3, 2, 3, 2),
        depth=(3, 1, 3, 1),
        heads=(4, 4, 1, 1),
        window=200,
        dim=256,
        contexts=7,
        inserted=6,
        roots=50,
        held_out=5,
        lines=5,
        batch=64,
        learning_rate=2e-2,
        steps=800,
        test=500,
        device="cuda",
    ),
}


@dataclass(frozen=True)
class Trial:
    """One model on one graph; an MLP has no heads, and what is no MLP no window."""

    mixer: str
    seed: int
    chain: int
    fragment: int
    depth: int
    heads: int
    window: int
    dim: int
    contexts: int
    inserted: int
    roots: int
    held_out: int
    lines: int
    max_shots: int
    learning_rate: float
    batch: int
    steps: int
    test: int
    device: str


def trials(config: Config) -> Iterator[Trial]:
    """All mixers and the baseline in the main cell, some in the others; those of a seed see the same data."""
    cells = list(zip(config.chain, config.fragment, strict=True))
    sizes = list(zip(config.depth, config.heads, strict=True))
    task = (config.contexts, config.inserted, config.roots, config.held_out, config.lines, config.max_shots)
    rest = (config.test, config.device)
    for seed in range(config.seeds):
        common = (0, config.dim, *task, config.learning_rate, config.batch)
        for mixer in config.mixer:
            yield Trial(mixer, seed, *cells[0], *sizes[0], *common, config.steps, *rest)
        for mixer in config.other_mixer:
            for cell in cells[1:]:
                yield Trial(mixer, seed, *cell, *sizes[0], *common, _steps(config, *cell), *rest)
            for size in sizes[1:]:
                yield Trial(mixer, seed, *cells[0], *size, *common, config.steps, *rest)
        if config.window:
            sizes_of_mlp = (MLP_DEPTH, 0, config.window, 2 * config.dim)
            recipe = (MLP_RATE, config.batch, config.steps)
            yield Trial(MLP, seed, *cells[0], *sizes_of_mlp, *task, *recipe, *rest)


def _steps(config: Config, chain: int, fragment: int) -> int:
    """Steps until every edge was seen as often as in the main cell, and no fewer than there.

    A fragment shows M / 2 edges on average, of the N - 1 of its chain.
    """
    main, here = config.fragment[0] / (config.chain[0] - 1), fragment / (chain - 1)
    return math.ceil(config.steps * max(1.0, main / here))


def build_model(trial: Trial, vocab: int) -> LanguageModel | WindowMLP:
    """The model of a trial, initialised by its seed."""
    torch.manual_seed(trial.seed)
    if trial.mixer == MLP:
        return WindowMLP(vocab, trial.window, trial.dim, trial.depth).to(trial.device)
    model = LanguageModel(model_config(trial.mixer, vocab, trial.dim, trial.depth, trial.heads))
    model.embedding.reset_parameters()  # variance 1: the README says why
    return model.to(trial.device)


def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """A row for every evaluation and number of shots; those at the end tell what is inside as well.

    More shots than a training sequence can hold are tested at the end alone.
    """
    task = make_task(
        trial.chain,
        trial.fragment,
        trial.roots,
        trial.held_out,
        trial.contexts,
        trial.inserted,
        trial.seed,
    )
    model = build_model(trial, len(task.vocabulary))
    trained = range(min(trial.lines, trial.max_shots + 1))
    seed = TEST_SEED + trial.seed

    def test(model, shots: int, **options) -> dict[str, float]:
        return accuracies(model, task, trial.test, shots, seed, **options)

    history = train(
        model,
        mean_loss,
        lambda generator: training_sequences(task, trial.batch, trial.lines, generator),
        folder,
        steps=trial.steps,
        optimizer="adamw" if trial.mixer == MLP else "muon",
        learning_rate=trial.learning_rate,
        seed=trial.seed,
        evaluate=lambda model, _: {
            f"{name} {k}": share for k in trained for name, share in test(model, k).items()
        },
        evaluate_every=math.ceil(trial.steps / EVALUATIONS),
    )
    records = by_evaluation(history)
    rows = [
        {**{name: record[name] for name in RECORDED}, "shots": k}
        | {name: record[f"{name} {k}"] for name in ACCURACIES}
        for record in records
        for k in trained
    ]
    model.eval()
    last = {name: records[-1][name] for name in RECORDED}
    rows += [{**last, "shots": k, **test(model, k)} for k in range(len(trained), trial.max_shots + 1)]
    inside = {
        **costs(model, history),
        "longest": _longest(trial, task),
        "held_out_values": test(model, PROBED, held_out=True)["values"],
    }
    if trial.mixer != MLP:
        inside |= probe_accuracies(model, task, PROBES * trial.test, PROBED, seed)
        inside |= induction_scores(model, task, PROBES * trial.test, seed)
    return [row | (inside if row["step"] == trial.steps else {}) for row in rows]


def _longest(trial: Trial, task: Task) -> int:
    """The most vertices of one chain with their values in a line, of so many batches of the training."""
    checked = range(0, trial.steps, math.ceil(trial.steps / CHECKED))
    generators = (batch_generator(trial.seed, step, 0) for step in checked)
    return max(
        longest_fragment(task, training_sequences(task, trial.batch, trial.lines, generator))
        for generator in generators
    )
