"""Configuration, trials, and what one trial computes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashlla.models import LanguageModel
from flashlla.models.mixers import MIXERS

from ..common.experiment import ExperimentConfig
from . import chains, knowledge, lines

PARTS = ("graph", "chains", "lines")
PRECISIONS = ("float32", "bfloat16")
NARROWEST = 20  # width


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """Sparsity of representations under shift.

    Attributes:
        mixer: token mixers on the knowledge graph.
        variant_mixer: those that have every precision and size there; the others have the first of each.
        axis_mixer: those on the graded axes and with chosen demonstrations.
        axis_seeds: repetitions of these, at most as many as seeds.
        part: among graph, chains, lines.
        precision: of the weights on the graph, float32 and bfloat16.
        size: of the models on the graph, as layers and heads: ``8-16``.
        head_dim: width of a head there.
        entities, relations, rules, attachments, facts: of the graph; see ``build_graph``.
        questions: of every split.
        batch, steps, every, learning_rate: on the graph, with AdamW; every so many steps is an evaluation.
        width, depth, heads: of the models of chains and lines.
        prompts: of each level of an axis.
        values, links: of chains: numbers, and lookups of the longest chain in training.
        chain_batch, chain_steps, chain_rate: of their training, with Muon.
        chain, fragment, roots, contexts, inserted, lines: of the task of lines; see ``make_task`` of the
            package ftct. ``lines`` are those of a training sequence.
        shots: the most on the axis of context.
        line_batch, line_steps, line_rate: of their training, with Muon.
        pool: lines that demonstrations are chosen from.
        asked: questions that they are chosen for.
    """

    mixer: tuple[str, ...] = ("softmax", "lla", "parallax", "mesanet", "gated_deltanet")
    variant_mixer: tuple[str, ...] = ("softmax",)
    axis_mixer: tuple[str, ...] = ("softmax", "lla")
    axis_seeds: int = 2
    part: tuple[str, ...] = PARTS
    precision: tuple[str, ...] = ("float32",)
    size: tuple[str, ...] = ("2-2",)
    head_dim: int = 32
    entities: int = 120
    relations: int = 12
    rules: int = 6
    attachments: int = 6
    facts: int = 300
    questions: int = 80
    batch: int = 32
    steps: int = 500
    every: int = 100
    learning_rate: float = 3e-3
    width: int = 48
    depth: int = 2
    heads: int = 2
    prompts: int = 200
    values: int = 11
    links: int = 4
    chain_batch: int = 128
    chain_steps: int = 500
    chain_rate: float = 1e-2
    chain: int = 8
    fragment: int = 4
    roots: int = 14
    contexts: int = 2
    inserted: int = 2
    lines: int = 3
    shots: int = 8
    line_batch: int = 16
    line_steps: int = 400
    line_rate: float = 2e-2
    pool: int = 500
    asked: int = 200
    seeds: int = 3

    def __post_init__(self):
        super().__post_init__()
        for name in ("variant_mixer", "axis_mixer"):
            self._check_names(name, MIXERS)
        for name, choices in (("part", PARTS), ("precision", PRECISIONS)):
            self._check_names(name, choices)
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one of {', '.join(choices)}")
        self._check_positive(*_POSITIVE)
        if self.steps % self.every:
            raise ValueError(f"steps={self.steps} must be a multiple of every={self.every}")
        if self.shots >= self.roots:
            raise ValueError(
                f"shots={self.shots} must be less than roots={self.roots}: lines have different ones"
            )
        self._check_models()

    def _check_models(self) -> None:
        """Sizes that do not fit are told apart here, not in every trial."""
        configs = [
            package.model_config(name, self.values, self.width, self.depth, self.heads)
            for name in self.axis_mixer
            for package in (chains, lines)
        ]
        for size in self.size:
            depth, heads = layers_and_heads(size)
            shape = (depth, heads, heads * self.head_dim)
            configs += [knowledge.model_config(name, *shape) for name in self.mixer]
        for config in configs:
            if config.dim < NARROWEST:
                raise ValueError(
                    f"a width of {config.dim} must be at least {NARROWEST}: 5 % of it is an entry"
                )
            LanguageModel(config, device="meta")


_POSITIVE = (
    *("axis_seeds", "head_dim", "relations", "rules", "attachments", "facts", "questions"),
    *("batch", "steps", "every", "learning_rate", "prompts", "links"),
    *("chain_batch", "chain_steps", "chain_rate", "lines", "shots"),
    *("line_batch", "line_steps", "line_rate", "pool", "asked"),
)


def layers_and_heads(size: str) -> tuple[int, int]:
    """``"8-16"`` is 8 layers and 16 heads.

    Raises:
        ValueError: something else.
    """
    try:
        depth, heads = map(int, size.split("-"))
    except ValueError:
        raise ValueError(f"size {size!r} must be layers and heads, such as 8-16") from None
    return depth, heads


PRESETS = {
    "smoke": Config(
        mixer=("softmax", "lla"),
        size=("1-2",),
        head_dim=16,
        entities=60,
        relations=10,
        rules=5,
        attachments=4,
        facts=100,
        questions=20,
        batch=16,
        steps=20,
        every=5,
        width=32,
        depth=1,
        prompts=24,
        values=5,
        links=2,
        chain_batch=32,
        chain_steps=20,
        chain=4,
        fragment=3,
        shots=3,
        lines=2,
        line_batch=8,
        line_steps=8,
        pool=40,
        asked=12,
        axis_seeds=1,
        seeds=2,
    ),
    "small": Config(),
    "gpu": Config(
        axis_mixer=("softmax", "lla", "parallax", "mesanet", "gated_deltanet"),
        axis_seeds=3,
        precision=("bfloat16", "float32"),
        size=("16-16", "8-8"),
        head_dim=64,
        entities=4000,
        relations=50,
        rules=20,
        facts=5000,
        questions=600,
        steps=2500,
        every=250,
        learning_rate=1e-4,
        width=256,
        depth=4,
        heads=4,
        prompts=1000,
        values=23,
        chain_batch=512,
        chain_steps=1500,
        chain_rate=5e-3,
        roots=50,
        contexts=7,
        inserted=6,
        lines=5,
        line_batch=64,
        line_steps=2000,
        line_rate=5e-3,
        asked=1000,
        device="cuda",
    ),
}


@dataclass(frozen=True)
class Trial:
    """One model on one part; what is 0 is of another part.

    Attributes:
        size: layers and heads in words, on the graph alone.
        test: questions of a split, or prompts of a level.
        questions: that demonstrations are chosen for.
    """

    part: str
    mixer: str
    seed: int
    precision: str
    device: str
    depth: int
    heads: int
    width: int
    optimizer: str
    learning_rate: float
    batch: int
    steps: int
    test: int
    every: int = 0
    size: str = ""
    entities: int = 0
    relations: int = 0
    rules: int = 0
    attachments: int = 0
    facts: int = 0
    values: int = 0
    links: int = 0
    chain: int = 0
    fragment: int = 0
    roots: int = 0
    contexts: int = 0
    inserted: int = 0
    lines: int = 0
    shots: int = 0
    pool: int = 0
    questions: int = 0


def trials(config: Config) -> Iterator[Trial]:
    """All parts; the mixers of a seed meet the same graphs, chains and lines in the same order."""
    of_part = {"graph": _graph_trials, "chains": _chain_trials, "lines": _line_trials}
    for seed in range(config.seeds):
        for part in config.part:
            if part == "graph" or seed < config.axis_seeds:
                yield from of_part[part](config, seed)


def _graph_trials(config: Config, seed: int) -> Iterator[Trial]:
    task = {
        name: getattr(config, name) for name in ("entities", "relations", "rules", "attachments", "facts")
    }
    recipe = ("adamw", config.learning_rate, config.batch, config.steps, config.questions, config.every)
    variants = list(itertools.product(config.size, config.precision))
    for mixer in config.mixer:
        for size, precision in variants if mixer in config.variant_mixer else variants[:1]:
            depth, heads = layers_and_heads(size)
            shape = (depth, heads, heads * config.head_dim)
            yield Trial("graph", mixer, seed, precision, config.device, *shape, *recipe, size=size, **task)


def _chain_trials(config: Config, seed: int) -> Iterator[Trial]:
    shape = (config.depth, config.heads, config.width)
    recipe = ("muon", config.chain_rate, config.chain_batch, config.chain_steps, config.prompts)
    for mixer in config.axis_mixer:
        about = (mixer, seed, "float32", config.device)
        yield Trial("chains", *about, *shape, *recipe, values=config.values, links=config.links)


def _line_trials(config: Config, seed: int) -> Iterator[Trial]:
    names = ("chain", "fragment", "roots", "contexts", "inserted", "lines", "shots", "pool")
    task = {name: getattr(config, name) for name in names}
    shape = (config.depth, config.heads, config.width)
    recipe = ("muon", config.line_rate, config.line_batch, config.line_steps, config.prompts)
    for mixer in config.axis_mixer:
        about = (mixer, seed, "float32", config.device)
        yield Trial("lines", *about, *shape, *recipe, **task, questions=config.asked)


def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """The rows of its part, told apart by ``kind``."""
    return {"graph": knowledge.run, "chains": chains.run, "lines": lines.run}[trial.part](trial, folder)
