"""Sparsity-guided demonstrations for lines of letters and values, against other ways to choose them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flashlla.models import LanguageModel, generate, probes

from ..ftct.data import COMMA, LONGER, PAD, Task, write
from ..ftct.testing import BEYOND, score
from .measures import CONFIDENCE, RESAMPLES, rank_correlation, rounded
from .selection import SHOTS, difficulty_levels, guided, similar
from .windows import Letters, drawn_letters, drawn_values

SCORE = "l0"  # what the paper's code takes by default
GUIDED = "SG-ICL"
ARMS = ("zero-shot", "random", "nearest", GUIDED, "reversed", "oracle")
TOGETHER = 512  # prompts


@dataclass(frozen=True)
class Lines:
    """Lines that are windows of chains among other letters, each with a question and its answer.

    Attributes:
        about: letters of each line.
        values: ``[n, places]``.
        texts: tokens of each line.
        questions: its tokens up to the first vertex and its comma.
    """

    about: Letters
    values: Tensor
    texts: list[Tensor]
    questions: list[Tensor]

    @classmethod
    def draw(cls, task: Task, count: int, generator: torch.Generator) -> Lines:
        """Windows of 2 to N vertices with up to five other letters in between."""
        sizes = torch.randint(2, task.chain + 1, (count,), generator=generator)
        noise = torch.randint(LONGER + 1, (count,), generator=generator)
        chains = task.graph.chains[torch.randint(len(task.graph.chains), (count,), generator=generator)]
        about = drawn_letters(task, chains, noise, generator, sizes)
        values = drawn_values(task, about, 1, generator)
        sequences = write(task, about.letters, values, about.lengths, generator)
        opening = (sequences.places == 0) & (sequences.kinds == COMMA)
        rows = list(
            zip(sequences.tokens, (sequences.kinds != PAD).sum(1), opening.long().argmax(1), strict=True)
        )
        texts = [tokens[:length] for tokens, length, _ in rows]
        return cls(about, values[:, 0], texts, [tokens[: end + 1] for tokens, _, end in rows])

    @property
    def vertices(self) -> np.ndarray:
        """How long each line is: what makes it hard."""
        return self.about.lengths.numpy()


def rows(
    model: LanguageModel, task: Task, pool: int, questions: int, generator: torch.Generator
) -> list[dict[str, Any]]:
    """A row for every arm: the share of right answers, how much more SG-ICL has, with the ends of a paired
    95 % bootstrap interval over questions, and the rank correlation of its score with the length of a line.
    """
    shelf, asked = (Lines.draw(task, count, generator) for count in (pool, questions))
    scores = [_difficulty(model, lines, task.vocabulary.pad) for lines in (shelf, asked)]
    chosen = _choices(shelf, asked, scores, np.random.default_rng(generator.initial_seed()))
    right = _right(model, task, shelf, asked, chosen)
    rho = rank_correlation(scores[1], asked.vertices)
    found = []
    for arm in ARMS:
        low, high = _paired_interval(right[GUIDED] - right[arm])
        gain = right[GUIDED].mean() - right[arm].mean()
        row = {"accuracy": right[arm].mean(), "gain": gain, "low": low, "high": high, "rho": rho}
        found.append({"kind": "arm", "arm": arm, **rounded({k: float(v) for k, v in row.items()})})
    return found


def _difficulty(model: LanguageModel, lines: Lines, pad: int) -> np.ndarray:
    """How sparse the state behind each question alone is; larger is harder."""
    device, metric = next(model.parameters()).device, probes.METRICS[SCORE]
    found = []
    for first in range(0, len(lines.questions), TOGETHER):
        part = lines.questions[first : first + TOGETHER]
        tokens = pad_sequence(part, True, pad).to(device)
        states = probes.hidden_states(model, tokens, position=[len(question) - 1 for question in part])
        found.append(metric.sign * metric.compute(states[0]).cpu().numpy())
    return np.concatenate(found)


def _choices(
    shelf: Lines, asked: Lines, scores: list[np.ndarray], rng: np.random.Generator
) -> dict[str, list[list[int]]]:
    """Places on the shelf of the demonstrations of every question, by arm."""
    items = [frozenset(question.tolist()) for question in shelf.questions]
    near = [similar(items, frozenset(question.tolist())) for question in asked.questions]
    guides = {
        GUIDED: scores,
        "reversed": [-values for values in scores],
        "oracle": [shelf.vertices, asked.vertices],
    }
    chosen = {
        "zero-shot": [[] for _ in near],
        "random": [rng.choice(len(items), SHOTS, replace=False).tolist() for _ in near],
        "nearest": [places[:SHOTS] for places in near],
    }
    for arm, (pool, questions) in guides.items():
        levels, own = difficulty_levels(pool, questions)
        chosen[arm] = [guided(places, levels, level) for places, level in zip(near, own, strict=True)]
    return chosen


def _right(
    model: LanguageModel, task: Task, shelf: Lines, asked: Lines, chosen: dict[str, list[list[int]]]
) -> dict[str, np.ndarray]:
    """Whether a question is answered with all vertices of the chain in order and their values, by arm."""
    newline = torch.tensor([task.vocabulary.newline])
    right = {arm: np.zeros(len(asked.texts)) for arm in chosen}
    sizes = asked.about.known.sum(1)
    for size in sizes.unique().tolist():
        places = (sizes == size).nonzero()[:, 0]
        known = asked.about.known[places]
        answers = [t[places][known].view(-1, size)[:, 1:] for t in (asked.about.letters, asked.values)]
        new = (int(asked.about.lengths[places].max()) - 1) * (task.inserted + BEYOND)
        prompts = [
            torch.cat([*(t for d in demos[place] for t in (shelf.texts[d], newline)), asked.questions[place]])
            for demos in chosen.values()
            for place in places.tolist()
        ]
        written = _continued(model, prompts, new)
        for arm, part in zip(chosen, written.split(len(places)), strict=True):
            right[arm][places.numpy()] = score(task, part, *answers)["whole"].numpy()
    return right


def _continued(model: LanguageModel, prompts: list[Tensor], new: int) -> Tensor:
    """What the model writes behind each prompt, greedily: ``[prompts, new]``."""
    device = next(model.parameters()).device
    parts = []
    for first in range(0, len(prompts), TOGETHER):
        part = [prompt.to(device) for prompt in prompts[first : first + TOGETHER]]
        parts.append(generate(model, part, new)[:, -new:].cpu())
    return torch.cat(parts)


def _paired_interval(differences: np.ndarray) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    means = differences[rng.integers(len(differences), size=(RESAMPLES, len(differences)))].mean(1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return low, high
