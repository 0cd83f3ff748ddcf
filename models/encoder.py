"""A bidirectional encoder: every position sees all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flashlla.nn.checks import check_sizes

from .backbone import TokenModel
from .config import LanguageModelConfig, StackConfig, check_given_sizes
from .mixers.bidirectional import build_bidirectional_mixer


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(StackConfig):
    """Sizes and choices of an :class:`Encoder`; those of the stack are in :class:`StackConfig`.

    Attributes:
        vocab_size: number of tokens.
        outputs: number of logits at every position: classes, say. None means one a token, from the matrix of
            the embedding, to predict masked tokens.

    Raises:
        TypeError, ValueError: as :class:`StackConfig` does.
    """

    vocab_size: int
    outputs: int | None = None

    PRESETS: ClassVar = LanguageModelConfig.PRESETS

    def __post_init__(self):
        check_sizes(vocab_size=self.vocab_size)
        check_given_sizes(outputs=self.outputs)
        super().__post_init__()


class Encoder(TokenModel):
    """Embedding, blocks whose mixers see the whole sequence, norm, logits.

    Raises:
        TypeError, ValueError: a configuration whose mixer_options its mixer does not take.
    """

    config: EncoderConfig

    def __init__(
        self,
        config: EncoderConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(
            config,
            build_bidirectional_mixer,
            vocab_size=config.vocab_size,
            outputs=config.outputs,
            device=device,
            dtype=dtype,
        )

    def forward(self, tokens: Tensor, *, lengths: Sequence[int] | None = None) -> Tensor:
        """Logits at every position.

        Args:
            tokens: ``[batch, seq]``, int64.
            lengths: the real tokens of each row, ints in ``[0, seq]``. Behind them stands padding: any
                tokens, which no real position sees, and whose own outputs have no meaning.

        Returns:
            ``[batch, seq, outputs]``.

        Raises:
            TypeError: tokens of another dtype.
            ValueError: another shape, or lengths that do not fit it.
        """
        return self.logits(self.hidden(tokens, lengths=lengths))

    def hidden(self, tokens: Tensor, *, lengths: Sequence[int] | None = None) -> Tensor:
        """What the logits are computed from, ``[batch, seq, dim]``; arguments and errors as there."""
        self.check_tokens(tokens)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, lengths)
        return self.norm(x)
