"""Pieces of policy-gradient training: pure functions on tensors and masks (docs/reinforcement_learning.md).

Rows are ``[batch, steps]``, with more leading dimensions where a docstring says ``[..., steps]``. A mask is
bool and True at the steps that a policy has chosen; prompts, observations between two turns and padding are
False. Nothing here waits for a GPU, but for what :func:`rollout` says of generation.
"""

from .advantages import (
    discounted_sums,
    generalized_advantages,
    group_normalized,
    leave_one_out,
    rewards_to_go,
)
from .divergences import kl_estimate, token_entropy
from .log_probs import taken_log_probs, token_log_probs
from .losses import clipped_surrogate, clipped_value_loss, dpo_loss
from .masking import masked_mean, whiten
from .rollouts import Rollout, rollout

__all__ = [
    "Rollout",
    "clipped_surrogate",
    "clipped_value_loss",
    "discounted_sums",
    "dpo_loss",
    "generalized_advantages",
    "group_normalized",
    "kl_estimate",
    "leave_one_out",
    "masked_mean",
    "rewards_to_go",
    "rollout",
    "taken_log_probs",
    "token_entropy",
    "token_log_probs",
    "whiten",
]
