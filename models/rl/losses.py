"""Losses of single steps or pairs; :func:`masked_mean` makes one number of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def clipped_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    clip: float = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """The loss of PPO at every step (arXiv 1707.06347, equation 7, with its sign turned).

    With ``old_log_probs`` equal to ``log_probs`` its gradient is that of ``-advantages log_probs``.

    Args:
        log_probs: of the policy that is trained.
        old_log_probs: of the policy that has drawn, without gradient. All three have one shape.
        clip: the ratio of both does not pay outside ``[1 - clip, 1 + clip]``.
        dual_clip: largest ratio, above 1, at which a negative advantage still counts (arXiv 1912.09729,
            equation 5); None has no such limit.
    """
    ratios = (log_probs - old_log_probs).exp()
    losses = -torch.minimum(ratios * advantages, ratios.clamp(1 - clip, 1 + clip) * advantages)
    if dual_clip is None:
        return losses
    return torch.where(advantages < 0, torch.minimum(losses, -dual_clip * advantages), losses)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float = 0.2) -> Tensor:
    """Half the squared error of values at every step, where a move of more than ``clip`` does not pay.

    The value loss of PPO as its authors' code has it: the larger one of the errors of ``values`` and of
    ``values`` held within clip of ``old_values``.

    Args:
        values: that are trained.
        old_values: when the steps were taken, without gradient.
        returns: what they should be. All three have one shape.
    """
    held = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum((values - returns).square(), (held - returns).square()) / 2


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """Direct preference optimisation at every pair (arXiv 2305.18290, equation 7).

    Args:
        chosen, rejected: log-probabilities of whole completions, ``[pairs]``.
        reference_chosen, reference_rejected: the same of the reference, without gradient.
        beta: weight of the KL to the reference in the problem that is solved.
    """
    margins = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -F.logsigmoid(beta * margins)
