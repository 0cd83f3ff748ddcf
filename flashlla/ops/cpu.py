"""The compiled CPU kernels (csrc/cpu): allocation and the hand-over of pointers, no arithmetic.

float32, bfloat16 and float16 operands, float32 arithmetic, any strides with the last one 1. Results have the
same bits whatever the number of threads, and a row's result does not depend on its batch.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from flashlla import _C, _env
from flashlla.ops.types import MAX_DECODE_QUERIES, Forward, Gradients, Layout, Options

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_SOLVERS = {"auto": 0, "cg": 1, "direct": 2}


def describe() -> dict[str, object]:
    """What the extension is and would use: instruction sets and threads."""
    return {
        "instruction_set": _C.instruction_set(_instruction_set()),
        "available": _C.available_instruction_sets(),
        "threads": _threads(),
    }


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    probe: Tensor | None,
    ridge: Tensor | None,
    gate: Tensor,
    layout: Layout,
    options: Options,
    stats: bool,
) -> Forward:
    """See ``flashlla.ops.types``. A few query rows over a cache go through the decoding kernels."""
    problem = _Problem(q, k, v, probe, ridge, gate, layout, options, stats)
    rows = tuple(q.shape[:3])  # a torch.Size takes PyTorch longer
    shape = tuple(q.shape)
    # Rows of an operand that no sequence covers do not exist, so every element of these is written; only g
    # of softmax attention has no writer.
    out = Forward(
        o=torch.empty(*rows, v.shape[-1], dtype=q.dtype),
        lse=torch.empty(rows),
        kbar=torch.empty(shape),
        g=torch.empty(shape) if problem.has_probe else torch.zeros(shape),
        residual=torch.empty(rows),
        iterations=torch.empty(rows, dtype=torch.int32),
    )
    decoding = layout.seqlens_k is not None and q.shape[1] <= MAX_DECODE_QUERIES and not stats
    run = _C.decode if decoding else _C.forward
    run(_instruction_set(), problem.handle, *(t.data_ptr() for t in out), q.shape[1], _threads())
    return out


def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    probe: Tensor | None,
    ridge: Tensor | None,
    gate: Tensor,
    kbar: Tensor,
    g: Tensor,
    layout: Layout,
    options: Options,
) -> Gradients:
    """See ``flashlla.ops.types``."""
    problem = _Problem(q, k, v, probe, ridge, gate, layout, options, stats=False)
    rows = q.shape[:3]
    # Rows and keys that see nothing and are seen by nothing are not visited: their gradient is 0.
    grads = Gradients(
        dq=torch.zeros(q.shape, dtype=q.dtype),
        dk=torch.zeros(k.shape, dtype=k.dtype),
        dv=torch.zeros(v.shape, dtype=v.dtype),
        dprobe=None if probe is None else torch.zeros(q.shape, dtype=q.dtype),
        dridge=None if ridge is None else torch.zeros(rows),
        dgate=torch.zeros(rows),
    )
    do, kbar, g = do.to(q.dtype), kbar.contiguous(), g.contiguous()
    _C.backward(
        _instruction_set(),
        problem.handle,
        _operand(do),
        kbar.data_ptr(),
        g.data_ptr(),
        *(0 if t is None else t.data_ptr() for t in grads),
        q.shape[1],
        k.shape[1],
        _threads(),
    )
    return grads


class _Problem:
    """The operands as pointers, and what keeps these alive."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        probe: Tensor | None,
        ridge: Tensor | None,
        gate: Tensor,
        layout: Layout,
        options: Options,
        stats: bool,
    ):
        self.has_probe = ridge is not None or probe is not None
        self.sequences = _sequence_table(q, k, layout)
        pages = None if layout.block_table is None else layout.block_table.long().contiguous()
        self.tensors = (q, k, v, probe, ridge, gate, pages)
        self.handle = _C.Problem(
            _operand(q),
            _operand(k),
            _operand(v),
            None if probe is None else _operand(probe),
            None if ridge is None else _operand(ridge)[:2],
            _operand(gate)[:2],
            [q.shape[2], k.shape[2], q.shape[3], v.shape[3]],
            self.sequences.data_ptr(),
            self.sequences.shape[0],
            options.scale,
            options.causal,
            options.window_size,
            _SOLVERS[options.solver],
            options.rtol,
            options.max_iters,
            stats,
            None if pages is None else (pages.data_ptr(), pages.stride(0), k.shape[1]),
        )


def _operand(t: Tensor) -> tuple[int, tuple[int, ...], int]:
    return t.data_ptr(), t.stride()[:3], _DTYPES[t.dtype]


def _sequence_table(q: Tensor, k: Tensor, layout: Layout) -> Tensor:
    """Rows (q_batch, q_start, q_len, k_batch, k_start, k_len), int64."""
    batch, q_len, kv_len = q.shape[0], q.shape[1], k.shape[1]
    if layout.packed:
        cu_q, cu_k = (t.long() for t in layout.packed)
        zero = torch.zeros_like(cu_q[1:])
        return torch.stack([zero, cu_q[:-1], cu_q.diff(), zero, cu_k[:-1], cu_k.diff()], 1).contiguous()
    table = _dense_table(batch, q_len, kv_len)
    if layout.seqlens_k is not None:
        table = table.clone()
        table[:, 5] = layout.seqlens_k
    return table


@lru_cache(maxsize=64)  # nothing writes to it
def _dense_table(batch: int, q_len: int, kv_len: int) -> Tensor:
    """Rows of the whole length, one a batch row: making them takes longer than a small kernel."""
    rows = [(row, 0, q_len, row, 0, kv_len) for row in range(batch)]
    return torch.tensor(rows, dtype=torch.int64).reshape(batch, 6)


def _instruction_set() -> str:
    return _env.instruction_set() or ""


def _threads() -> int:
    return _env.num_threads() or torch.get_num_threads()
