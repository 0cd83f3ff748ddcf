"""A decoder-only language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flashlla.nn import PageTable

from .backbone import TokenModel
from .config import LanguageModelConfig
from .mixers import build_mixer


class LanguageModel(TokenModel):
    """A causal language model over the mixers of :mod:`flashlla.models.mixers`.

    Raises:
        TypeError, ValueError: a configuration whose mixer_options its mixer does not take.
    """

    config: LanguageModelConfig

    def __init__(
        self,
        config: LanguageModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        outputs = None if config.tie_embeddings else config.vocab_size
        super().__init__(
            config, build_mixer, vocab_size=config.vocab_size, outputs=outputs, device=device, dtype=dtype
        )

    def forward(
        self,
        tokens: Tensor,
        states: Sequence[Any] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Logits of the token behind every position.

        Args:
            tokens: ``[batch, seq]``, int64.
            states: decode states from :meth:`make_states`; tokens then continue what the states have seen,
                and the states are updated in place. Without gradient only.
            lengths: with states, the real tokens of each row, ints in ``[0, seq]``; what stands behind them
                is padding: any tokens, which leave no trace in the states and have logits without meaning.
            last_only: the logits of the last (real) position only, for a prefill.

        Returns:
            ``[batch, seq, vocab_size]``, with last_only ``[batch, 1, vocab_size]``.

        Raises:
            TypeError: tokens of another dtype.
            ValueError: another shape, states of another model, or full states.
        """
        return self.logits(self.hidden(tokens, states, lengths=lengths, last_only=last_only))

    def hidden(
        self,
        tokens: Tensor,
        states: Sequence[Any] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """What the logits are computed from, ``[batch, seq, dim]``; arguments and errors as there."""
        self._check_inputs(tokens, states)
        x = self.embedding(tokens)
        for block, state in zip(self.blocks, states or [None] * len(self.blocks), strict=True):
            x = block(x, state, lengths)
        if last_only and lengths is not None:
            last = torch.tensor(lengths).clamp(min=1).to(x.device, non_blocking=True) - 1
            x = x[torch.arange(x.shape[0], device=x.device), last][:, None]
        elif last_only:
            x = x[:, -1:]
        return self.norm(x)

    def make_states(
        self, batch: int, capacity: int, *, kind: str = "static", dtype: torch.dtype | None = None
    ) -> list[Any]:
        """Empty decode states of every block, for ``batch`` sequences of up to ``capacity`` tokens.

        Args:
            kind: ``"static"``, ``"growing"``, ``"sliding"`` or ``"paged"``, see
                :meth:`flashlla.nn.LocalLinearAttention.make_cache`; all blocks share one page table.
            dtype: of keys and values; None follows the weights.

        Raises:
            TypeError, ValueError: an unknown kind, sizes below 1, ``"sliding"`` without a window.
            NotImplementedError: ``"paged"`` with a mixer that keeps no rows.
        """
        dtype = self.embedding.weight.dtype if dtype is None else dtype
        if kind == "paged":
            table = PageTable.for_batch(batch, capacity, device=self.embedding.weight.device)
            return self.make_paged_states(table, dtype=dtype)
        return [block.mixer.make_state(batch, capacity, kind=kind, dtype=dtype) for block in self.blocks]

    def make_paged_states(self, table: PageTable, *, dtype: torch.dtype | None = None) -> list[Any]:
        """Decode states in the pages of ``table``; the batch of a call is what the table has selected.

        Raises:
            ValueError: other states are in these pages already.
            NotImplementedError: a mixer keeps no rows that could be in pages.
        """
        if table.layers:
            raise ValueError(
                f"table has {table.layers} caches already; make one table for each set of states"
            )
        dtype = self.embedding.weight.dtype if dtype is None else dtype
        return [block.mixer.make_paged_state(table, dtype=dtype) for block in self.blocks]

    def _check_inputs(self, tokens: Tensor, states: Sequence[Any] | None) -> None:
        self.check_tokens(tokens)
        if states is not None and len(states) != len(self.blocks):
            raise ValueError(
                f"states has {len(states)} entries for {len(self.blocks)} blocks; make_states() makes them"
            )
