"""What a mixer without a key/value cache remembers between calls: tensors of fixed size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flashlla.nn.cache.base import check_counts, on_device


class MixerState:
    """Tensors ``[batch, ...]`` that start at zero and change in place, and how many rows they have seen.

    Padding leaves no trace: the mixers see to it, and ``positions`` counts real rows only.

    Args:
        sizes: shape of each tensor for one sequence, by name.
        batch: number of sequences.
        device, dtype: of the tensors.

    Attributes:
        tensors: the state by name.
        positions: real rows that each sequence has had, int64 ``[batch]``.
    """

    def __init__(self, sizes: dict[str, tuple[int, ...]], batch: int, device: Any, dtype: torch.dtype):
        self.tensors = {
            name: torch.zeros(batch, *size, device=device, dtype=dtype) for name, size in sizes.items()
        }
        self.positions = torch.zeros(batch, dtype=torch.int64, device=device)

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self.positions.shape[0]

    def reserve(self, rows: int, lengths: Sequence[int] | None) -> None:
        """Make room for new rows; a state of fixed size has it.

        Raises:
            TypeError, ValueError: lengths that do not fit the rows or the batch.
        """
        check_counts(rows, lengths, self.batch, "lengths")

    def update(self, tensors: dict[str, Tensor], rows: int, lengths: Sequence[int] | None) -> None:
        """Take over the state behind new rows and count these in."""
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)
        self.positions += rows if lengths is None else on_device(lengths, self.positions.device)

    def reset(self) -> None:
        """Forget every row."""
        for tensor in self.tensors.values():
            tensor.zero_()
        self.positions.zero_()
