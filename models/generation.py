"""Sampling from a language model with its decode states: one prefill, then one token a step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .language_model import LanguageModel


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompt: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    on_token: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Continue ``prompt`` by ``max_new_tokens`` tokens.

    Args:
        model: the model; put it into evaluation mode yourself.
        prompt: ``[batch, seq]``, int64, at least one token, all rows of one length.
        max_new_tokens: number of tokens to add.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it before sampling.
        top_k: sample among the k likeliest tokens only.
        top_p: sample among the fewest tokens whose probabilities reach top_p only.
        generator: source of the randomness, on the device of the model.
        on_token: called with every new token, ``[batch]``, as soon as it is known.

    Returns:
        Prompt and continuation, ``[batch, seq + max_new_tokens]``.

    Raises:
        TypeError: wrong types or dtypes.
        ValueError: an empty prompt, tokens outside the vocabulary, sampling options out of range.
    """
    _check_prompt(model, prompt, max_new_tokens)
    _check_sampling(temperature, top_k, top_p)
    tokens, new = prompt, prompt
    states = model.make_states(prompt.shape[0], prompt.shape[1] + max_new_tokens)
    for _ in range(max_new_tokens):
        logits = model(new, states, last_only=True)[:, -1]
        new = _sample(logits, temperature, top_k, top_p, generator)[:, None]
        tokens = torch.cat([tokens, new], 1)
        if on_token is not None:
            on_token(new[:, 0])
    return tokens


def _sample(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> Tensor:
    """One token a row, ``[batch]``, from ``logits`` ``[batch, vocab_size]``."""
    if temperature == 0:
        return logits.argmax(-1)
    logits, order = (logits.float() / temperature).sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        logits[:, top_k:] = -torch.inf
    p = logits.softmax(-1)
    if top_p is not None:
        p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0)  # the likeliest token always stays
    return order.gather(-1, torch.multinomial(p, 1, generator=generator))[:, 0]


def _check_prompt(model: LanguageModel, prompt: Tensor, max_new_tokens: int) -> None:
    if not isinstance(prompt, Tensor):
        raise TypeError(f"prompt must be a torch.Tensor, got {type(prompt).__name__}")
    if prompt.dtype != torch.int64:
        raise TypeError(f"prompt has dtype {prompt.dtype}; use int64")
    if prompt.dim() != 2 or 0 in prompt.shape:
        raise ValueError(f"prompt has shape {tuple(prompt.shape)}; expected [batch, seq], neither of them 0")
    lowest, highest, limit = int(prompt.min()), int(prompt.max()), model.config.vocab_size
    if lowest < 0 or highest >= limit:
        raise ValueError(
            f"prompt has the token {lowest if lowest < 0 else highest}; tokens lie in [0, {limit})"
        )
    if not isinstance(max_new_tokens, int) or isinstance(max_new_tokens, bool):
        raise TypeError(f"max_new_tokens must be an int, got {type(max_new_tokens).__name__}")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 0")


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
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
