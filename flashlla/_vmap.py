"""The operators under ``torch.func.vmap``: one more dimension is one more batch dimension."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flashlla.ops.types import Layout

# Tensors, and where each has the dimension of the vmap.
_Unfolded = tuple[tuple[Tensor, ...], tuple[int | None, ...]]


class _Fold:
    """Folds the dimension of a vmap into the batch dimension of every operand, and unfolds the results."""

    def __init__(self, size: int, layout: Layout):
        if layout.packed:
            raise NotImplementedError(
                "vmap over packed sequences: concatenate them into one cu_seqlens instead"
            )
        if layout.block_table is not None:
            raise NotImplementedError("vmap over a paged cache: add rows to block_table instead")
        lengths = layout.seqlens_k
        self.size = size
        self.layout = Layout(seqlens_k=None if lengths is None else lengths.repeat(size))

    def inputs(
        self, tensors: tuple[Tensor | None, ...], in_dims: tuple[int | None, ...]
    ) -> list[Tensor | None]:
        return [None if t is None else self._fold(t, dim) for t, dim in zip(tensors, in_dims, strict=False)]

    def _fold(self, t: Tensor, dim: int | None) -> Tensor:
        t = t.unsqueeze(0).expand(self.size, *t.shape) if dim is None else t.movedim(dim, 0)
        t = t.flatten(0, 1)
        return t if t.shape[-1] < 2 or t.stride(-1) == 1 else t.contiguous()

    def outputs(self, tensors: tuple[Tensor, ...]) -> _Unfolded:
        unfolded = tuple(t.unflatten(0, (self.size, -1)) if t.dim() > 1 else t for t in tensors)
        return unfolded, tuple(0 if t.dim() > 1 else None for t in unfolded)


def _rule(name: str, operands: int) -> Callable[..., _Unfolded]:
    """How an operator with so many operands in front of its layout goes over a vmap."""
    end = operands + len(Layout._fields)

    def over_vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> _Unfolded:
        fold = _Fold(info.batch_size, Layout(*inputs[operands:end]))
        folded = fold.inputs(inputs[:operands], in_dims)
        return fold.outputs(getattr(torch.ops.flashlla, name)(*folded, *fold.layout, *inputs[end:]))

    return over_vmap


forward, backward = _rule("forward", 6), _rule("backward", 9)
