"""Pieces of policy-gradient training: pure functions on tensors and masks (docs/reinforcement_learning.md).

Rows are ``[batch, steps]``, with more leading dimensions where a docstring says ``[..., steps]``. A mask is
bool and True at the steps that a policy has chosen; prompts, observations between two turns and padding are
False. Nothing here waits for a GPU, but for what :func:`rollout` and :func:`respond` say of generation.
"""

from .advantages import (
    discounted_sums,
    generalized_advantages,
    group_normalized,
    leave_one_out,
    rewards_to_go,
)
from .anchors import anchor_normalized, group_in_group
from .blocks import BlockKind, TokenAdvantages, block_advantages, spread
from .divergences import kl_estimate, token_entropy
from .grammar import ANY, NONE, Block, Grammar, Reader, free_text, phrase_table
from .hierarchical import (
    HierarchicalAdvantages,
    hierarchical_advantages,
    switch_advantages,
    termination_advantages,
)
from .log_probs import taken_log_probs, token_log_probs
from .losses import clipped_surrogate, clipped_value_loss, dpo_loss
from .masking import masked_mean, whiten
from .responses import (
    Response,
    constrained_log_probs,
    constrained_logits,
    join_responses,
    respond,
    response_hidden,
)
from .rollouts import Rollout, rollout

__all__ = [
    "ANY",
    "NONE",
    "Block",
    "BlockKind",
    "Grammar",
    "HierarchicalAdvantages",
    "Reader",
    "Response",
    "Rollout",
    "TokenAdvantages",
    "anchor_normalized",
    "block_advantages",
    "clipped_surrogate",
    "clipped_value_loss",
    "constrained_log_probs",
    "constrained_logits",
    "discounted_sums",
    "dpo_loss",
    "free_text",
    "generalized_advantages",
    "group_in_group",
    "group_normalized",
    "hierarchical_advantages",
    "join_responses",
    "kl_estimate",
    "leave_one_out",
    "masked_mean",
    "phrase_table",
    "respond",
    "response_hidden",
    "rewards_to_go",
    "rollout",
    "spread",
    "switch_advantages",
    "taken_log_probs",
    "termination_advantages",
    "token_entropy",
    "token_log_probs",
    "whiten",
]
