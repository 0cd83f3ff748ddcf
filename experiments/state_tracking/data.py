"""Sequences of swaps, and what they make of the identity."""

from __future__ import annotations

import itertools
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache
def swaps(positions: int) -> tuple[tuple[int, int], ...]:
    """All pairs of positions, in the order of their tokens."""
    return tuple(itertools.combinations(range(positions), 2))


@lru_cache
def transitions(positions: int) -> Tensor:
    """``[permutations, swaps]``: the number of the permutation that a swap makes of another, int64.

    Permutations are numbered in lexicographic order, the identity being 0.
    """
    numbers = {p: i for i, p in enumerate(itertools.permutations(range(positions)))}
    table = torch.empty(len(numbers), len(swaps(positions)), dtype=torch.int64)
    for permutation, number in numbers.items():
        for token, (i, j) in enumerate(swaps(positions)):
            swapped = list(permutation)
            swapped[i], swapped[j] = swapped[j], swapped[i]
            table[number, token] = numbers[tuple(swapped)]
    return table


def sequences(batch: int, length: int, positions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Uniform swaps and the permutation after each of them, both int64 ``[batch, length]``."""
    table = transitions(positions)
    tokens = torch.randint(table.shape[1], (batch, length), generator=generator)
    states, state = torch.empty_like(tokens), torch.zeros(batch, dtype=torch.int64)
    for t in range(length):
        state = table[state, tokens[:, t]]
        states[:, t] = state
    return tokens, states
