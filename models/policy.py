"""A policy and its value functions over a history of observed tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flashlla.nn.checks import check_sizes

from .backbone import Model
from .config import LanguageModelConfig, check_given_sizes
from .language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(LanguageModelConfig):
    """Sizes and choices of a :class:`PolicyModel`: those of its language model, and its heads.

    Attributes:
        actions: number of actions; None means that the tokens are the actions, as for an agent that writes.
        value_heads: number of values at every position.

    Raises:
        TypeError, ValueError: as :class:`LanguageModelConfig` does; actions with an untied embedding, whose
            logits nobody would read.
    """

    actions: int | None = None
    value_heads: int = 1

    def __post_init__(self):
        super().__post_init__()
        check_given_sizes(actions=self.actions)
        check_sizes(value_heads=self.value_heads)
        if self.actions is not None and not self.tie_embeddings:
            raise ValueError(
                f"tie_embeddings=False with actions={self.actions}: nobody reads the logits of tokens; "
                "leave one of them out"
            )


class PolicyOutput(NamedTuple):
    """What a policy says at every position.

    Attributes:
        logits: of the actions, ``[batch, seq, actions]``, or of the tokens, ``[batch, seq, vocab_size]``.
        values: ``[batch, seq, value_heads]``.
    """

    logits: Tensor
    values: Tensor


class PolicyModel(Model):
    """A causal language model as actor, with heads for actions and values on its hidden states.

    Values and the logits of actions start at zero: indifferent, whatever is observed. Where the tokens are
    the actions, ``actor`` alone generates them: ``generate(policy.actor, ...)``.

    Raises:
        TypeError, ValueError: a configuration whose mixer_options its mixer does not take.
    """

    config: PolicyConfig

    def __init__(
        self,
        config: PolicyConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(config)
        factory = {"device": device, "dtype": dtype}
        self.actor = LanguageModel(config, **factory)
        self.action_head = None if config.actions is None else _zero_head(config.dim, config.actions, factory)
        self.value_head = _zero_head(config.dim, config.value_heads, factory)

    def forward(
        self,
        tokens: Tensor,
        states: Sequence[Any] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        last_only: bool = False,
    ) -> PolicyOutput:
        """Logits and values behind every position.

        Arguments and errors are those of :meth:`LanguageModel.forward`: with states from :meth:`make_states`
        the tokens continue what the states have seen, so that an episode is read once.
        """
        hidden = self.actor.hidden(tokens, states, lengths=lengths, last_only=last_only)
        logits = self.actor.logits(hidden) if self.action_head is None else self.action_head(hidden)
        return PolicyOutput(logits, self.value_head(hidden))

    def make_states(self, batch: int, capacity: int, **options) -> list[Any]:
        """Empty decode states, as :meth:`LanguageModel.make_states` makes them."""
        return self.actor.make_states(batch, capacity, **options)


def _zero_head(dim: int, outputs: int, factory: dict) -> nn.Linear:
    head = nn.Linear(dim, outputs, **factory)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
