"""Chains of letters, or windows of them, among other letters."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ftct.data import NOISE, Task


class Letters(NamedTuple):
    """What lines are about.

    Attributes:
        letters: ``[n, places]``.
        known: bool ``[n, places]``, which of them are of a chain; the others are distractors.
        lengths: ``[n]``, vertices of each line.
    """

    letters: Tensor
    known: Tensor
    lengths: Tensor


def drawn_letters(
    task: Task, chains: Tensor, noise: int | Tensor, generator: torch.Generator, sizes: Tensor | None = None
) -> Letters:
    """Chains with other letters in between, at random places; first and last are of the chain.

    Args:
        chains: ``[n, N]``.
        noise: other letters of a line, one number or ``[n]``.
        sizes: ``[n]``, vertices of a chain that a line has, at least 2; from a random one on. None is all.
    """
    count, longest = chains.shape
    sizes = torch.full((count,), longest) if sizes is None else sizes
    starts = (torch.rand(count, generator=generator) * (longest - sizes + 1)).long()
    lengths = sizes + noise
    places = torch.arange(int(lengths.max()))
    chances = torch.rand(count, len(places), generator=generator)
    chances[:, 0] = -1
    chances.scatter_(1, lengths[:, None] - 1, -1)
    chances = chances.masked_fill(places >= lengths[:, None], 2.0)
    known = chances.argsort(dim=1, stable=True).argsort(1) < sizes[:, None]
    vertex = (starts[:, None] + known.cumsum(1) - 1).clamp(0, longest - 1)
    outside = torch.rand(count, len(task.graph.letters), generator=generator)
    outside = outside.masked_fill(task.graph.letters, 2.0).argsort(1)[:, : len(places)]
    return Letters(torch.where(known, chains.gather(1, vertex), outside), known, lengths)


def drawn_values(task: Task, chains: Letters, lines: int, generator: torch.Generator) -> Tensor:
    """``[n, lines, places]``: what follows from a root of each line's own, and noise for other letters."""
    count, places = chains.letters.shape
    roots = torch.rand(count, len(task.trained), generator=generator).argsort(1)[:, :lines]
    values = task.graph.values[chains.letters[:, None], task.trained[roots][..., None]]
    noise = torch.randint(NOISE, (count, lines, places), generator=generator)
    return torch.where(chains.known[:, None], values, noise)
