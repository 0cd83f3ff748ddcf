"""Graded axes: prompts of several levels of difficulty, and how sparsity goes along with the level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flashlla.models import LanguageModel, probes

from .measures import MAIN, describe, rank_correlation, rounded

TOGETHER = 128  # sequences


class Prompts(NamedTuple):
    """Texts of one level.

    Attributes:
        tokens: int64 ``[n, seq]``, padded on the right.
        ends: int64 ``[n]``, the last token of each prompt, where states are taken.
        counted: bool ``[n, seq]``, the tokens behind it that the model should know.
    """

    tokens: Tensor
    ends: Tensor
    counted: Tensor


class Sample(NamedTuple):
    """What a model makes of the prompts of a level.

    Attributes:
        states: ``[n, dim]`` by place, behind the final norm and before it.
        loss: ``[n]``, nats a counted token.
    """

    states: dict[str, Tensor]
    loss: Tensor


@torch.no_grad()
def read(model: LanguageModel, prompts: Prompts) -> Sample:
    """Hidden states at the ends of prompts, and how well the model knows what comes behind."""
    device = next(model.parameters()).device
    parts = [
        _read(model, Prompts(*(t.to(device) for t in part)))
        for part in zip(*(t.split(TOGETHER) for t in prompts), strict=True)
    ]
    states = {place: torch.cat([part.states[place] for part in parts]) for place in parts[0].states}
    return Sample(states, torch.cat([part.loss for part in parts]))


def _read(model: LanguageModel, prompts: Prompts) -> Sample:
    raw, normed = probes.hidden_states(model, prompts.tokens, layers=(-1, "norm"), position=None)
    asked = prompts.counted[:, 1:]
    logits, targets = model.logits(normed[:, :-1][asked]), prompts.tokens[:, 1:][asked]
    losses = torch.zeros(asked.shape, device=asked.device)
    losses[asked] = F.cross_entropy(logits.float(), targets, reduction="none")
    rows = torch.arange(len(raw), device=raw.device)
    states = {"prompt": normed[rows, prompts.ends], "before the norm": raw[rows, prompts.ends]}
    return Sample(states, losses.sum(1) / asked.sum(1))


def rows(axis: str, samples: Mapping[int, Sample]) -> list[dict[str, Any]]:
    """A row for every level and place, and one for the whole axis and each place."""
    found = []
    for place in next(iter(samples.values())).states:
        for level, sample in samples.items():
            row = {"loss": sample.loss.mean().item(), **describe(sample.states[place])}
            found.append({"kind": "level", "axis": axis, "place": place, "level": level, **row})
        found.append({"kind": "axis", "axis": axis, "place": place, **_correlations(samples, place)})
    return [rounded(row) for row in found]


def _correlations(samples: Mapping[int, Sample], place: str) -> dict[str, float]:
    """Spearman's rho between difficulty and the main metric.

    Returns:
        ``rho``: of the level, over samples; ``rho_levels``: over the means of the levels; ``rho_loss``: of
        the loss in place of the level; ``rho_rotated``: behind random rotations; ``rho_matched``: over
        samples, the length of the state before the final norm held fixed.
    """
    levels = np.concatenate([np.full(len(sample.loss), level) for level, sample in samples.items()])
    states = torch.cat([sample.states[place] for sample in samples.values()])
    metric = probes.METRICS[MAIN].compute(states).cpu().numpy()
    turned = probes.rotated(states, [MAIN])[MAIN].cpu().numpy()
    raw = torch.cat([sample.states["before the norm"] for sample in samples.values()])
    lengths = raw.double().norm(dim=-1).cpu().numpy()
    loss = torch.cat([sample.loss for sample in samples.values()]).cpu().numpy()
    means = np.array([metric[levels == level].mean() for level in samples])
    return {
        "rho": rank_correlation(levels, metric),
        "rho_levels": rank_correlation(np.array(list(samples)), means),
        "rho_loss": rank_correlation(loss, metric),
        "rho_rotated": rank_correlation(levels, turned),
        "rho_matched": rank_correlation(levels, metric, lengths),
    }
