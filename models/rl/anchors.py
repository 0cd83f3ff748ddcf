"""Advantages without values from what other members of a group did in the same place: GiGPO."""

from __future__ import annotations

import torch
from torch import Tensor

from .advantages import group_normalized, rewards_to_go


def anchor_normalized(
    returns: Tensor, anchors: Tensor, mask: Tensor | None = None, *, scale: bool = False, eps: float = 1e-4
) -> Tensor:
    """Each return less the mean of those in the same group behind the same observation (arXiv 2505.10978,
    equations 6 and 7).

    Memory is quadratic in ``members * turns``.

    Args:
        returns: ``[..., members, turns]``, from every turn on.
        anchors: int, as returns: equal numbers are equal observations, within a group; the same one may come
            several times in a trajectory.
        mask: bool, as returns; turns where it is False have no part, and get 0.
        scale: True divides by the standard deviation.
        eps: added to the standard deviation; an observation that comes once gets 0 either way.
    """
    mask = torch.ones_like(returns, dtype=torch.bool) if mask is None else mask
    x, ids, made = (t.flatten(-2)[..., None] for t in (returns.masked_fill(~mask, 0.0), anchors, mask))
    same = ((ids == ids.mT) & made & made.mT).to(x.dtype)
    sizes = same.sum(-1, keepdim=True).clamp(min=1)
    centred = (x - same @ x / sizes).masked_fill(~made, 0.0)
    if scale:
        centred = centred / ((same @ centred.square() / sizes).sqrt() + eps)
    return centred.view_as(returns)


def group_in_group(
    rewards: Tensor,
    anchors: Tensor,
    mask: Tensor | None = None,
    *,
    discount: float = 0.95,
    weight: float = 1.0,
    scale: bool = False,
) -> Tensor:
    """GiGPO: the advantage of the trajectory in its group, and that of the turn among turns behind the same
    observation (arXiv 2505.10978, equations 3 and 5 to 8).

    Args:
        rewards: ``[..., members, turns]``.
        anchors, mask: as for :func:`anchor_normalized`.
        discount: of the returns of turns; those of trajectories are not discounted.
        weight: of the second part.
        scale: whether both are divided by standard deviations.

    Returns:
        The shape of rewards, 0 where mask is False.
    """
    mask = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    whole = group_normalized(rewards.masked_fill(~mask, 0.0).sum(-1, keepdim=True), dim=-2, scale=scale)
    steps = anchor_normalized(rewards_to_go(rewards, mask, discount), anchors, mask, scale=scale)
    return (whole + weight * steps).masked_fill(~mask, 0.0)
