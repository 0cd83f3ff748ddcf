"""Prompts as they are given, padded on the left, and as the model reads them, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..language_model import LanguageModel


class Prompts(NamedTuple):
    """Prompts of a batch.

    Attributes:
        given: ``[batch, seq]``, padding on the left.
        tokens: the same with the padding on the right, where causal attention does not see it.
        lengths: tokens of each prompt, ints.
    """

    given: Tensor
    tokens: Tensor
    lengths: list[int]

    @property
    def ragged(self) -> list[int] | None:
        """The lengths if they differ: nothing needs them otherwise."""
        return self.lengths if min(self.lengths) < self.given.shape[1] else None

    def repeated(self, times: int) -> Prompts:
        """Every prompt ``times`` times, one behind the other."""
        lengths = [n for n in self.lengths for _ in range(times)]
        return Prompts(*(t.repeat_interleave(times, 0) for t in self[:2]), lengths)


def read_prompts(
    model: LanguageModel, prompt: Tensor | Sequence[Tensor], attention_mask: Tensor | None, pad: int
) -> Prompts:
    """Check what the caller gives and bring it into both forms.

    Raises:
        TypeError, ValueError: see :func:`flashlla.models.generate`.
    """
    if isinstance(prompt, Sequence) and not isinstance(prompt, (str, bytes)):
        prompt, attention_mask = _stack(prompt, attention_mask, pad)
    _check(prompt, "[batch, seq]", 2)
    batch, seq = prompt.shape
    lengths = [seq] * batch if attention_mask is None else _lengths(attention_mask, prompt)
    behind = torch.arange(seq, device=prompt.device)
    shift = seq - torch.tensor(lengths, device=prompt.device)[:, None]
    tokens = prompt.gather(1, (behind + shift) % seq)
    tokens = tokens.masked_fill(behind >= seq - shift, 0)  # what the caller pads with may be no token
    _check_vocabulary(model, tokens)
    return Prompts(prompt, tokens, lengths)


def _stack(prompts: Sequence[Tensor], attention_mask, pad: int) -> tuple[Tensor, Tensor]:
    if attention_mask is not None:
        raise ValueError("attention_mask is for a prompt tensor; a list of prompts needs none")
    if not prompts:
        raise ValueError("prompt is an empty list; give at least one prompt")
    for i, p in enumerate(prompts):
        _check(p, "[seq]", 1, f"prompt[{i}]")
    tokens = pad_sequence(list(prompts), True, pad, "left")
    mask = pad_sequence([torch.ones_like(p) for p in prompts], True, 0, "left")
    return tokens, mask


def _check(prompt: object, layout: str, dimensions: int, name: str = "prompt") -> None:
    if not isinstance(prompt, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(prompt).__name__}")
    if prompt.dtype != torch.int64:
        raise TypeError(f"{name} has dtype {prompt.dtype}; use int64")
    if prompt.dim() != dimensions or 0 in prompt.shape:
        raise ValueError(f"{name} has shape {tuple(prompt.shape)}; expected {layout}, no size of them 0")


def _lengths(mask: Tensor, prompt: Tensor) -> list[int]:
    """Tokens of each row, from a mask of zeros and then ones."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask must be a torch.Tensor, got {type(mask).__name__}")
    if mask.shape != prompt.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)} and prompt {tuple(prompt.shape)}; "
            "they must be equal"
        )
    real = mask.bool()
    if bool((mask != real).any()) or bool((real[:, 1:] < real[:, :-1]).any()) or not bool(real[:, -1].all()):
        raise ValueError(
            "attention_mask must be 0 for padding on the left and 1 for tokens, at least one a row"
        )
    return real.sum(1).tolist()


def _check_vocabulary(model: LanguageModel, tokens: Tensor) -> None:
    lowest, highest, limit = int(tokens.min()), int(tokens.max()), model.config.vocab_size
    if lowest < 0 or highest >= limit:
        raise ValueError(
            f"prompt has the token {lowest if lowest < 0 else highest}; tokens lie in [0, {limit})"
        )
