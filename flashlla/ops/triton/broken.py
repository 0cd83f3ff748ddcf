"""Keys and values that are not finite: a count of them before every key tells a row whether it sees any."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashlla.ops.triton import _configs, _runtime
from flashlla.ops.triton._common import ACC, UNSPECIALIZED, all_finite, load_rows

BLOCK = 64


@triton.jit(do_not_specialize=UNSPECIALIZED)
def broken_kernel(
    p_k,
    s_kb,
    s_kt,
    s_kh,
    p_v,
    s_vb,
    s_vt,
    s_vh,
    p_broken,
    length,
    blocks,
    heads,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """1 behind every key (or its value) that has an entry which is not finite: int32 ``[batch, heads,
    length + 1]``.
    """
    block, flat = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    head, batch = (flat % heads).to(tl.int64), (flat // heads).to(tl.int64)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    exists = rows < length
    k_first, v_first = p_k + batch * s_kb + head * s_kh, p_v + batch * s_vb + head * s_vh
    k = load_rows(k_first, s_kt, rows, exists, tl.arange(0, BLOCK_D), ACC, DIM, True)
    v = load_rows(v_first, s_vt, rows, exists, tl.arange(0, BLOCK_V), ACC, VALUE_DIM, True)
    broken = tl.where(all_finite(k) & all_finite(v), 0, 1)
    tl.store(p_broken + flat.to(tl.int64) * (length + 1) + rows + 1, broken, mask=exists)


def count_broken(k: Tensor, v: Tensor) -> Tensor:
    """How many keys before each one, and in all, are broken: int32 ``[batch, kv_heads, kv_len + 1]``."""
    batch, length, heads, dim = k.shape
    broken = torch.zeros(batch, heads, length + 1, dtype=torch.int32, device=k.device)
    blocks = -(-length // BLOCK)
    if blocks * heads * batch == 0:
        return broken
    _runtime.run(
        broken_kernel,
        blocks * heads * batch,
        k,
        *k.stride()[:3],
        v,
        *v.stride()[:3],
        broken,
        length,
        blocks,
        heads,
        DIM=dim,
        VALUE_DIM=v.shape[-1],
        BLOCK_D=_configs.padded(dim),
        BLOCK_V=_configs.padded(v.shape[-1]),
        BLOCK=BLOCK,
        ACC=ACC[k.dtype],
        num_warps=4,
    )
    return broken.cumsum(-1, dtype=torch.int32)
