"""The part on lines of letters and values (those of FTCT): three axes, and sparsity-guided demonstrations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flashlla.models import LanguageModel

from ..common.costs import costs
from ..common.training import train
from ..ftct.data import (
    COMMA,
    CONTEXT,
    EQUALS,
    LONGER,
    PAD,
    VALUE,
    Sequences,
    Task,
    make_task,
    training_sequences,
    write,
)
from ..ftct.run import model_config
from ..ftct.training import mean_loss
from . import axes, demonstrations
from .chains import TEST_SEED
from .windows import Letters, drawn_letters, drawn_values

if TYPE_CHECKING:
    from .run import Trial

BUCKETS = 4  # of sequences by their length, from which a training batch is one
CONFLICTS = 3  # shots on the axis of conflicts, which are wrong one after the other
DISTRACTED = 1  # shots on the axis of distractors


def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """Rows of the axes ``context``, ``distractors`` and ``conflict``, and of every way to choose shots."""
    torch.manual_seed(trial.seed)
    task = make_task(trial.chain, trial.fragment, trial.roots, 0, trial.contexts, trial.inserted, trial.seed)
    model = LanguageModel(
        model_config(trial.mixer, len(task.vocabulary), trial.width, trial.depth, trial.heads)
    )
    model.embedding.reset_parameters()  # variance 1, as in the package that the task is from
    history = train(
        model.to(trial.device, getattr(torch, trial.precision)),
        mean_loss,
        lambda generator: training_batch(task, trial.batch, trial.lines, generator),
        folder,
        steps=trial.steps,
        learning_rate=trial.learning_rate,
        seed=trial.seed,
        optimizer=trial.optimizer,
    )
    generator = torch.Generator().manual_seed(TEST_SEED + trial.seed)
    found = []
    for axis, (levels, draw) in _axes(trial).items():
        samples = {
            level: axes.read(model.eval(), draw(task, level, trial.test, generator)) for level in levels
        }
        found += axes.rows(axis, samples)
    found += demonstrations.rows(model, task, trial.pool, trial.questions, generator)
    about = costs(model, history)
    return [row | about for row in found]


# ---- axes -------------------------------------------------------------------------------------------

Draw = Callable[[Task, int, int, torch.Generator], axes.Prompts]


def _axes(trial: Trial) -> dict[str, tuple[range, Draw]]:
    """Levels of every axis, and how prompts of a level are drawn."""
    return {
        "context": (range(trial.shots + 1), _with_shots),
        "distractors": (range(LONGER + 1), _with_distractors),
        "conflict": (range(CONFLICTS + 1), _with_conflicts),
    }


def _with_shots(task: Task, shots: int, count: int, generator: torch.Generator) -> axes.Prompts:
    """Complete chains behind so many examples of them."""
    chains = drawn_letters(task, _full(task, count), 0, generator)
    return _prompts(task, chains, drawn_values(task, chains, shots + 1, generator), COMMA, generator)


def _with_distractors(task: Task, noise: int, count: int, generator: torch.Generator) -> axes.Prompts:
    """Complete chains with so many other letters among them, behind one example that has these as well."""
    chains = drawn_letters(task, _full(task, count), noise, generator)
    values = drawn_values(task, chains, DISTRACTED + 1, generator)
    return _prompts(task, chains, values, COMMA, generator)


def _with_conflicts(task: Task, wrong: int, count: int, generator: torch.Generator) -> axes.Prompts:
    """Complete chains behind examples, so many of which have values that do not follow from one another.

    The prompt goes on to ``V=`` of the second vertex: what comes next is where they disagree.
    """
    chains = drawn_letters(task, _full(task, count), 0, generator)
    values = drawn_values(task, chains, CONFLICTS + 1, generator)
    others = torch.randint(task.graph.values.shape[1], values[:, :wrong].shape, generator=generator)
    values[:, :wrong] = task.graph.values[chains.letters[:, None], others]
    return _prompts(task, chains, values, EQUALS, generator)


def _prompts(
    task: Task, chains: Letters, values: Tensor, end: int, generator: torch.Generator
) -> axes.Prompts:
    """Prompts up to the comma of the first vertex of the last line, or to the equals sign of the second.

    The model should know the values of a chain, and which vertex comes next: the first context behind a
    comma says that.
    """
    sequences = write(task, chains.letters, values, chains.lengths, generator)
    kinds, places = sequences.kinds, sequences.places
    last = sequences.lines == values.shape[1] - 1
    ends = (last & (kinds == end) & (places == (0 if end == COMMA else 1))).long().argmax(1)
    opens = torch.zeros_like(last)
    opens[:, 1:] = (kinds[:, 1:] == CONTEXT) & (kinds[:, :-1] == COMMA)
    asked = chains.known.gather(1, places.clamp(min=0)) & last & (places >= 1) & ((kinds == VALUE) | opens)
    behind = torch.arange(kinds.shape[1]) > ends[:, None]
    return axes.Prompts(sequences.tokens, ends, asked & behind)


def _full(task: Task, count: int) -> Tensor:
    """Complete chains in turn, ``[count, N]``."""
    return task.graph.chains[torch.arange(count) % len(task.graph.chains)]


def training_batch(task: Task, batch: int, lines: int, generator: torch.Generator) -> Sequences:
    """Training sequences of about one length, so that little of a batch is padding.

    They are a random quarter of four times as many, sorted by length: any sequence is as likely as before.
    """
    many = training_sequences(task, BUCKETS * batch, lines, generator)
    lengths = (many.kinds != PAD).sum(1)
    bucket = torch.randint(BUCKETS, (), generator=generator)
    chosen = lengths.argsort(stable=True).view(BUCKETS, batch)[bucket]
    return Sequences(*(t[chosen, : int(lengths[chosen].max())] for t in many))
