"""Batches as transformers pads and packs them, and as our models read them: each sequence in its own row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """Where the tokens of a batch ``[batch, seq]`` stand when every sequence has a row of its own.

    Attributes:
        source: which token stands there, counted row by row through the batch, int64 ``[rows, width]``.
        target: where each token has gone, counted the same way, int64 ``[batch, seq]``; 0 for padding.
        lengths: tokens of each row, ints; what stands behind them is padding.
        packed: a row of the batch holds several sequences, so that the rows are not those of the batch.
    """

    source: Tensor
    target: Tensor
    lengths: list[int]
    packed: bool

    def take(self, x: Tensor) -> Tensor:
        """``[batch, seq, ...]`` to ``[rows, width, ...]``."""
        return x.flatten(0, 1)[self.source.to(x.device)]

    def put_back(self, x: Tensor) -> Tensor:
        """``[rows, width, ...]`` to ``[batch, seq, ...]``; what stands at padding has no meaning."""
        return x.flatten(0, 1)[self.target.to(x.device)]


def find_rows(
    attention_mask: Tensor | None, position_ids: Tensor | None, batch: int, seq: int, *, cached: bool
) -> Rows | None:
    """The rows of a batch, or None where it can be read as it is: padding on the right harms no causal model.

    Args:
        attention_mask: ``[batch, columns]``, 0 for padding, anywhere; the last ``seq`` columns are those of
            the batch. None means no padding.
        position_ids: ``[batch, seq]`` or ``[1, seq]``. Padding left out, they go up by one within a sequence,
            and a new one begins where they do not go up. None means one sequence a row.
        cached: a cache takes the batch in, and must not take padding in.

    Raises:
        ValueError: another shape, or positions that leave some out.
    """
    real, positions = _real(attention_mask, batch, seq), _positions(position_ids, batch, seq)
    if real is not None and bool(real.all()):
        real = None
    if real is not None:
        padded = cached or bool((real[:, 1:] > real[:, :-1]).any())
    elif positions is not None:
        padded, real = False, torch.ones_like(positions, dtype=torch.bool)
    else:
        return None
    tokens = real.flatten().nonzero()[:, 0]
    row = tokens // seq
    starts = None if positions is None else _starts(positions.flatten()[tokens], row)
    if starts is None and not padded:
        return None
    return _lay_out(tokens, row if starts is None else starts.cumsum(0) - 1, batch, seq, starts is not None)


def first_tokens(
    attention_mask: Tensor | None, position_ids: Tensor | None, batch: int, seq: int
) -> Tensor | None:
    """What no token of the same sequence predicts: it begins one, or stands behind padding.

    Bool ``[batch, seq]``, or None where that is the first column alone. Arguments and errors are those of
    :func:`find_rows`.
    """
    real, positions = _real(attention_mask, batch, seq), _positions(position_ids, batch, seq)
    known = positions if real is None else real
    if known is None:
        return None
    first = torch.zeros(batch, seq, dtype=torch.bool, device=known.device)
    if real is not None:
        first[:, 1:] |= ~real[:, :-1]
    if positions is not None:
        first[:, 1:] |= positions[:, 1:] <= positions[:, :-1]
    return first


def _lay_out(tokens: Tensor, sequence: Tensor, batch: int, seq: int, packed: bool) -> Rows:
    """Rows from the places of all tokens in the batch, ascending, and the number of the sequence of each."""
    counts = torch.bincount(sequence, minlength=0 if packed else batch)
    lengths = counts.tolist()
    width = max([1, *lengths])
    column = torch.arange(tokens.shape[0], device=tokens.device) - (counts.cumsum(0) - counts)[sequence]
    slots = sequence * width + column
    source, target = tokens.new_zeros(len(lengths) * width), tokens.new_zeros(batch * seq)
    source[slots], target[tokens] = tokens, slots
    return Rows(source.view(-1, width), target.view(batch, seq), lengths, packed)


def _starts(positions: Tensor, row: Tensor) -> Tensor | None:
    """Which tokens begin a sequence, bool ``[tokens]``; None if every row is one sequence."""
    step, same_row = positions.diff(), row.diff() == 0
    skips, restarts = torch.stack([((step > 1) & same_row).any(), ((step < 1) & same_row).any()]).tolist()
    if skips:
        raise ValueError(
            "position_ids leave positions out; they go up by one within a sequence, and where they do not go "
            "up a new one begins"
        )
    if not restarts:
        return None
    return torch.cat([same_row.new_ones(1), ~same_row | (step < 1)])


def _real(mask: Tensor | None, batch: int, seq: int) -> Tensor | None:
    """Which tokens are no padding, bool ``[batch, seq]``."""
    if mask is None:
        return None
    if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < seq:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}; expected one number a token, [{batch}, {seq}], "
            "with those of a cache in front of them or not"
        )
    return mask[:, mask.shape[1] - seq :] != 0


def _positions(positions: Tensor | None, batch: int, seq: int) -> Tensor | None:
    """Positions ``[batch, seq]``; None where a single column leaves nothing to tell apart."""
    if positions is None or seq < 2:
        return None
    if positions.dim() != 2 or positions.shape[0] not in (1, batch) or positions.shape[1] != seq:
        raise ValueError(
            f"position_ids has shape {tuple(positions.shape)}; expected [{batch}, {seq}] or [1, {seq}]"
        )
    return positions.expand(batch, seq)
