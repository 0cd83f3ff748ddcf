"""The language model of a trial, what it writes behind prompts, and how often it is right."""

from __future__ import annotations

import torch
from torch import Tensor

from flashlla.models import LanguageModel, LanguageModelConfig, generate

from .data import Chains

ROWS = 4096  # sampled together, at most about so many


def model_config(mixer: str, values: int, dim: int, depth: int, heads: int) -> LanguageModelConfig:
    """A model of the numbers and their separator.

    Raises:
        ValueError: sizes that do not fit.
    """
    return LanguageModelConfig(
        vocab_size=values + 1, dim=dim, depth=depth, heads=heads, mixer=mixer, tie_embeddings=False
    )


def complete(
    model: LanguageModel,
    prompts: Tensor,
    length: int,
    *,
    samples: int = 1,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """What the model writes, ``[prompts, samples, length]``; temperature 0 is greedy."""
    options = {"temperature": temperature, "num_return_sequences": samples, "generator": generator}
    parts = [
        generate(model, part, length, **options)[:, part.shape[1] :]
        for part in prompts.split(max(1, ROWS // samples))
    ]
    return torch.cat(parts).unflatten(0, (len(prompts), samples))


def correct(completions: Tensor, answers: Tensor) -> Tensor:
    """Where texts end in the answer, bool ``[prompts, samples]``; answers are ``[prompts, 2]``."""
    return (completions[..., -2:] == answers[:, None]).all(-1)


def accuracies(
    model: LanguageModel, chains: Chains, test: Tensor, generator: torch.Generator
) -> dict[str, float]:
    """Shares of right answers, greedy and sampled, and of rationales that are right from end to end."""
    rationales = chains.rationales(test.cpu()).to(test.device)
    answers, length = chains.answers(rationales), chains.links + 2
    greedy = complete(model, test, length, temperature=0.0)
    sampled = complete(model, test, length, generator=generator)
    exact = (greedy[:, 0, : chains.links] == rationales).all(1)
    return {
        "accuracy": _share(correct(greedy, answers)),
        "sampled_accuracy": _share(correct(sampled, answers)),
        "exact_rationales": _share(exact),
    }


def _share(found: Tensor) -> float:
    return found.double().mean().item()
