"""Log-probabilities of the tokens that were taken."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..language_model import LanguageModel


def token_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of ``tokens``, in float32 or better.

    No normalised copy of the logits is kept for the gradient, which a log-softmax would do. Logits in half
    precision are widened for one row of the batch at a time, in the forward and the backward pass.

    Args:
        logits: ``[batch, steps, vocab_size]``.
        tokens: int64 ``[batch, steps]``.

    Returns:
        ``[batch, steps]``.
    """
    if logits.dtype not in (torch.bfloat16, torch.float16):
        return _log_probs(logits, tokens)
    rows = zip(logits, tokens, strict=True)
    return torch.stack([checkpoint(_log_probs, *row, use_reentrant=False) for row in rows])


def taken_log_probs(model: LanguageModel, tokens: Tensor, start: int, temperature: float = 1.0) -> Tensor:
    """Log-probabilities that a model gives to the tokens from ``start`` on, each behind all before it.

    Logits of the positions before are not computed.

    Args:
        tokens: int64 ``[batch, seq]``, padding on the right, where it is not seen.
        start: at least 1; nothing is in front of the first token.
        temperature: of the sampling whose probabilities these are.

    Returns:
        ``[batch, seq - start]``.

    Raises:
        ValueError: start out of range.
    """
    if not 1 <= start < tokens.shape[1]:
        raise ValueError(f"start={start} must be 1 to {tokens.shape[1] - 1}: tokens has {tokens.shape[1]}")
    logits = model.logits(model.hidden(tokens[:, :-1])[:, start - 1 :])
    return token_log_probs(logits if temperature == 1 else logits / temperature, tokens[:, start:])


def _log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)
