"""From operands to launches: layouts, tables of tiles, strides, blocks, precision."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from flashlla.ops.triton import _common, _configs, _runtime
from flashlla.ops.triton.broken import count_broken
from flashlla.ops.triton.tuning import Config
from flashlla.ops.types import Layout, Options

ALL, MANY, FEW = (_common.ALL.value, _common.MANY.value, _common.FEW.value)
HALF = (torch.bfloat16, torch.float16)
NO_STRIDES = (0, 0, 0)


def few_keys(q: Tensor) -> int:
    """A row with so many visible keys or fewer has a covariance that is singular, or nearly so."""
    return q.shape[-1] + q.shape[-1] // 4


def parts(q: Tensor, k: Tensor, v: Tensor, solved: bool, layout: Layout, options: Options) -> list[Problem]:
    """What a call is launched as: at once, or apart for rows that see many keys and for those that see few.

    Only a solved probe of half precision operands needs both.
    """
    call = (q, k, v, layout, options, count_broken(k, v))
    if q.dtype not in HALF or not solved:
        return [Problem(*call)]
    most = options.window_size if 0 < options.window_size < k.shape[1] else k.shape[1]
    if most <= few_keys(q):
        return [Problem(*call, wide=True)]
    if layout == Layout() and not options.causal:
        return [Problem(*call, rows=MANY)]
    # The small part first: it runs beside the large one.
    return [Problem(*call, rows=FEW, wide=True), Problem(*call, rows=MANY)]


class Problem:
    """One call, or those of its rows that see few (or many) keys: operands, and what every launch needs.

    Args:
        broken: of ``count_broken``.
        rows: which rows, one of ``ALL``, ``MANY`` and ``FEW`` of ``_common``.
        wide: in float64 whatever the operands; float32 is always.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        options: Options,
        broken: Tensor,
        rows: int = ALL,
        wide: bool = False,
    ):
        self.q, self.k, self.v, self.layout, self.options = q, k, v, layout, options
        self.broken, self.rows = broken, rows
        half = q.dtype in HALF
        self.wide = wide or not half
        # Whether its state is what the backward pass gets back; any other is computed again.
        self.saves = self.wide != half
        self.dtype = torch.float64 if self.wide else torch.float32
        self.few = few_keys(q)
        if wide and half:
            # What is left of right-hand sides that meet no key would hide the residual of the rest.
            self.options = options._replace(rtol=options.rtol / 16)
        # Weights are split unless the tolerance asks for less than their rounding leaves.
        self.terms = 1 if self.wide or options.rtol >= 4 * torch.finfo(q.dtype).eps else 2
        self.probe_terms = 1 if self.wide else 2
        self.block_d, self.block_v = (_configs.padded(t.shape[-1]) for t in (q, v))
        self.empty = torch.empty(0, dtype=torch.int32, device=q.device)

    @property
    def tensors(self) -> tuple[Tensor | int, ...]:
        """q, k and v with their strides."""
        return (self.q, *strides(self.q), self.k, *strides(self.k), self.v, *strides(self.v))

    def split(self, t: Tensor) -> Tensor:
        """State ``[..., DIM]`` in float32 as ``[..., 2 DIM]`` in the dtype of q: its bytes, as hi and lo."""
        return t if self.wide else t.view(self.q.dtype)

    def state(self, *last: int, planes: int | None = None) -> Tensor:
        """Memory for what this launch keeps of its rows, numbered by ``state_rows``.

        All of it is written but rows that see few keys, where these are another launch's: they hold zeros.
        """
        rows: tuple[int, ...] = self.q.shape[:3]
        if self.rows == FEW and self.options.causal:
            rows = (self.sequences * self.few, rows[2])
        shape = (*rows, *last) if planes is None else (planes, *rows, *last)
        make = torch.zeros if self.rows == MANY and planes is None else torch.empty
        return make(shape, dtype=self.dtype, device=self.q.device)

    @property
    def sequences(self) -> int:
        """How many sequences there are."""
        return self.layout.packed[0].shape[0] - 1 if self.layout.packed else self.q.shape[0]

    def config(self, kernel: str) -> Config:
        return _configs.choose(kernel, self.q.device, max(self.block_d, self.block_v), self.wide)

    def launch(
        self,
        kernel: Any,
        name: str,
        *operands: Tensor | int | None,
        over_keys: bool = False,
        grid: int | None = None,
        **constants: object,
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
            self.few,
            high,
            options.scale - high,
            *solver,
            **dims,
            BLOCK_M=config.BLOCK_M,
            BLOCK_N=config.BLOCK_N,
            OPERAND=tl.float64 if self.wide else _common.OPERAND[self.q.dtype],
            ACC=tl.float64 if self.wide else tl.float32,
            LAYOUT=self._layout(),
            CAUSAL=options.causal,
            WINDOW=0 < options.window_size < self.k.shape[1],
            ROWS=self.rows,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            **constants,
        )

    def _layout(self) -> int:
        rows = _common.DENSE if self.layout.seqlens_k is None else _common.CACHE
        number: int = (_common.PACKED if self.layout.packed else rows).value
        return number

    def tiles(self, block: int, over_keys: bool) -> tuple[int, Tensor]:
        """How many tiles a head has at most, and for packed sequences the table of them, longest first.

        Lengths stay on the device: the bound follows from shapes alone.
        """
        total = (self.k if over_keys else self.q).shape[1]
        if not self.layout.packed:
            if self.rows == FEW and self.options.causal and self.layout.seqlens_k is None:
                few_rows = max(self.q.shape[1] - self.k.shape[1], 0) + self.few
                total = min(total, self.few if over_keys else few_rows)
            return -(-total // block), self.empty
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

    def _visible(
        self, sequence: Tensor, inside: Tensor, q_lens: Tensor, k_lens: Tensor, block: int, over_keys: bool
    ) -> Tensor:
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
    if t is None:
        return NO_STRIDES
    batch, row, head = t.stride()[:3]
    return batch, row, head
