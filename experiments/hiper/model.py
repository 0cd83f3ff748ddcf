"""The policy: a language model of the words of the worlds, with three values."""

from __future__ import annotations

from flashlla.models import LanguageModel, PolicyConfig, PolicyModel

from ..worlds import tokenizer

VALUES = 3  # critic.py says of what


def model_config(mixer: str, dim: int, depth: int, heads: int) -> PolicyConfig:
    """Sizes of a policy whose actions are words.

    Raises:
        ValueError: sizes that do not fit.
    """
    return PolicyConfig(
        vocab_size=len(tokenizer()),
        dim=dim,
        depth=depth,
        heads=heads,
        mixer=mixer,
        tie_embeddings=False,
        value_heads=VALUES,
    )


def policy_from(actor: LanguageModel) -> PolicyModel:
    """A policy with a copy of the actor, and values of 0."""
    policy = PolicyModel(actor.config).to(actor.embedding.weight.device)
    policy.actor.load_state_dict(actor.state_dict())
    return policy
