"""Decoding over a cache of half precision: keys and values are read once, in splits of each sequence.

A solved probe takes the moments of every split (``moments.py``), their merge, and a small system a row
(``merge.py``). A given or zero probe needs no moments (``weighted.py``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from flashlla.ops.triton import _configs, _runtime, cached
from flashlla.ops.triton._launch import HALF, strides
from flashlla.ops.triton.merge import merge_kernel, solve_kernel
from flashlla.ops.triton.moments import moments_kernel
from flashlla.ops.triton.tuning import Config
from flashlla.ops.triton.weighted import merge_weighted_kernel, weighted_kernel
from flashlla.ops.types import MAX_DECODE_QUERIES, Forward, Layout, Options

MERGE_ROWS = 16  # of A and B, a program
MOST_ROWS = 64  # a tile of the rows that share keys


def takes(q: Tensor, layout: Layout) -> bool:
    """Whether a call decodes; other calls over a cache, those in float32 among them, are a prefill."""
    return layout.seqlens_k is not None and q.shape[1] <= MAX_DECODE_QUERIES and q.dtype in HALF


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    probe: Tensor | None,
    ridge: Tensor | None,
    gate: Tensor,
    layout: Layout,
    options: Options,
) -> Forward:
    """See ``flashlla.ops.types``; there is no backward pass, and g and the residual hold nothing."""
    rows, solved = q.shape[:3], ridge is not None
    per_row: dict[str, Any] = {"size": rows, "device": q.device}
    out = Forward(
        o=torch.empty(*rows, v.shape[-1], dtype=q.dtype, device=q.device),
        lse=torch.empty(**per_row),
        kbar=torch.empty(q.shape if solved else 0, device=q.device),
        g=torch.zeros(q.shape if solved else 0, device=q.device),
        residual=torch.zeros(**per_row),
        iterations=torch.zeros(**per_row, dtype=torch.int32),
    )
    call = _Call(q, k, v, layout, options, out)
    if call.rows and ridge is not None:
        _solved(call, ridge, gate)
    elif call.rows:
        _weighted(call, probe, gate)
    return out


class _Call:
    """What the launches of one call share."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: Options, out: Forward):
        self.q, self.options, self.out = q, options, out
        table, self.lengths = layout.block_table, layout.seqlens_k
        self.paged = table is not None
        capacity = k.shape[1] * (1 if table is None else table.shape[1])
        self.rows, self.splits = out.lse.numel(), cached.most_splits(capacity)
        self.heads, self.kv_heads = q.shape[2], k.shape[2]
        pages = (self.lengths, 0, 1) if table is None else (table, table.stride(0), k.shape[1])
        self.cache = (k, *strides(k), v, *strides(v), self.lengths, *pages)
        self.dim, self.value_dim = q.shape[-1], v.shape[-1]
        self.block_d, self.block_v = (_configs.padded(t.shape[-1]) for t in (q, v))
        self.block = max(self.block_d, self.block_v)
        self.mask = {"CAUSAL": options.causal, "WINDOW": 0 < options.window_size < capacity}

    def empty(self, *shape: int) -> Tensor:
        """float32 memory for every split of every row."""
        return torch.empty(self.rows, self.splits, *shape, device=self.q.device)

    def config(self, kernel: str) -> Config:
        return _configs.choose(kernel, self.q.device, self.block, wide=False)


class _Moments(NamedTuple):
    """State of all splits, float32 ``[rows, splits, ...]``: top logit and sum of weights; shift and centred
    sum of the keys, and of the values; A and B.
    """

    stats: Tensor
    key_sums: Tensor
    value_sums: Tensor
    a: Tensor
    b: Tensor


def _solved(call: _Call, ridge: Tensor, gate: Tensor) -> None:
    dim, value_dim = call.dim, call.value_dim
    state = _Moments(
        call.empty(2),
        call.empty(2, dim),
        call.empty(2, value_dim),
        call.empty(dim, dim),
        call.empty(value_dim, dim),
    )
    q, options, out = call.q, call.options, call.out
    vbar = torch.empty(call.rows, value_dim, device=q.device)
    shared = {"DIM": dim, "VALUE_DIM": value_dim, "BLOCK_D": call.block_d, **call.mask}
    sizes = (q.shape[1], call.heads, call.splits, options.window_size)

    config = call.config("moments")
    rows = min(call.block_d, config.BLOCK_M)
    _runtime.run(
        moments_kernel,
        call.block_d // rows * call.splits * call.rows,
        *(q, *strides(q), *call.cache, *state, *sizes, call.kv_heads, options.scale),
        **shared,
        BLOCK_V=call.block_v,
        BLOCK_N=config.BLOCK_N,
        SLOTS=min(16, 256 * config.num_warps // call.block),
        ROWS=rows,
        PAGED=call.paged,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    tiles = call.block // MERGE_ROWS
    _runtime.run(
        merge_kernel,
        tiles * call.rows,
        *(*state, out.kbar, vbar, out.lse, call.lengths, *sizes),
        **shared,
        TILES=tiles,
        ROWS_D=MERGE_ROWS,
        ROWS_V=MERGE_ROWS,
        num_warps=4,
    )
    _runtime.run(
        solve_kernel,
        call.rows,
        *(q, *strides(q), ridge, *strides(ridge), gate, *strides(gate), state.a, state.b),
        *(out.kbar, vbar, call.lengths, out.o, out.iterations, *sizes, options.rtol, options.max_iters),
        **shared,
        BLOCK_V=call.block_v,
        ROWS_V=min(call.block_v, 32),
        WHOLE=call.block_d <= 128,
        num_warps=8 if call.block_d > 64 else 4,
    )


def _weighted(call: _Call, probe: Tensor | None, gate: Tensor) -> None:
    q, options, given = call.q, call.options, probe is not None
    state = (call.empty(2), call.empty(2), call.empty(2, call.value_dim))
    shared = {"VALUE_DIM": call.value_dim, "BLOCK_V": call.block_v, "GIVEN": given, **call.mask}
    sizes = (q.shape[1], call.heads, call.splits, options.window_size)

    config = call.config("weighted")
    sharing = call.heads // call.kv_heads * q.shape[1]
    block_m = min(_configs.padded(sharing), MOST_ROWS)
    _runtime.run(
        weighted_kernel,
        -(-sharing // block_m) * call.splits * call.kv_heads * q.shape[0],
        *(q, *strides(q), *call.cache, probe if given else q, *strides(probe), *state),
        *(*sizes, call.kv_heads, options.scale),
        **shared,
        DIM=call.dim,
        BLOCK_D=call.block_d,
        BLOCK_M=block_m,
        BLOCK_N=config.BLOCK_N,
        PAGED=call.paged,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    _runtime.run(
        merge_weighted_kernel,
        call.rows,
        *(gate, *strides(gate), *state, call.lengths, call.out.o, call.out.lse, *sizes),
        **shared,
        num_warps=1,
    )
