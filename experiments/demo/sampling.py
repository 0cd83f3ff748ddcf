"""Text from a trained model through its decode path, and the check of that path against the full forward."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from flashlla import models

PROMPT = 'def read(self, size=-1):\n    """Read '
CHECKED_TOKENS = 128
SAMPLED_TOKENS = 320
TEMPERATURE = 0.7
TOP_K = 40


@dataclass(frozen=True)
class DecodeCheck:
    """Greedy tokens from the cache against the likeliest tokens of one forward over the whole text.

    ``uncached_tokens_per_second``: the same tokens with one forward over all that is there for each of them.
    """

    tokens: int
    equal_tokens: int
    max_logit_difference: float
    max_logit: float
    tokens_per_second: float
    uncached_tokens_per_second: float

    def __str__(self) -> str:
        return (
            f"{self.equal_tokens} of {self.tokens} greedy tokens equal, largest logit difference "
            f"{self.max_logit_difference:.1e} (logits up to {self.max_logit:.0f}); "
            f"{self.tokens_per_second:,.0f} tokens/s, {self.uncached_tokens_per_second:,.0f} without a cache"
        )


@torch.no_grad()
def check_decoding(model: models.LanguageModel, device: str) -> DecodeCheck:
    """Decode greedily, one token a step, and compare with the whole text in one forward."""
    prompt = _encode(PROMPT, device)
    models.generate(model, prompt, 1)  # loads the kernels
    tokens, seconds = _timed(lambda: models.generate(model, prompt, CHECKED_TOKENS))
    _, uncached_seconds = _timed(lambda: _generate_without_cache(model, prompt))
    first, inputs = prompt.shape[1] - 1, tokens[:, :-1]
    full = model(inputs)[:, first:]
    states = model.make_states(1, inputs.shape[1])
    steps = [prompt, *inputs[:, prompt.shape[1] :].split(1, dim=1)]
    decoded = torch.cat([model(step, states, last_only=True) for step in steps], 1)
    return DecodeCheck(
        tokens=CHECKED_TOKENS,
        equal_tokens=int((full.argmax(-1) == tokens[:, first + 1 :]).sum()),
        max_logit_difference=(full - decoded).abs().max().item(),
        max_logit=full.abs().max().item(),
        tokens_per_second=CHECKED_TOKENS / seconds,
        uncached_tokens_per_second=CHECKED_TOKENS / uncached_seconds,
    )


def sample(model: models.LanguageModel, seed: int, device: str) -> str:
    """The prompt and how the model goes on."""
    pieces = models.stream_text(
        model,
        _encode(PROMPT, device),
        SAMPLED_TOKENS,
        decode=_decode,
        temperature=TEMPERATURE,
        top_k=TOP_K,
        generator=torch.Generator(device).manual_seed(seed),
    )
    return "".join([PROMPT, *pieces])


def _generate_without_cache(model: models.LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    for _ in range(CHECKED_TOKENS):
        tokens = torch.cat([tokens, model(tokens, last_only=True)[:, -1:].argmax(-1)], 1)
    return tokens


def _timed(call: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
    """The result, and the seconds until it is there."""
    began = time.perf_counter()
    result = call()
    result[0, -1].item()  # waits for a GPU
    return result, time.perf_counter() - began


def _decode(tokens: list[int]) -> str:
    return bytes(tokens).decode("utf-8", errors="replace")


def _encode(text: str, device: str) -> torch.Tensor:
    return torch.tensor([list(text.encode())], device=device)
