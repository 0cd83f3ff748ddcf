"""Advantages of a policy that plans and executes: HAE of HiPER (arXiv 2602.16165).

In every turn such a policy decides whether it switches to another subgoal, writes a new one if so, and acts.
The turns from one switch to the next are a segment, and the first turn of a trajectory begins one whatever
was decided. Arrays are ``[..., turns]``; masks and turns that are stepped over are those of
:func:`generalized_advantages`. Values are not trained through these functions: detach them. With s the state,
o a subgoal and beta the probability of a switch, exact values are

- ``V_low(s, o)``: the expected return of executing o;
- ``V_high(s)``: the mean of V_low over a fresh subgoal;
- ``U(s, o) = (1 - beta) V_low(s, o) + beta V_high(s)``: before it is decided whether o is kept.

With exact values all estimates are without bias at any decay. With others ``high`` stays so at high_decay 1,
while ``low`` inherits the errors of V_high at the ends of segments.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .advantages import discounted_sums, next_values, step_factors


class HierarchicalAdvantages(NamedTuple):
    """Advantages and what values are trained towards, ``[..., turns]`` each.

    Attributes:
        low: of the actions.
        high: of the subgoals, at the first turns of segments; 0 elsewhere.
        low_targets, high_targets: of both values, 0 where the advantages have no meaning; with decays of 0
            they are those of one step.
        boundaries: bool, the first turns of segments.
    """

    low: Tensor
    high: Tensor
    low_targets: Tensor
    high_targets: Tensor
    boundaries: Tensor


def hierarchical_advantages(
    rewards: Tensor,
    switches: Tensor,
    low_values: Tensor,
    high_values: Tensor,
    mask: Tensor | None = None,
    *,
    discount: float = 1.0,
    low_decay: float = 1.0,
    high_decay: float = 0.95,
    boundary_values: Tensor | None = None,
    last_low: Tensor | None = None,
    last_high: Tensor | None = None,
) -> HierarchicalAdvantages:
    """Hierarchical advantage estimation (arXiv 2602.16165).

    Within a segment ``low`` is the generalised estimate with low_decay, and V_high is the value behind its
    last turn. ``high`` is that with high_decay over segments, each of which is one step: its rewards are
    summed, and all its turns are discounted. The defaults are those of the released code.

    Args:
        rewards: ``[..., turns]``.
        switches: bool, True where a new subgoal was written.
        low_values: V_low of the state and the subgoal that is executed in the turn.
        high_values: V_high of the state of the turn; read at the first turns of segments only.
        mask: bool, the turns that were made; None means all.
        discount: per turn.
        boundary_values: of the state of the turn, as ``low`` has it behind a segment that ends in front of
            it; None means high_values. Others are for ablations: 0, or V_low of the subgoal that was dropped.
        last_low, last_high: ``[...]``, behind the last turn of a trajectory that was cut off; None means 0,
            its end. The released code takes the value of the level there, or 0; U, for both, has no bias.
    """
    mask = torch.ones_like(switches) if mask is None else mask
    boundaries = _segment_starts(switches, mask)
    next_switches = next_values(boundaries.to(rewards.dtype), mask) > 0
    behind_segments = high_values if boundary_values is None else boundary_values
    following = next_values(torch.where(boundaries, behind_segments, low_values), mask, last_low)
    errors = (rewards + discount * following - low_values).masked_fill(~mask, 0.0)
    carried = (~next_switches).to(rewards.dtype) * (discount * low_decay)
    low = discounted_sums(errors, step_factors(mask, carried, rewards)).masked_fill(~mask, 0.0)

    returns = _segment_returns(rewards, boundaries, high_values, mask, discount, last_high)
    errors = (returns - high_values).masked_fill(~boundaries, 0.0)
    carried = torch.where(next_switches, high_decay, torch.ones_like(rewards)) * discount
    high = discounted_sums(errors, step_factors(mask, carried, rewards)).masked_fill(~boundaries, 0.0)
    return HierarchicalAdvantages(
        low,
        high,
        (low + low_values).masked_fill(~mask, 0.0),
        (high + high_values).masked_fill(~boundaries, 0.0),
        boundaries,
    )


def switch_advantages(
    switches: Tensor, chances: Tensor, high_values: Tensor, kept_values: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Advantages of the decisions to keep or to switch, as the paper defines them (arXiv 2602.16165).

    ``(q - beta) (V_high(s) - V_low(s, o))`` with q 1 for a switch and o the subgoal of the turn before. The
    first turn has no subgoal to keep: its decision does nothing, and its advantage is 0.

    Args:
        switches: bool ``[..., turns]``.
        chances: beta, the probability of a switch.
        high_values: V_high of the state.
        kept_values: V_low of the state and the subgoal of the turn before, also where it was not kept.
        mask: bool, the turns that were made; None means all.
    """
    mask = torch.ones_like(switches) if mask is None else mask
    advantages = (switches.to(chances.dtype) - chances) * (high_values - kept_values)
    return advantages.masked_fill(~mask | _first(mask), 0.0)


def termination_advantages(
    rewards: Tensor,
    switches: Tensor,
    high_values: Tensor,
    termination_values: Tensor,
    mask: Tensor | None = None,
    *,
    discount: float = 1.0,
    last: Tensor | None = None,
) -> Tensor:
    """Advantages of the decisions to keep or to switch, as the released code of arXiv 2602.16165 has them.

    The rewards to the end of the segment and V_high behind it, less the value of a third head. What that head
    is trained towards is the result plus ``termination_values``; where it is exact, it is U.

    Args:
        rewards: ``[..., turns]``.
        switches, high_values, mask, discount: as for :func:`hierarchical_advantages`.
        termination_values: of the state and the subgoal of the turn before.
        last: ``[...]``, behind the last turn of a trajectory that was cut off; None means 0.
    """
    mask = torch.ones_like(switches) if mask is None else mask
    returns = _segment_returns(rewards, _segment_starts(switches, mask), high_values, mask, discount, last)
    return (returns - termination_values).masked_fill(~mask, 0.0)


def _segment_starts(switches: Tensor, mask: Tensor) -> Tensor:
    """The first turns of segments: those with a switch, and the first of a trajectory."""
    return (switches & mask) | _first(mask)


def _segment_returns(
    rewards: Tensor,
    boundaries: Tensor,
    high_values: Tensor,
    mask: Tensor,
    discount: float,
    last: Tensor | None,
) -> Tensor:
    """The discounted rewards from every turn to the end of its segment, and V_high behind that."""
    ends = next_values(boundaries.to(rewards.dtype), mask, rewards.new_ones(rewards.shape[:-1])) > 0
    behind = next_values(high_values.masked_fill(~boundaries, 0.0), mask, last).masked_fill(~ends, 0.0)
    carried = (~ends).to(rewards.dtype) * discount
    gains = (rewards + discount * behind).masked_fill(~mask, 0.0)
    return discounted_sums(gains, step_factors(mask, carried, rewards)).masked_fill(~mask, 0.0)


def _first(mask: Tensor) -> Tensor:
    return mask & (mask.cumsum(-1) == 1)
