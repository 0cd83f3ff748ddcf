"""From operands to launches: layouts, tables of tiles, strides, blocks, precision."""

from __future__ import annotations

import ctypes

import torch
import triton
from torch import Tensor

from flashlla.ops.triton import _common, _configs, _runtime
from flashlla.ops.triton.broken import count_broken
from flashlla.ops.types import Layout, Options

HALF = (torch.bfloat16, torch.float16)
NO_STRIDES = (0, 0, 0)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and of all solver state for operands of ``dtype``."""
    return torch.float32 if dtype in HALF else torch.float64


class Problem:
    """One call: its operands, and what every launch needs of them."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: Options):
        self.q, self.k, self.v, self.layout, self.options = q, k, v, layout, options
        self.state_dtype = state_dtype(q.dtype)
        self.half = q.dtype in HALF
        # Weights are split unless the tolerance asks for less than their rounding leaves.
        self.terms = 2 if self.half and options.rtol < torch.finfo(q.dtype).eps else 1
        self.probe_terms = 2 if self.half else 1
        # The kernels of this backend iterate unless told otherwise: docs/performance.md counts what either costs.
        self.direct = options.solver == "direct"
        self.broken = count_broken(k, v)
        self.block_d, self.block_v = (max(16, triton.next_power_of_2(t.shape[-1])) for t in (q, v))
        self.empty = torch.empty(0, dtype=torch.int32, device=q.device)

    def empty_rows(self, *last: int, dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialised tensor with one entry, or one vector, a row."""
        return torch.empty(*self.q.shape[:3], *last, dtype=dtype or self.state_dtype, device=self.q.device)

    def config(self, kernel: str) -> _configs.Config:
        return _configs.heuristic(kernel, max(self.block_d, self.block_v), not self.half)

    def launch(
        self, kernel, name: str, *operands, over_keys: bool = False, grid: int | None = None, **constants
    ) -> None:
        """Run a kernel: operands first, then what all kernels take.

        Args:
            name: of its configuration.
            over_keys: its tiles are keys, not rows.
            grid: number of programs; None means one for every tile, head and batch row.
        """
        config = self.config(name)
        tiles, table = self.tiles(config.BLOCK_N if over_keys else config.BLOCK_M, over_keys)
        if grid is None:
            grid = tiles * (self.k if over_keys else self.q).shape[2] * self.q.shape[0]
        if grid == 0:
            return
        options = self.options
        high = ctypes.c_float(options.scale).value
        cu_q, cu_k = self.layout.packed or (self.empty, self.empty)
        lengths = self.empty if self.layout.seqlens_k is None else self.layout.seqlens_k
        dims = {"DIM": self.q.shape[-1], "BLOCK_D": self.block_d}
        if "VALUE_DIM" in kernel.arg_names:
            dims |= {"VALUE_DIM": self.v.shape[-1], "BLOCK_V": self.block_v}
        solver = (options.rtol, options.max_iters) if "max_iters" in kernel.arg_names else ()
        _runtime.run(
            kernel,
            grid,
            *operands,
            self.q.shape[1],
            self.k.shape[1],
            cu_q,
            cu_k,
            lengths,
            table,
            tiles,
            self.q.shape[1],
            self.q.shape[2],
            self.k.shape[2],
            options.window_size,
            high,
            options.scale - high,
            *solver,
            **dims,
            BLOCK_M=config.BLOCK_M,
            BLOCK_N=config.BLOCK_N,
            OPERAND=_common.OPERAND[self.q.dtype],
            ACC=_common.ACC[self.q.dtype],
            LAYOUT=self._layout(),
            CAUSAL=options.causal,
            WINDOW=0 < options.window_size < self.k.shape[1],
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            **constants,
        )

    def _layout(self) -> int:
        if self.layout.packed:
            return _common.PACKED.value
        return _common.DENSE.value if self.layout.seqlens_k is None else _common.CACHE.value

    def tiles(self, block: int, over_keys: bool) -> tuple[int, Tensor]:
        """How many tiles a head has at most, and for packed sequences the table of them, longest first.

        Lengths stay on the device: the bound follows from shapes alone.
        """
        total = (self.k if over_keys else self.q).shape[1]
        if not self.layout.packed:
            return triton.cdiv(total, block), self.empty
        cu_q, cu_k = self.layout.packed
        own = (cu_k if over_keys else cu_q).diff().long()
        counts = (own + block - 1) // block
        ends = counts.cumsum(0)
        bound = total // block + own.shape[0]
        tile = torch.arange(bound, device=own.device)
        sequence = torch.searchsorted(ends, tile, right=True)
        exists = sequence < own.shape[0]
        sequence = sequence.clamp(max=max(own.shape[0] - 1, 0))
        if own.shape[0] == 0:
            return 0, self.empty
        inside = tile - (ends - counts)[sequence]
        visible = self._visible(sequence, inside, cu_q.diff(), cu_k.diff(), block, over_keys)
        order = torch.where(exists, visible, -1).argsort(descending=True, stable=True)
        sequence = torch.where(exists, sequence, -1)
        return bound, torch.stack([sequence[order], inside[order]], 1).int().contiguous()

    def _visible(self, sequence, inside, q_lens, k_lens, block: int, over_keys: bool) -> Tensor:
        """How many keys the last row of a tile sees, or how many rows see its first key."""
        q_len, k_len = q_lens.long()[sequence], k_lens.long()[sequence]
        if not self.options.causal:
            seen = q_len if over_keys else k_len
        elif over_keys:
            seen = q_len - (inside * block - (k_len - q_len)).clamp(min=0)
        else:
            seen = torch.minimum((inside + 1) * block, q_len) + k_len - q_len
        window = self.options.window_size
        return seen.clamp(max=window + block) if window else seen


def strides(t: Tensor | None) -> tuple[int, int, int]:
    """Of batch, sequence and heads."""
    return NO_STRIDES if t is None else t.stride()[:3]
