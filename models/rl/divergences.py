"""How far a policy is from another, and from a choice without doubt."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("k1", "k2", "k3")


def kl_estimate(log_probs: Tensor, reference_log_probs: Tensor, kind: str = "k3") -> Tensor:
    """An estimate of ``KL(policy || reference)`` from one token, drawn from the policy (J. Schulman, 2020,
    "Approximating KL divergence").

    With d the log-probability less that of the reference: ``"k1"`` is d, unbiased, of either sign, and its
    gradient is zero in the mean. ``"k2"`` is d^2 / 2, biased, but its mean gradient is that of the KL at the
    policy that was drawn from. ``"k3"`` is exp(-d) - 1 + d, unbiased and never negative, the penalty of GRPO
    (arXiv 2402.03300, equation 4); its mean gradient is that of ``KL(reference || policy)``.

    Args:
        log_probs, reference_log_probs: any shape, the same.

    Raises:
        ValueError: an unknown kind.
    """
    difference = log_probs - reference_log_probs
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    if kind == "k3":
        return torch.expm1(-difference) + difference
    raise ValueError(f"kind={kind!r} is unknown; choose one of {', '.join(KINDS)}")


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy of the next token in nats, ``[...]``, from logits ``[..., vocab_size]``; float32 or better.

    A logit of -inf is a token that cannot come, and has no part in it.
    """
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1)
