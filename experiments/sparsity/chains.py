"""The part on chains of lookups (those of BRiTE): prompts that need one to eight steps of reasoning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flashlla.models import LanguageModel

from ..brite.data import Chains, joined
from ..brite.model import model_config
from ..common.costs import costs
from ..common.training import train
from . import axes

if TYPE_CHECKING:
    from .run import Trial

LONGER = 2  # the longest chain that is asked has so many times the links of the longest that is learned
TEST_SEED = 10**6  # apart from the seeds of training


def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """Rows of the axis ``depth``: the links of the chain. Half of the levels are longer than training's."""
    torch.manual_seed(trial.seed)
    chains = Chains.draw(trial.values, trial.links, 1.0, trial.seed)
    model = LanguageModel(model_config(trial.mixer, trial.values, trial.width, trial.depth, trial.heads))
    model.embedding.reset_parameters()  # variance 1, as in the package that the task is from

    def draw(generator: torch.Generator) -> tuple[Tensor, int]:
        links = int(torch.randint(1, trial.links + 1, (), generator=generator))
        return _texts(replace(chains, links=links), trial.batch, generator)

    history = train(
        model.to(trial.device, getattr(torch, trial.precision)),
        _loss,
        draw,
        folder,
        steps=trial.steps,
        learning_rate=trial.learning_rate,
        seed=trial.seed,
        optimizer=trial.optimizer,
    )
    generator = torch.Generator().manual_seed(TEST_SEED + trial.seed)
    samples = {}
    for links in range(1, LONGER * trial.links + 1):
        tokens, start = _texts(replace(chains, links=links), trial.test, generator)
        counted = (torch.arange(tokens.shape[1]) >= start).expand_as(tokens)
        prompts = axes.Prompts(tokens, torch.full((trial.test,), start - 1), counted)
        samples[links] = axes.read(model.eval(), prompts)
    about = costs(model, history)
    return [row | about for row in axes.rows("depth", samples)]


def _texts(chains: Chains, count: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """Prompts with their true rationales and answers, and where the rationales begin."""
    prompts = chains.prompts(count, generator)
    rationales = chains.rationales(prompts)
    return joined(prompts, rationales, chains.answers(rationales)), chains.prompt_length


def _loss(model: LanguageModel, batch: tuple[Tensor, int]) -> Tensor:
    """Of rationales and answers; nobody can know a prompt."""
    tokens, start = batch
    logits = model(tokens[:, :-1])[:, start - 1 :]
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, start:].flatten())
