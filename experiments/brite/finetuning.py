"""The theta-step and what BRiTE is compared with: supervised training, rejection sampling, DPO."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flashlla.models import LanguageModel
from flashlla.models.rl import dpo_loss, taken_log_probs

from ..common.training import train
from .model import complete, correct
from .posterior import Problem


class Kept(NamedTuple):
    """What rejection sampling keeps: one right text of each prompt that has one.

    Attributes:
        texts: ``[kept, seq]``, prompts and completions.
        rationales: ``[kept, links]``.
        prompts: ``[kept]``, which ones they were.
    """

    texts: Tensor
    rationales: Tensor
    prompts: Tensor


def finetune(
    model: LanguageModel,
    texts: Tensor,
    start: int,
    folder: Path,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
) -> tuple[LanguageModel, list[dict[str, Any]]]:
    """A copy of the model, trained on texts ``[count, seq]`` from ``start`` on, and the records of its steps.

    Raises:
        ValueError: no texts.
    """
    if not len(texts):
        raise ValueError("there is no text to train on; draw more candidates")
    trained = deepcopy(model)
    history = train(
        trained,
        lambda model, tokens: -taken_log_probs(model, tokens, start).mean(),
        lambda generator: texts[torch.randint(len(texts), (batch,), generator=generator).to(texts.device)],
        folder,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        optimizer="muon",
    )
    return trained.eval(), history.steps


def reject(model: LanguageModel, problem: Problem, candidates: int, generator: torch.Generator) -> Kept:
    """Draw ``candidates`` texts a prompt and keep the first that is right."""
    drawn = complete(model, problem.prompts, problem.links + 2, samples=candidates, generator=generator)
    right = correct(drawn, problem.answers)
    prompts = right.any(1).nonzero()[:, 0]
    completions = drawn[prompts, right[prompts].int().argmax(1)]
    texts = torch.cat([problem.prompts[prompts], completions], 1)
    return Kept(texts, completions[:, : problem.links], prompts)


def prefer(
    model: LanguageModel,
    source: LanguageModel,
    problem: Problem,
    folder: Path,
    *,
    candidates: int,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    generator: torch.Generator,
) -> LanguageModel:
    """A copy of the model, trained with DPO on a right and a wrong text of ``source`` for every prompt that
    has both; without such a prompt it is as it was.
    """
    drawn = complete(source, problem.prompts, problem.links + 2, samples=candidates, generator=generator)
    right = correct(drawn, problem.answers)
    both = (right.any(1) & ~right.all(1)).nonzero()[:, 0]
    trained = deepcopy(model)
    if not len(both):
        return trained
    sides = [drawn[both, side[both].int().argmax(1)] for side in (right, ~right)]
    chosen, rejected = (torch.cat([problem.prompts[both], side], 1) for side in sides)

    def log_probs(model: LanguageModel, texts: Tensor) -> Tensor:
        return taken_log_probs(model, texts, problem.links + 2).sum(1)

    def loss(policy: LanguageModel, pairs: Tensor) -> Tensor:
        with torch.no_grad():
            before = [log_probs(model, side) for side in pairs.unbind(1)]
        return dpo_loss(*(log_probs(policy, side) for side in pairs.unbind(1)), *before).mean()

    pairs = torch.stack([chosen, rejected], 1)
    train(
        trained,
        loss,
        lambda generator: pairs[torch.randint(len(pairs), (batch,), generator=generator).to(pairs.device)],
        folder,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        optimizer="adamw",
    )
    return trained.eval()
