"""From advantages of turns to those of tokens, by the block that a token is in."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor


class BlockKind(IntEnum):
    """What a token is part of. ``OTHER`` is what no turn's policy is responsible for: prompts and padding."""

    OTHER = 0
    SWITCH = 1
    SUBGOAL = 2
    ACTION = 3


class TokenAdvantages(NamedTuple):
    """Advantages of tokens, ``[rows, tokens]``, 0 where the bool ``mask`` is False."""

    advantages: Tensor
    mask: Tensor


def spread(advantages: Tensor, turns: Tensor) -> Tensor:
    """Each token's share of ``[rows, turns]`` advantages: all of that of its turn, ``[rows, tokens]``.

    Args:
        advantages: or anything else of turns, masks for example.
        turns: int64 ``[rows, tokens]``, the turn that a token belongs to. Where a row of tokens is one turn,
            flatten the advantages to ``[rows, 1]``, and all turns are 0.
    """
    return advantages.gather(-1, turns)


def block_advantages(
    kinds: Tensor, turns: Tensor, switch: Tensor, high: Tensor, low: Tensor, boundaries: Tensor
) -> TokenAdvantages:
    """The advantages of :func:`hierarchical_advantages` at the tokens that they are about.

    Switch tokens get ``switch``, action tokens ``low``, and subgoal tokens ``high`` at the first turns of
    segments. At others a subgoal is a copy that nobody has chosen: its tokens are not in the mask, so that no
    loss sees them.

    Args:
        kinds: int ``[rows, tokens]``, one of :class:`BlockKind` each.
        turns: int64 ``[rows, tokens]``, as for :func:`spread`; any turn where the kind is OTHER.
        switch, high, low: ``[rows, turns]``, whitened or not.
        boundaries: bool ``[rows, turns]``, first turns of segments.
    """
    parts = (
        (BlockKind.SWITCH, switch, None),
        (BlockKind.SUBGOAL, high, boundaries),
        (BlockKind.ACTION, low, None),
    )
    advantages, mask = low.new_zeros(kinds.shape), torch.zeros_like(kinds, dtype=torch.bool)
    for kind, values, where in parts:
        here = kinds == kind
        if where is not None:
            here = here & spread(where, turns)
        advantages = torch.where(here, spread(values, turns), advantages)
        mask = mask | here
    return TokenAdvantages(advantages, mask)
