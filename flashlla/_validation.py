"""Every check of the public functions, in one message style: argument, value, limit, remedy.

``check_*`` on shapes and options run when a public function is called, before anything is computed.
``check_values`` looks at the numbers in tensors; it runs inside the registered operator, where they are
real even under ``torch.compile``, and only for tensors on the CPU: reading a GPU tensor would stall it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flashlla._backends import FLOATING
from flashlla.ops.types import Layout

MAX_HEAD_DIM = 256
SOLVERS = ("auto", "cg", "direct")
_INTEGERS = (torch.int32, torch.int64)


def _shape(t: Tensor) -> tuple[int, ...]:
    return tuple(t.shape)


def check_operands(
    q: Tensor, k: Tensor, v: Tensor, probe: Tensor | None, packed: bool, paged: bool = False
) -> None:
    """Types, ranks, dtypes, devices, strides and matching sizes of q, k, v and a given probe (``r``)."""
    named = (("q", q), ("k", k), ("v", v)) if probe is None else (("q", q), ("k", k), ("v", v), ("r", probe))
    dimensions = 3 if packed else 4
    for name, t in named:
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
        shape, dtype = t.shape, t.dtype  # asked once: every question to PyTorch takes time
        if len(shape) != dimensions:
            layout = "[total, heads, head_dim]" if packed else "[batch, seq, heads, head_dim]"
            raise ValueError(f"{name} has shape {_shape(t)}; expected {layout}")
        if dtype not in FLOATING:
            raise TypeError(f"{name} has dtype {dtype}; use float32, bfloat16, float16 or float64")
        if dtype != q.dtype:
            raise TypeError(f"{name} has dtype {dtype} and q has {q.dtype}; cast them to one dtype")
        if t is not q and t.device != q.device:
            raise ValueError(f"{name} is on {t.device} and q is on {q.device}; move them to one device")
        entries = shape[-1]
        if entries > 1 and t.stride(-1) != 1:
            raise ValueError(
                f"{name} has stride {t.stride(-1)} in its last dimension; call {name}.contiguous() first"
            )
        if not 1 <= entries <= MAX_HEAD_DIM:
            raise ValueError(f"{name} has {entries} entries a row; the limits are 1 and {MAX_HEAD_DIM}")
    q_shape, k_shape, v_shape = q.shape, k.shape, v.shape
    if not packed and not paged and not q_shape[0] == k_shape[0] == v_shape[0]:
        raise ValueError(
            f"q, k, v have batch sizes {q_shape[0]}, {k_shape[0]}, {v_shape[0]}; they must be equal"
        )
    if q_shape[-1] != k_shape[-1]:
        raise ValueError(f"q has head dimension {q_shape[-1]} and k has {k_shape[-1]}; they must be equal")
    if k_shape[:-1] != v_shape[:-1]:
        raise ValueError(
            f"k has shape {_shape(k)} and v {_shape(v)}; all but the last dimension must be equal"
        )
    if probe is not None and probe.shape != q_shape:
        raise ValueError(f"r has shape {_shape(probe)} and q has {_shape(q)}; they must be equal")
    heads, kv_heads = q_shape[-2], k_shape[-2]
    if kv_heads == 0 or heads == 0:
        raise ValueError(f"q has {heads} heads and k has {kv_heads}; there must be at least one of each")
    if heads % kv_heads:
        raise ValueError(f"q has {heads} heads, which is no multiple of the {kv_heads} heads of k and v")


def check_options(
    scale: float, causal: bool, window_size: int | None, solver: str, rtol: float, max_iters: int
) -> None:
    """The scalar options, defaults resolved."""
    if not abs(scale) < math.inf:  # as math.isfinite, but a compiler can trace it
        raise ValueError(f"scale={scale} must be finite")
    if window_size is not None:
        if not isinstance(window_size, int) or isinstance(window_size, bool):
            raise TypeError(f"window_size must be an int or None, got {type(window_size).__name__}")
        if window_size < 1:
            raise ValueError(f"window_size={window_size} must be at least 1 (the diagonal counts), or None")
        if not causal:
            raise ValueError(f"window_size={window_size} needs causal=True: the window ends at the diagonal")
    if solver not in SOLVERS:
        raise ValueError(f"solver={solver!r} is unknown; choose one of {', '.join(SOLVERS)}")
    if not 0 < rtol < 1:
        raise ValueError(f"rtol={rtol} must lie between 0 and 1; None follows the dtype")
    if not isinstance(max_iters, int) or max_iters < 1:
        raise ValueError(
            f"max_iters={max_iters!r} must be an int of at least 1; None follows the head dimension"
        )


def check_per_row(name: str, value: float | Tensor, q: Tensor, positive: bool) -> None:
    """``ridge`` or ``gate``: a number, or a tensor broadcastable to all dimensions of q but the last."""
    if isinstance(value, Tensor):
        rows = _shape(q)[:-1]
        if not value.is_floating_point():
            raise TypeError(f"{name} has dtype {value.dtype}; it must be floating point")
        if value.device != q.device and value.dim() > 0:
            raise ValueError(
                f"{name} is on {value.device} and q is on {q.device}; move it to the device of q"
            )
        shape = _shape(value)
        fits = len(shape) <= len(rows) and all(
            a in (1, b) for a, b in zip(reversed(shape), reversed(rows), strict=False)
        )
        if not fits:
            raise ValueError(
                f"{name} has shape {shape}, which does not broadcast to {rows}; pass a float or such a tensor"
            )
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a float or a tensor, got {type(value).__name__}")
    elif not math.isfinite(value):
        raise ValueError(f"{name}={value} must be finite")
    elif positive and value <= 0:
        raise ValueError(f"{name}={value} must be greater than 0; a large value gives softmax attention")


def check_cu_seqlens(name: str, cu_seqlens: Tensor, device: torch.device) -> None:
    """Type, rank and device of cumulative sequence lengths."""
    _check_index_tensor(name, cu_seqlens, device)
    if cu_seqlens.shape[0] < 1:
        raise ValueError(f"{name} is empty; it holds a leading 0 and the end of every sequence")


def check_cache(k: Tensor | None, v: Tensor | None, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    """New keys and values for a cache come together, and fit it."""
    if (k is None) != (v is None):
        raise ValueError("k and v must be given together: both are appended to the cache, or neither")
    for name, new, cache in (("k", k, k_cache), ("v", v, v_cache)):
        if new is None:
            continue
        if not isinstance(new, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(new).__name__}")
        if new.dtype != cache.dtype:
            raise TypeError(f"{name} has dtype {new.dtype} and {name}_cache has {cache.dtype}; cast it")
        if new.device != cache.device:
            raise ValueError(f"{name} is on {new.device} and {name}_cache is on {cache.device}; move it")
        expected = (*q.shape[:2], *cache.shape[2:])
        if _shape(new) != expected:
            raise ValueError(
                f"{name} has shape {_shape(new)}; one row a query and the sizes of the cache make {expected}"
            )


def check_block_table(block_table: Tensor | None, q: Tensor) -> None:
    """Type, rank and device of the pages of a cache."""
    if block_table is None:
        return
    _check_index_tensor("block_table", block_table, q.device, dimensions=2)
    if block_table.shape[0] != q.shape[0]:
        raise ValueError(
            f"block_table has {block_table.shape[0]} rows for a batch of {q.shape[0]}; give one a sequence"
        )


def check_pages(block_table: Tensor | None, lengths: Tensor, k_cache: Tensor) -> None:
    """The pages that ``lengths`` rows of each sequence use exist; GPU tensors are trusted."""
    if block_table is None or block_table.is_cuda:
        return
    pages, page_size = k_cache.shape[:2]
    used = torch.arange(block_table.shape[1]) * page_size < lengths[:, None]
    wrong = used & ((block_table < 0) | (block_table >= pages))
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"block_table[{row}, {column}] is {int(block_table[row, column])} and there are {pages} pages; "
            f"used entries lie in [0, {pages})"
        )


def check_cache_lengths(lengths: object, batch: int, device: torch.device) -> Tensor:
    """Type, rank and device of the used lengths of a cache, which are returned."""
    lengths = _check_index_tensor("cache_seqlens", lengths, device)
    if lengths.shape[0] != batch:
        raise ValueError(
            f"cache_seqlens has {lengths.shape[0]} entries for a batch of {batch}; give one a row"
        )
    return lengths


def _check_index_tensor(name: str, t: object, device: torch.device, dimensions: int = 1) -> Tensor:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be an int32 or int64 tensor, got {type(t).__name__}")
    if t.dtype not in _INTEGERS:
        raise TypeError(f"{name} has dtype {t.dtype}; use int32 or int64")
    if t.dim() != dimensions:
        raise ValueError(f"{name} has shape {_shape(t)}; it must have {dimensions} dimension(s)")
    if t.device != device:
        raise ValueError(f"{name} is on {t.device} and q is on {device}; move it to the device of q")
    return t


def check_cache_fits(lengths: int | Tensor, new_rows: int, capacity: int) -> None:
    """The used lengths, after appending ``new_rows``, lie within the cache; GPU tensors are trusted."""
    if isinstance(lengths, Tensor) and (lengths.is_cuda or lengths.numel() == 0):
        return
    rows = [lengths] if isinstance(lengths, int) else lengths.tolist()
    lowest, highest = min(rows), max(rows)
    if lowest < 0:
        raise ValueError(f"cache_seqlens has the entry {lowest}; lengths start at 0")
    if highest + new_rows > capacity:
        appended = f" plus {new_rows} new" if new_rows else ""
        raise ValueError(
            f"cache overflow: {highest} rows{appended} in a cache of {capacity}; allocate a longer cache"
        )


def check_values(q: Tensor, k: Tensor, ridge: Tensor | None, layout: Layout) -> None:
    """What only the numbers in a tensor can tell; GPU tensors are trusted."""
    check_ridge_values(ridge)
    if layout.packed:
        _check_cumulative("cu_seqlens", layout.cu_seqlens_q, q.shape[1], "q")
        _check_cumulative("cu_seqlens_k", layout.cu_seqlens_k, k.shape[1], "k")
    if layout.seqlens_k is not None:
        pages = 1 if layout.block_table is None else layout.block_table.shape[1]
        check_cache_fits(layout.seqlens_k, 0, pages * k.shape[1])
        check_pages(layout.block_table, layout.seqlens_k, k)


def check_ridge_values(ridge: object) -> None:
    """Every entry of a ridge tensor is finite and greater than 0."""
    if not isinstance(ridge, Tensor) or not ridge.is_cpu or not ridge.numel():
        return
    lowest, highest = map(float, ridge.detach().aminmax())
    if not (lowest > 0 and highest < math.inf):
        wrong = highest if lowest > 0 else lowest
        raise ValueError(f"ridge has the entry {wrong}; every entry must be finite and greater than 0")


def _check_cumulative(name: str, cu_seqlens: Tensor | None, total: int, operand: str) -> None:
    if cu_seqlens is None or not cu_seqlens.is_cpu:
        return
    ends = cu_seqlens.tolist()  # faster than a comparison of tensors
    if ends[0] != 0:
        raise ValueError(f"{name}[0] is {ends[0]}; cumulative lengths start at 0")
    if ends != sorted(ends):
        at = next(i for i in range(1, len(ends)) if ends[i] < ends[i - 1])
        raise ValueError(
            f"{name} falls from {ends[at - 1]} to {ends[at]} at entry {at}; cumulative lengths never fall"
        )
    if ends[-1] != total:
        raise ValueError(
            f"{name} ends at {ends[-1]} and {operand} holds {total} rows; the last entry must be that number"
        )
