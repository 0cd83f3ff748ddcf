"""From logits to tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sample(
    logits: Tensor,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Tensor:
    """One token a row.

    Args:
        logits: ``[batch, vocab_size]``.
        temperature: 0 takes the likeliest token, of several the lowest; otherwise logits are divided by it.
        top_k: sample among the k likeliest tokens only.
        top_p: sample among the fewest tokens whose probabilities reach top_p only.
        generator: one source of randomness, or one for every row.

    Returns:
        int64 ``[batch]``. A row draws one number, whatever the options.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits, order = (logits.float() / temperature).sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        logits[:, top_k:] = -torch.inf
    p = logits.softmax(-1)
    if top_p is not None:
        p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0)  # the likeliest token always stays
    reached = p.cumsum(-1)
    drawn = _uniform(logits.shape[0], generator, logits.device)[:, None] * reached[:, -1:]
    chosen = torch.searchsorted(reached, drawn, right=True)
    return order.gather(-1, chosen.minimum((p > 0).sum(-1, keepdim=True) - 1))[:, 0]


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise ValueError for options out of range."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(
            f"temperature={temperature} must be at least 0 and finite; 0 takes the likeliest token"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1; None keeps all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must lie in (0, 1]; None keeps all tokens")
    if temperature == 0 and (top_k is not None or top_p is not None):
        raise ValueError("top_k and top_p need temperature > 0: at 0 the likeliest token is taken")


def _uniform(rows: int, generator, device: torch.device) -> Tensor:
    """Numbers in ``[0, 1)``, one a row."""
    if isinstance(generator, Sequence):
        return torch.cat([torch.rand(1, generator=g, device=device) for g in generator])
    return torch.rand(rows, generator=generator, device=device)
