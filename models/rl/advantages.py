"""Returns, and how much better than expected they are."""

from __future__ import annotations

import torch
from torch import Tensor


def discounted_sums(x: Tensor, factors: Tensor | float, last: Tensor | None = None) -> Tensor:
    """``y_t = x_t + factor_t y_{t+1}`` from the last step to the first: what all returns are made of.

    Args:
        x: ``[..., steps]``.
        factors: broadcast to x; 0 where nothing is carried over, as between two episodes or segments.
        last: ``[...]``, what follows behind the last step; None means 0.

    Returns:
        The shape of x.
    """
    factors = factors.expand_as(x) if isinstance(factors, Tensor) else torch.full_like(x, factors)
    y, sums = x.new_zeros(x.shape[:-1]) if last is None else last, []
    for t in range(x.shape[-1] - 1, -1, -1):
        y = x[..., t] + factors[..., t] * y
        sums.append(y)
    return torch.stack(sums[::-1], -1) if sums else x


def rewards_to_go(rewards: Tensor, mask: Tensor | None = None, discount: float = 1.0) -> Tensor:
    """The discounted sum of the rewards from every step on.

    Args:
        rewards: ``[..., steps]``.
        mask: bool, as rewards; steps where it is False are stepped over: their rewards do not count, nothing
            is discounted for them, and their own result is 0.
        discount: per step.
    """
    if mask is None:
        return discounted_sums(rewards, discount)
    sums = discounted_sums(rewards.masked_fill(~mask, 0.0), step_factors(mask, discount, rewards))
    return sums.masked_fill(~mask, 0.0)


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    *,
    discount: float = 1.0,
    decay: float = 0.95,
    last_values: Tensor | None = None,
) -> Tensor:
    """Generalised advantage estimation (arXiv 1506.02438, equation 16).

    ``A_t = delta_t + discount decay A_{t+1}`` with ``delta_t = r_t + discount V_{t+1} - V_t``. With decay 1
    it is the reward-to-go less the value, with 0 the error of one step. ``A + values`` is what the values are
    trained towards. A step is a token, or a whole turn of a dialogue, where discount and decay are by turn.

    Args:
        rewards, values: ``[..., steps]``; values are not trained through these: detach them.
        mask: bool, as rewards; where it is False a step is stepped over, as in :func:`rewards_to_go`.
        decay: lambda of the paper.
        last_values: ``[...]``, behind the last step of an episode that was cut off; None means 0, its end.
    """
    mask = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    following = next_values(values, mask, last_values)
    errors = (rewards + discount * following - values).masked_fill(~mask, 0.0)
    return discounted_sums(errors, step_factors(mask, discount * decay, rewards)).masked_fill(~mask, 0.0)


def step_factors(mask: Tensor, factors: Tensor | float, like: Tensor) -> Tensor:
    """``factors`` at steps, and 1 at what is stepped over."""
    return torch.where(mask, factors, torch.ones_like(like))


def next_values(values: Tensor, mask: Tensor, last: Tensor | None = None) -> Tensor:
    """The value of the step behind every step, those where ``mask`` is False stepped over.

    Args:
        values: ``[..., steps]``.
        mask: bool, as values.
        last: ``[...]``, behind the last step; None means 0.
    """
    last = values.new_zeros(values.shape[:-1]) if last is None else last
    own = values.masked_fill(~mask, 0.0)
    from_here = discounted_sums(own, (~mask).to(values.dtype), last)  # that of the next step, if not here
    return torch.cat([from_here[..., 1:], last[..., None]], -1)


def leave_one_out(returns: Tensor, dim: int = -1) -> Tensor:
    """Each return less the mean of the others of its group: a baseline without bias (arXiv 2402.14740,
    equation 8).

    Args:
        returns: the group, two members at least, lies along ``dim``.

    Raises:
        ValueError: a group of one.
    """
    size = returns.shape[dim]
    if size < 2:
        raise ValueError(f"the group has {size} member; draw two samples a prompt at least")
    return (returns - returns.mean(dim, keepdim=True)) * (size / (size - 1))


def group_normalized(returns: Tensor, dim: int = -1, *, scale: bool = True, eps: float = 1e-4) -> Tensor:
    """Each return less the mean of its group, over its standard deviation: GRPO (arXiv 2402.03300, 4.1.2).

    Args:
        returns: the group lies along ``dim``.
        scale: False leaves the standard deviation out, as arXiv 2503.20783 recommends.
        eps: added to the standard deviation; a group whose members are equal gets 0.
    """
    centred = returns - returns.mean(dim, keepdim=True)
    return centred / (returns.std(dim, keepdim=True, correction=0) + eps) if scale else centred
