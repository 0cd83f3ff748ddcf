"""Context parallel attention: the processes of a group share every sequence.

A sequence is cut into twice as many chunks as there are processes, and process ``r`` of ``n`` takes chunks
``r`` and ``2 n - 1 - r``: with a causal mask all then have equally many (query, key) pairs. Every layer
gathers keys and values once; backward, their gradients are reduce-scattered once. Each chunk of queries is an
ordinary causal call over the keys up to its end, so that nothing is communicated inside the solver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from flashlla.nn.attention import _Attention

# The names from torch 2.13 on, and those before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def zigzag_shard(t: Tensor, rank: int, size: int, dim: int = 1) -> Tensor:
    """The two chunks of ``t`` along ``dim`` that process ``rank`` of ``size`` takes.

    Raises:
        ValueError: a length that is no multiple of ``2 size``.
    """
    if size == 1:
        return t
    if t.dim() <= dim or t.shape[dim] % (2 * size):
        raise ValueError(
            f"a tensor of the batch has shape {tuple(t.shape)}; for context={size} dimension {dim} must be "
            f"the sequence, a multiple of {2 * size} long"
        )
    chunks = t.chunk(2 * size, dim)
    return torch.cat((chunks[rank], chunks[2 * size - 1 - rank]), dim)


def zigzag_unshard(shards: Iterable[Tensor], dim: int = 1) -> Tensor:
    """The inverse of :func:`zigzag_shard`, from the shards of all processes by rank."""
    first, last = zip(*(shard.chunk(2, dim) for shard in shards), strict=True)
    return torch.cat((*first, *reversed(last)), dim)


def shard_batch(batch: Any, rank: int, size: int) -> Any:
    """:func:`zigzag_shard` of every tensor of a batch, ``[batch, seq, ...]`` each."""
    if size == 1:
        return batch
    return tree_map(lambda t: zigzag_shard(t, rank, size) if isinstance(t, Tensor) else t, batch)


def split_context(model: nn.Module, group) -> None:
    """Let every attention layer of ``model`` work on shards of :func:`zigzag_shard` over ``group``, in place.

    Inputs are ``[batch, seq / size, dim]``; weights and their names stay as they are. The gradients of the
    weights are those of this process's rows, to be averaged over the group like data-parallel ones.

    Raises:
        NotImplementedError: a module that mixes rows other than by the attention of :mod:`flashlla.nn`.
    """
    layers = [m for m in model.modules() if isinstance(m, _Attention)]
    _refuse_other_mixers(model, bool(layers))
    for layer in layers:
        layer._dense = _ContextCall(layer._dense, group)
        layer._positions = MethodType(_positions, layer)


@contextmanager
def whole_sequences(model: nn.Module) -> Iterator[None]:
    """Within, the layers take whole sequences again, which every process computes alone: to evaluate, say."""
    calls = [m._dense for m in model.modules() if isinstance(getattr(m, "_dense", None), _ContextCall)]
    try:
        for call in calls:
            call.sharded = False
        yield
    finally:
        for call in calls:
            call.sharded = True


def _refuse_other_mixers(model: nn.Module, has_attention: bool) -> None:
    for name, module in model.named_modules():
        mixes = hasattr(module, "make_state") and not any(isinstance(m, _Attention) for m in module.modules())
        if mixes or isinstance(module, nn.MultiheadAttention):
            raise NotImplementedError(
                f"{name} ({type(module).__name__}) mixes rows in its own way and cannot share a sequence; "
                "use context=1"
            )
    if not has_attention:
        raise NotImplementedError("the model has no attention layer of flashlla.nn; use context=1")


def _positions(layer: _Attention, x: Tensor, context, cache, cu_seqlens) -> tuple[Tensor, Tensor]:
    """In place of the layer's own: the positions of this process's two chunks."""
    if not layer._dense.sharded:
        return type(layer)._positions(layer, x, context, cache, cu_seqlens)
    if context is not None or cache is not None or cu_seqlens is not None:
        raise NotImplementedError("context parallel layers take neither context, cache nor cu_seqlens")
    positions = layer._dense.positions(x.shape[1], x.device)
    return positions, positions


class _ContextCall:
    """A dense attention function of the library over one process's shard of the queries, keys and values."""

    def __init__(self, function: Callable[..., Tensor], group):
        self.function, self.group, self.sharded = function, group, True
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def positions(self, rows: int, device: torch.device) -> Tensor:
        everything = torch.arange(rows * self.size, device=device)
        return zigzag_shard(everything, self.rank, self.size, dim=0)

    def __call__(
        self, *operands: Tensor, causal: bool = True, window_size: int | None = None, **options
    ) -> Tensor:
        if not self.sharded:
            return self.function(*operands, causal=causal, window_size=window_size, **options)
        *queries, k, v = operands
        k, v = self._gather(k, v)
        if not causal:
            return self.function(*queries, k, v, causal=False, **options)
        rows = queries[0].shape[1] // 2
        outs = []
        for chunk, chunks in zip(
            (self.rank, 2 * self.size - 1 - self.rank), self._halves(queries), strict=True
        ):
            end = (chunk + 1) * rows
            begin = 0 if window_size is None else max(0, end - rows - window_size + 1)
            seen = (k[:, begin:end], v[:, begin:end])
            outs.append(self.function(*chunks, *seen, causal=True, window_size=window_size, **options))
        return torch.cat(outs, 1)

    @staticmethod
    def _halves(queries: list[Tensor]) -> Iterable[tuple[Tensor, ...]]:
        return zip(*(q.chunk(2, 1) for q in queries), strict=True)

    def _gather(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the whole sequence, in one collective."""
        if torch.is_autocast_enabled(k.device.type) and k.dtype != torch.float64:
            k, v = (t.to(torch.get_autocast_dtype(k.device.type)) for t in (k, v))
        gathered = _AllGather.apply(torch.cat((k, v), -1), self.group)
        return zigzag_unshard(gathered).split((k.shape[-1], v.shape[-1]), -1)


class _AllGather(torch.autograd.Function):
    """``[...]`` to ``[size, ...]``; backward a reduce-scatter that sums in float32 or better."""

    @staticmethod
    def forward(t: Tensor, group) -> Tensor:
        gathered = t.new_empty(dist.get_world_size(group), *t.shape)
        _all_gather(gathered.flatten(0, 1), t.contiguous(), group=group)
        return gathered

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32)).contiguous()
        share = torch.empty_like(wide[0])
        _reduce_scatter(share, wide.flatten(0, 1), group=ctx.group)
        return share.to(gradient.dtype), None
