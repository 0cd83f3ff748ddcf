"""Sequences of multi-query associative recall: pairs, then queries of their keys."""

from __future__ import annotations

import torch
from torch import Tensor

FILLER = 0  # the token between queries
IGNORED = -100  # the target where nothing is asked, as torch's cross_entropy has it
POWER = 0.01  # of the gaps, as in the Zoology paper


def recall(
    batch: int, length: int, pairs: int, vocab: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Tokens, and what is to be named at each of them (the Zoology paper, arXiv 2312.04927).

    A sequence begins with ``pairs`` different keys, each with a value behind it; the values are drawn anew
    for every sequence. Then every key is asked for once, at one of the ``length // 2 - pairs`` even places
    that are left: place g has a chance in proportion to ``g ** (POWER - 1)``, so that most queries come soon.
    Fillers stand at all others. Keys are tokens 1 to ``vocab // 2 - 1``, values those above.

    Args:
        length: at least ``4 pairs``, or the queries find no place.
        pairs: fewer than ``vocab // 2``.

    Returns:
        Tokens and targets, int64 ``[batch, length]``: the value where a key is asked for, else ``IGNORED``.
    """
    half = vocab // 2
    keys = 1 + _distinct(torch.ones(half - 1), batch, pairs, generator)
    values = torch.randint(half, vocab, (batch, pairs), generator=generator)
    chances = torch.arange(1, length // 2 - pairs + 1, dtype=torch.float64) ** (POWER - 1)
    queries = 2 * (pairs + _distinct(chances, batch, pairs, generator))

    tokens = torch.full((batch, length), FILLER)
    tokens[:, : 2 * pairs] = torch.stack([keys, values], -1).flatten(1)
    tokens.scatter_(1, queries, keys)
    return tokens, torch.full_like(tokens, IGNORED).scatter_(1, queries, values)


def _distinct(chances: Tensor, rows: int, count: int, generator: torch.Generator) -> Tensor:
    """``[rows, count]``: in every row different indices, drawn one after the other by their chances."""
    return torch.multinomial(chances.expand(rows, -1), count, replacement=False, generator=generator)
