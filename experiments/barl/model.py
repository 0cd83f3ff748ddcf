"""The model of triplets and of sums."""

from __future__ import annotations

from flashlla.models import LanguageModelConfig


def model_config(vocab: int, mixer: str, dim: int, depth: int, heads: int) -> LanguageModelConfig:
    """A model of so many tokens, which are both prompts and answers.

    Raises:
        ValueError: sizes that do not fit.
    """
    return LanguageModelConfig(
        vocab_size=vocab, dim=dim, depth=depth, heads=heads, mixer=mixer, tie_embeddings=False
    )
