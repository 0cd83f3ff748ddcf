"""The model that all arms start from: it has read a few episodes of an expert that often slips."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flashlla.models import LanguageModel

from ..common.training import History, train
from ..worlds import Turn, expert_turns, read_answer
from ..worlds.vector import padded
from .task import Task, answer_tokens, prompt_tokens, signs, with_signs

SUBGOAL_LINE = re.compile(r"\nsubgoal: (.*)\.\n")


class Traces(NamedTuple):
    """Prompts with answers: tokens ``[turns, seq]``, padded, and where an answer's tokens are, bool."""

    tokens: Tensor
    answers: Tensor


def traces(task: Task, episodes: int, noise: float, seed: int, *, shuffled: bool = False) -> Traces:
    """Episodes in which an expert often slips, each twice, with and without the blocks of a plan.

    Args:
        noise: share of the actions that are random; the answers are what the expert would have done.
        shuffled: subgoals are those of other segments, and say nothing of what is done.
    """
    turns = [turn_with_signs(t) for t in expert_turns(task.env(episodes, True), noise, "expert", seed)]
    if shuffled:
        turns = shuffle_subgoals(turns, np.random.default_rng(seed))
    turns += [without_plan(turn) for turn in turns]
    pairs = [(prompt_tokens(turn.prompt), answer_tokens(read_answer(turn.answer))) for turn in turns]
    texts = [[*prompt, *answer] for prompt, answer in pairs]
    longest = max(map(len, texts))
    marks = [[0] * len(prompt) + [1] * len(answer) for prompt, answer in pairs]
    return Traces(*(torch.from_numpy(padded(rows, longest)) for rows in (texts, marks)))


def turn_with_signs(turn: Turn) -> Turn:
    """A turn in which the names of its task are signs."""
    names = signs(turn.prompt[: turn.prompt.index("\n")])
    return turn._replace(prompt=with_signs(turn.prompt, names), answer=with_signs(turn.answer, names))


def without_plan(turn: Turn) -> Turn:
    """A turn as an agent without plans meets it."""
    prompt = SUBGOAL_LINE.sub("\n", turn.prompt)
    return turn._replace(prompt=prompt, answer=turn.answer[turn.answer.index("<action>") :])


def shuffle_subgoals(turns: Sequence[Turn], rng: np.random.Generator) -> list[Turn]:
    """The same turns, switches among them, with the subgoals of all segments permuted."""
    segments, places = [], []  # what was written at each switch, and the segment of every turn
    current: dict[int, int] = {}
    for turn in turns:
        answer, before = read_answer(turn.answer), current.get(turn.row, -1)
        if answer.switch == "SWITCH":
            current[turn.row] = len(segments)
            segments.append(answer.subgoal)
        places.append((before, current[turn.row]))
    mixed = [segments[i] for i in rng.permutation(len(segments))]
    found = []
    for turn, (before, now) in zip(turns, places, strict=True):
        prompt = turn.prompt
        if before >= 0:
            prompt = SUBGOAL_LINE.sub(f"\nsubgoal: {mixed[before]}.\n", prompt)
        answer = re.sub("<subgoal>.*</subgoal>", f"<subgoal>{mixed[now]}</subgoal>", turn.answer)
        found.append(turn._replace(prompt=prompt, answer=answer))
    return found


def finetune(model: LanguageModel, examples: Traces, folder: Path, *, batch: int, **recipe: Any) -> History:
    """Train a model in place to give the answers of the traces.

    Args:
        batch: turns of a step.
        recipe: ``steps``, ``learning_rate`` and ``seed``, as for :func:`..common.training.train`.
    """

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(examples.tokens), (batch,), generator=generator)
        tokens, answers = examples.tokens[rows], examples.answers[rows].bool()
        longest = int((tokens > 0).sum(1).max())  # 0 is padding
        return tokens[:, :longest], answers[:, :longest]

    return train(model, _loss, draw, folder, optimizer="muon", **recipe)


def _loss(model: LanguageModel, batch: tuple[Tensor, Tensor]) -> Tensor:
    tokens, answers = batch
    chosen = answers[:, 1:]
    return F.cross_entropy(model.logits(model.hidden(tokens[:, :-1])[chosen]), tokens[:, 1:][chosen])
