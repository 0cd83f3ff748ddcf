"""CUDA C++ kernels (csrc/cuda) for decoding over a cache: allocation and the hand-over of pointers.

bfloat16 and float16 operands, head dimensions up to 256, up to 16 query tokens a sequence, contiguous and
paged caches with any strides whose last one is 1. A row's result depends on nothing but that row's operands.
Nothing here waits for the device or reads from it, so calls can be captured in a CUDA graph.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from flashlla.ops.cuda import _kernels, _runtime
from flashlla.ops.cuda._kernels import Kernel
from flashlla.ops.types import MAX_DECODE_QUERIES, Forward, Gradients, Layout, Options

_PROBLEM = struct.Struct("<34qf13i")  # csrc/include/flashlla/problem.h
SCRATCH_BYTES = 256 * 2**20  # a call whose states take more is cut into several launches

missing = _runtime.missing


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
    """See ``flashlla.ops.types``. Only over a cache: ``layout.seqlens_k`` is given, q_len is 1 to 16.

    kbar and g are empty; residual and iterations are 0, as the solver is direct.

    Raises:
        NotImplementedError: there is no cache, there are too many query tokens, a head dimension is larger
            than 256, or the device is too old or has too little shared memory.
    """
    if layout.seqlens_k is None or q.shape[1] > MAX_DECODE_QUERIES:
        raise NotImplementedError(
            f"backend 'cuda' decodes up to {MAX_DECODE_QUERIES} query tokens a sequence, over a cache"
        )
    kind = "solved" if ridge is not None else "zero" if probe is None else "given"
    kernel = _kernels.choose(
        kind,
        q.dtype == torch.bfloat16,
        max(q.shape[-1], v.shape[-1]),
        _aligned(k) and _aligned(v),
        _runtime.shared_limit(q.device),
    )
    rows = q.shape[:3]
    out = Forward(
        o=q.new_empty(*rows, v.shape[-1]),
        lse=q.new_empty(rows, dtype=torch.float32),
        kbar=q.new_empty(0, dtype=torch.float32),
        g=q.new_empty(0, dtype=torch.float32),
        residual=q.new_zeros(rows, dtype=torch.float32),
        iterations=q.new_zeros(rows, dtype=torch.int32),
    )
    if out.lse.numel() > 0:
        _decode(kernel, q, k, v, probe, ridge, gate, layout.seqlens_k, layout.block_table, options, out)
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
    """Raises NotImplementedError: decoding has no gradient."""
    raise NotImplementedError("backend 'cuda' decodes and has no gradient; call it under torch.no_grad()")


def _decode(
    kernel: Kernel,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    probe: Tensor | None,
    ridge: Tensor | None,
    gate: Tensor,
    lengths: Tensor,
    pages: Tensor | None,
    options: Options,
    out: Forward,
) -> None:
    """Launch over units of a batch row and a key head, as many at a time as have room for their states."""
    (batch, q_len, heads, dim), kv_heads = q.shape, k.shape[2]
    if pages is not None:
        pages = pages.to(torch.int32).contiguous()
    capacity = k.shape[1] * (1 if pages is None else pages.shape[1])
    window = options.window_size if options.causal else 0
    splits = _kernels.most_splits(min(capacity, window or capacity))
    unit_rows = heads // kv_heads * q_len
    # Blocks of a unit that merge their states, times what each of them leaves.
    places = unit_rows if kernel.probe == "solved" else -(-unit_rows // _kernels.ROWS)
    unit_floats = places * splits * kernel.slabs * kernel.state_floats
    units = batch * kv_heads
    step = min(units, max(1, SCRATCH_BYTES // (4 * unit_floats)))
    scratch = q.new_empty(step * unit_floats, dtype=torch.float32)
    counters = q.new_zeros(step * places, dtype=torch.int32)
    lengths = lengths.contiguous()
    arrays = [_array(t) for t in (q, k, v, probe, ridge, gate, out.o)]
    tensors = (out.lse, lengths, pages, scratch, counters)
    for first in range(0, units, step):
        problem = _PROBLEM.pack(
            *(number for array in arrays for number in array),
            *(0 if t is None else t.data_ptr() for t in tensors),
            0 if pages is None else pages.stride(0),
            options.scale,
            q_len,
            heads,
            kv_heads,
            dim,
            v.shape[-1],
            k.shape[1],
            capacity,
            window,
            options.causal,
            lengths.dtype == torch.int64,
            splits,
            first,
            k.shape[1].bit_length() - 1 if k.shape[1].bit_count() == 1 else -1,
        )
        blocks = min(step, units - first) * places * splits * kernel.slabs
        _runtime.launch(kernel, problem, blocks, q.device)


def _array(t: Tensor | None) -> tuple[int, int, int, int]:
    """Pointer and the three leading strides; zeros for an operand that is not there."""
    if t is None:
        return 0, 0, 0, 0
    batch, row, head = t.stride()[:3]
    return t.data_ptr(), batch, row, head


def _aligned(t: Tensor) -> bool:
    """Whether every vector begins at a multiple of 16 bytes."""
    strides = [stride for stride, size in zip(t.stride()[:3], t.shape[:3], strict=True) if size > 1]
    return t.data_ptr() % 16 == 0 and all(stride % 8 == 0 for stride in strides)
