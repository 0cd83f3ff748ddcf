"""Samples of a language model, with what a policy gradient needs to know of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..generation import generate
from ..language_model import LanguageModel
from .log_probs import taken_log_probs


class Rollout(NamedTuple):
    """Prompts and what a model made of them, a row a sample.

    Attributes:
        tokens: int64 ``[rows, seq]``; every row is a prompt, a completion, and padding.
        start: where the shortest prompt ends; the other two fields begin there.
        mask: bool ``[rows, seq - start]``, True at the tokens that were drawn, the one that ended a row among
            them.
        log_probs: of these tokens, ``[rows, seq - start]``; 0 where mask is False.
    """

    tokens: Tensor
    start: int
    mask: Tensor
    log_probs: Tensor

    @property
    def taken(self) -> Tensor:
        """The tokens from ``start`` on, as mask and log_probs have them."""
        return self.tokens[:, self.start :]


@torch.no_grad()
def rollout(
    model: LanguageModel,
    prompts: Tensor | Sequence[Tensor],
    max_new_tokens: int,
    *,
    samples: int = 1,
    temperature: float = 1.0,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    **options: Any,
) -> Rollout:
    """Draw completions with :func:`flashlla.models.generate`, and their log-probabilities with one pass.

    The pass is the one that a loss makes, so that the ratios of PPO are 1 to the last bit before the first
    update (on one device, in the same batches). Log-probabilities are those of the temperature; with top_k or
    top_p among the options they are those without.

    Args:
        prompts: int64 ``[batch, seq]``, all of one length, or a list of ``[seq]``, of any lengths.
        samples: rows for each prompt, which are neighbours: ``[batch, samples, ...]`` is a view.
        temperature: above 0.
        eos_token_id: token, or tokens, behind which a row is finished. Generation looks for them at every
            step, which waits for a GPU; without them it does so once, to check the prompts.
        options: others of generate, cache and cuda_graph for example.

    Raises:
        TypeError, ValueError: as generate does; a temperature of 0.
    """
    if temperature == 0:
        raise ValueError("temperature=0 must be above 0: the likeliest token is no sample of a policy")
    given = generate(
        model,
        prompts,
        max_new_tokens,
        temperature=temperature,
        generator=generator,
        eos_token_id=eos_token_id,
        num_return_sequences=samples,
        **options,
    )
    lengths = [len(prompt) for prompt in prompts]
    tokens, places = _without_padding_in_front(given, lengths, max(lengths), samples)
    start, longest = min(lengths), max(lengths)
    # A place is counted from the first token of the padded prompts: those behind `longest` were drawn.
    drawn = (places >= longest)[:, start:].expand(len(tokens), -1)
    if eos_token_id is not None:
        ends = torch.isin(tokens[:, start:], torch.as_tensor(eos_token_id, device=tokens.device)) & drawn
        drawn = drawn & (ends.cumsum(1) - ends.long() == 0)
    log_probs = taken_log_probs(model, tokens, start, temperature).masked_fill(~drawn, 0.0)
    return Rollout(tokens, start, drawn, log_probs)


def _without_padding_in_front(
    given: Tensor, lengths: list[int], longest: int, samples: int
) -> tuple[Tensor, Tensor]:
    """Rows moved to the left by their padding, which goes to the end, and where their entries were before;
    what was padding has a place below 0.
    """
    shifts = torch.tensor([longest - n for n in lengths]).repeat_interleave(samples)[:, None]
    shifts = shifts.to(given.device, non_blocking=True)
    places = torch.arange(given.shape[1], device=given.device) + shifts
    behind = places >= given.shape[1]
    tokens = given.gather(1, (places % given.shape[1]).expand_as(given))
    return tokens, places.masked_fill(behind, -1)
