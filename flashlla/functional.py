"""The public functions: documentation and validation, nothing else.

Three members of one family, each for dense batches, for packed sequences (``*_varlen``) and for a
key/value cache (``*_with_kvcache``). With softmax weights ``p_ij`` over the keys that query ``i`` sees,
``kbar_i = sum_j p_ij k_j``, and a probe ``g_i`` in key space,

    o_i = sum_j p_ij (1 + gate_i (k_j - kbar_i) . g_i) v_j

- ``lla_*``: the probe is solved for, ``g = (Cov_p(k) + ridge I)^-1 (q - kbar)``;
- ``parallax_*``: the probe is given, ``g = -r``;
- ``softmax_*``: the probe is zero.

Conventions shared by all functions:

- layout ``[batch, seq, heads, head_dim]``, any strides with the last one 1 (of rows that are appended to a
  cache any at all, since they are copied); float32, bfloat16, float16 or float64, one dtype for all
  operands; head and value dimensions 1 to 256, not necessarily equal;
- grouped queries: heads of q are any multiple of heads of k and v; query head ``h`` reads key head
  ``h // (heads // kv_heads)``;
- ``scale=None`` means ``head_dim ** -0.5``;
- ``causal=True`` (the default) aligns the mask to the bottom right: query ``i`` of ``q_len`` sees key ``j``
  of ``kv_len`` if ``j <= i + kv_len - q_len``. With q_len 2 and kv_len 4 (1 is visible)::

      1 1 1 0
      1 1 1 1

- ``window_size=w`` keeps the last ``w`` visible keys, the diagonal included;
- a query that sees no key gets output 0, lse -inf and gradient 0;
- under autocast the operands are cast as torch's own attention casts them.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from flashlla import _autograd, _backends, _library, _validation
from flashlla.ops import reference
from flashlla.ops.types import MAX_DECODE_QUERIES, Forward, Layout, Options, accumulation_dtype

# Relative residual of the probe at which the iterations stop: with these the error budgets of
# flashlla.testing.numerics hold (docs/numerics.md has the table of what a looser one costs and saves).
DEFAULT_RTOL = {torch.float64: 1e-12, torch.float32: 5e-7, torch.float16: 1e-5, torch.bfloat16: 1e-4}

_NO_RIDGE: Any = object()  # what the members that solve nothing pass on; None is a caller's mistake
_DENSE = Layout()
# Asked once, for torch 2.11 does not trace the question.
_AUTOCAST = [t for t in ("cpu", "cuda", "xpu", "hpu", "mps", "mtia") if torch.amp.is_autocast_available(t)]

# scale, causal, window_size, solver, rtol, max_iters, deterministic, backend
_Options = tuple[float | None, bool, int | None, str, float | None, int | None, bool | None, str]
_T = TypeVar("_T", Tensor, Tensor | None)


class AttentionWithStats(NamedTuple):
    """Output and diagnostics of one call; only ``out`` carries a gradient.

    Attributes:
        out: as the plain function returns it.
        lse: log-sum-exp of the scaled logits, ``[batch, seq, heads]``, float32 or better; -inf where
            nothing is visible.
        residual: relative residual ``|(Cov + ridge I) g - (q - kbar)| / |q - kbar|`` of the probe, same
            shape; 0 where no system is solved.
        iterations: conjugate-gradient iterations that the row used, int32, same shape; 0 where the
            direct solver was taken alone.
    """

    out: Tensor
    lse: Tensor
    residual: Tensor
    iterations: Tensor


def lla_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    ridge: float | Tensor,
    gate: float | Tensor = 1.0,
    scale: float | None = None,
    causal: bool = True,
    window_size: int | None = None,
    solver: str = "auto",
    rtol: float | None = None,
    max_iters: int | None = None,
    deterministic: bool | None = None,
    backend: str = "auto",
) -> Tensor:
    """Local linear attention (causal by default): a ridge regression of v on k around every query.

    For query ``i`` it fits ``v_j ~ b + W (k_j - q_i)`` over the visible keys with softmax weights
    ``p_ij`` and penalty ``ridge_i |W|^2``, and returns ``b`` (arXiv 2510.01450, section 3).

    Args:
        q: queries, ``[batch, q_len, heads, head_dim]``.
        k: keys, ``[batch, kv_len, kv_heads, head_dim]``.
        v: values, ``[batch, kv_len, kv_heads, value_dim]``.
        ridge: penalty relative to the normalised weights, in squared units of k, > 0; a float or a
            tensor broadcastable to ``[batch, q_len, heads]``. Differentiable. Large: softmax attention.
        gate: share of the linear correction, same shapes. Differentiable. 0 is softmax attention exactly.
        scale: factor of the logits; None means ``head_dim ** -0.5``.
        causal: bottom-right aligned causal mask (see the module docstring).
        window_size: number of visible keys, the diagonal included; None means all.
        solver: ``"cg"`` (conjugate gradients, every row stops at its own tolerance), ``"direct"`` (explicit
            covariances, not by the Triton kernels), or ``"auto"`` (cg, and direct for the rows that converge
            slowly, which the Triton kernels leave to cg).
        rtol: relative residual at which a row stops, in (0, 1); None follows the dtype.
        max_iters: most iterations of ``"cg"``; None means ``2 * head_dim + 16``.
        deterministic: None follows ``torch.are_deterministic_algorithms_enabled()``. All present
            backends are deterministic in either case: they add nothing up atomically.
        backend: ``"auto"``, or a name from ``flashlla doctor``; a named backend never falls back.

    Returns:
        ``[batch, q_len, heads, value_dim]`` in the dtype of q.

    Raises:
        TypeError: wrong types or dtypes.
        ValueError: wrong shapes, devices or values.
        NotImplementedError: the named backend does not take these operands.
    """
    options = (scale, causal, window_size, solver, rtol, max_iters, deterministic, backend)
    return _dense(q, k, v, None, ridge, gate, options, stats=False).o


def lla_attention_with_stats(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    ridge: float | Tensor,
    gate: float | Tensor = 1.0,
    scale: float | None = None,
    causal: bool = True,
    window_size: int | None = None,
    solver: str = "auto",
    rtol: float | None = None,
    max_iters: int | None = None,
    deterministic: bool | None = None,
    backend: str = "auto",
) -> AttentionWithStats:
    """:func:`lla_attention` with lse, true relative residual and iterations of every row.

    The residual costs one more pass over the keys. Raises as :func:`lla_attention` does.
    """
    options = (scale, causal, window_size, solver, rtol, max_iters, deterministic, backend)
    return _with_stats(_dense(q, k, v, None, ridge, gate, options, stats=True))


def lla_attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    cu_seqlens_k: Tensor | None = None,
    ridge: float | Tensor,
    gate: float | Tensor = 1.0,
    scale: float | None = None,
    causal: bool = True,
    window_size: int | None = None,
    solver: str = "auto",
    rtol: float | None = None,
    max_iters: int | None = None,
    deterministic: bool | None = None,
    backend: str = "auto",
) -> Tensor:
    """:func:`lla_attention` (causal by default) over packed sequences.

    Args:
        q: ``[total_q, heads, head_dim]``; k, v: ``[total_k, kv_heads, ...]``.
        cu_seqlens: int32 or int64 ``[sequences + 1]``: sequence ``s`` has the query rows
            ``cu_seqlens[s]`` to ``cu_seqlens[s + 1]``. Starts at 0, never falls, ends at total_q.
        cu_seqlens_k: the same for keys and values; None means ``cu_seqlens``.
        ridge, gate: a float, or a tensor broadcastable to ``[total_q, heads]``.

    Other arguments and errors as for :func:`lla_attention`.

    Returns:
        ``[total_q, heads, value_dim]``.
    """
    options = (scale, causal, window_size, solver, rtol, max_iters, deterministic, backend)
    return _varlen(q, k, v, None, cu_seqlens, cu_seqlens_k, ridge, gate, options, stats=False).o[0]


def lla_attention_varlen_with_stats(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    cu_seqlens_k: Tensor | None = None,
    ridge: float | Tensor,
    gate: float | Tensor = 1.0,
    scale: float | None = None,
    causal: bool = True,
    window_size: int | None = None,
    solver: str = "auto",
    rtol: float | None = None,
    max_iters: int | None = None,
    deterministic: bool | None = None,
    backend: str = "auto",
) -> AttentionWithStats:
    """:func:`lla_attention_varlen` with stats of shape ``[total_q, heads]``. Raises as it does."""
    options = (scale, causal, window_size, solver, rtol, max_iters, deterministic, backend)
    out = _varlen(q, k, v, None, cu_seqlens, cu_seqlens_k, ridge, gate, options, stats=True)
    return AttentionWithStats(*(t[0] for t in _with_stats(out)))


def lla_attention_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    cache_seqlens: int | Tensor,
    block_table: Tensor | None = None,
    ridge: float | Tensor,
    gate: float | Tensor = 1.0,
    scale: float | None = None,
    causal: bool = True,
    window_size: int | None = None,
    solver: str = "auto",
    rtol: float | None = None,
    max_iters: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Local linear attention (causal by default) of new queries over a key/value cache; inference only.

    If ``k`` and ``v`` are given they are written into the caches, in place, behind the used rows, and are
    visible to the queries. ``cache_seqlens`` itself is not changed. Slots behind the used rows are never
    read: they may hold anything.

    Up to 16 queries a sequence take the decoding kernels where the backend has such, more are a prefill; a
    row's result never depends on the rest of the batch.

    Args:
        q: ``[batch, q_len, heads, head_dim]``.
        k_cache, v_cache: ``[batch, capacity, kv_heads, head_dim]`` and, for v, value_dim; with block_table
            ``[pages, page_size, kv_heads, ...]``.
        k: new keys, ``[batch, q_len, kv_heads, head_dim]``; v: new values. Both or neither.
        cache_seqlens: used rows of each sequence before the call: an int, or int32/int64 ``[batch]``. Reading
            a GPU tensor would stall it, so that those are trusted to leave room; an int is always checked.
        block_table: int32 or int64 ``[batch, max_pages]``: key ``j`` of sequence ``b`` lies in row
            ``j % page_size`` of page ``block_table[b, j // page_size]``. Entries behind the used pages may be
            anything. A page that new rows are written into must belong to one sequence alone.

    Other arguments as for :func:`lla_attention`.

    Returns:
        ``[batch, q_len, heads, value_dim]`` in the dtype of q.

    Raises:
        ValueError: the new rows overflow the cache, or a used entry of block_table is no page (nothing is
            written), and as :func:`lla_attention`.
        NotImplementedError: a gradient is wanted; use :func:`lla_attention` for training.
    """
    options = (scale, causal, window_size, solver, rtol, max_iters, None, backend)
    return _kvcache(q, k_cache, v_cache, None, k, v, cache_seqlens, block_table, ridge, gate, options)


def parallax_attention(
    q: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    gate: float | Tensor = 1.0,
    scale: float | None = None,
    causal: bool = True,
    window_size: int | None = None,
    deterministic: bool | None = None,
    backend: str = "auto",
) -> Tensor:
    """Parallax attention (causal by default): the linear correction with a given probe ``-r``.

    ``o_i = vbar_i - Cov_p(v, k) r_i`` (arXiv 2605.29157): one softmax pass, no system to solve. ``r = 0`` is
    softmax attention. r is not multiplied by ``scale``.

    Args:
        q, r: queries and probes, ``[batch, q_len, heads, head_dim]``.
        k, v, gate and the options: as for :func:`lla_attention`, which also lists what is raised.

    Returns:
        ``[batch, q_len, heads, value_dim]`` in the dtype of q.
    """
    options = (scale, causal, window_size, "auto", None, None, deterministic, backend)
    return _dense(q, k, v, r, _NO_RIDGE, gate, options, stats=False).o


def parallax_attention_with_stats(
    q: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    gate: float | Tensor = 1.0,
    scale: float | None = None,
    causal: bool = True,
    window_size: int | None = None,
    deterministic: bool | None = None,
    backend: str = "auto",
) -> AttentionWithStats:
    """:func:`parallax_attention` with lse; residual and iterations are 0. Raises as it does."""
    options = (scale, causal, window_size, "auto", None, None, deterministic, backend)
    return _with_stats(_dense(q, k, v, r, _NO_RIDGE, gate, options, stats=True))


def parallax_attention_varlen(
    q: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    cu_seqlens_k: Tensor | None = None,
    gate: float | Tensor = 1.0,
    scale: float | None = None,
    causal: bool = True,
    window_size: int | None = None,
    deterministic: bool | None = None,
    backend: str = "auto",
) -> Tensor:
    """:func:`parallax_attention` over packed sequences.

    Layout and errors as for :func:`lla_attention_varlen`.
    """
    options = (scale, causal, window_size, "auto", None, None, deterministic, backend)
    return _varlen(q, k, v, r, cu_seqlens, cu_seqlens_k, _NO_RIDGE, gate, options, stats=False).o[0]


def parallax_attention_with_kvcache(
    q: Tensor,
    r: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    cache_seqlens: int | Tensor,
    block_table: Tensor | None = None,
    gate: float | Tensor = 1.0,
    scale: float | None = None,
    causal: bool = True,
    window_size: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """:func:`parallax_attention` over a cache.

    Caches and errors as for :func:`lla_attention_with_kvcache`.
    """
    options = (scale, causal, window_size, "auto", None, None, None, backend)
    return _kvcache(q, k_cache, v_cache, r, k, v, cache_seqlens, block_table, _NO_RIDGE, gate, options)


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = True,
    window_size: int | None = None,
    deterministic: bool | None = None,
    backend: str = "auto",
) -> Tensor:
    """Softmax attention (causal by default) through the same kernels: the member with a zero probe.

    Arguments, result and errors as for :func:`lla_attention`.
    """
    options = (scale, causal, window_size, "auto", None, None, deterministic, backend)
    return _dense(q, k, v, None, _NO_RIDGE, 1.0, options, stats=False).o


def softmax_attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    cu_seqlens_k: Tensor | None = None,
    scale: float | None = None,
    causal: bool = True,
    window_size: int | None = None,
    deterministic: bool | None = None,
    backend: str = "auto",
) -> Tensor:
    """:func:`softmax_attention` over packed sequences.

    Layout and errors as for :func:`lla_attention_varlen`.
    """
    options = (scale, causal, window_size, "auto", None, None, deterministic, backend)
    return _varlen(q, k, v, None, cu_seqlens, cu_seqlens_k, _NO_RIDGE, 1.0, options, stats=False).o[0]


def softmax_attention_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    cache_seqlens: int | Tensor,
    block_table: Tensor | None = None,
    scale: float | None = None,
    causal: bool = True,
    window_size: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """:func:`softmax_attention` over a cache.

    Caches and errors as for :func:`lla_attention_with_kvcache`.
    """
    options = (scale, causal, window_size, "auto", None, None, None, backend)
    return _kvcache(q, k_cache, v_cache, None, k, v, cache_seqlens, block_table, _NO_RIDGE, 1.0, options)


# ---- from public arguments to the operator ----------------------------------------------------------


def _dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor | None,
    ridge: float | Tensor,
    gate: float | Tensor,
    options: _Options,
    stats: bool,
) -> Forward:
    q, k, v, r = _autocast(q, k, v, r)
    _validation.check_operands(q, k, v, r, packed=False)
    return _call(q, k, v, r, ridge, gate, _DENSE, options, stats)


def _varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor | None,
    cu_seqlens: Tensor,
    cu_seqlens_k: Tensor | None,
    ridge: float | Tensor,
    gate: float | Tensor,
    options: _Options,
    stats: bool,
) -> Forward:
    q, k, v, r = _autocast(q, k, v, r)
    _validation.check_operands(q, k, v, r, packed=True)
    _validation.check_cu_seqlens("cu_seqlens", cu_seqlens, q.device)
    if cu_seqlens_k is None:
        if q.shape[0] != k.shape[0]:
            raise ValueError(
                f"q holds {q.shape[0]} rows and k {k.shape[0]}; pass cu_seqlens_k when they differ"
            )
    else:
        _validation.check_cu_seqlens("cu_seqlens_k", cu_seqlens_k, q.device)
        if cu_seqlens_k.shape != cu_seqlens.shape:
            raise ValueError(
                f"cu_seqlens_k has {cu_seqlens_k.shape[0]} entries and cu_seqlens has {cu_seqlens.shape[0]}; "
                "they must be equal"
            )
    _check_rows(ridge, gate, q)
    q, k, v, r = q[None], k[None], v[None], None if r is None else r[None]
    ridge = ridge[None] if isinstance(ridge, Tensor) else ridge
    gate = gate[None] if isinstance(gate, Tensor) else gate
    layout = Layout(cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens_k)
    return _call(q, k, v, r, ridge, gate, layout, options, stats)


def _kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    r: Tensor | None,
    k: Tensor | None,
    v: Tensor | None,
    cache_seqlens: int | Tensor,
    block_table: Tensor | None,
    ridge: float | Tensor,
    gate: float | Tensor,
    options: _Options,
) -> Tensor:
    q, r = _cast_like(k_cache, q, r)
    k, v = _cast_like(k_cache, k, v)
    _validation.check_operands(q, k_cache, v_cache, r, packed=False, paged=block_table is not None)
    _validation.check_block_table(block_table, q)
    _validation.check_cache(k, v, q, k_cache, v_cache)
    _check_rows(ridge, gate, q)
    if torch.is_grad_enabled() and any(
        isinstance(t, Tensor) and t.requires_grad for t in (q, k, v, r, k_cache, v_cache, ridge, gate)
    ):
        raise NotImplementedError("attention over a cache has no gradient; call it under torch.no_grad()")
    batch, page_size = q.shape[0], k_cache.shape[1]
    capacity = page_size if block_table is None else page_size * block_table.shape[1]
    new_rows = 0 if k is None else k.shape[1]
    if isinstance(cache_seqlens, int) and not isinstance(cache_seqlens, bool):
        _validation.check_cache_fits(cache_seqlens, new_rows, capacity)
        cache_seqlens = torch.full((batch,), cache_seqlens, dtype=torch.int64, device=q.device)
    lengths = _validation.check_cache_lengths(cache_seqlens, batch, q.device)
    # every complaint comes before the cache is written
    resolved = _resolve(q, *options, decoding=q.shape[1] <= MAX_DECODE_QUERIES)
    if k is not None and v is not None:
        if not torch.compiler.is_compiling():  # the operator looks at the values too, but then it is too late
            _validation.check_cache_fits(lengths, new_rows, capacity)
            _validation.check_pages(block_table, lengths + new_rows, k_cache)
            _validation.check_ridge_values(ridge)
        rows = torch.arange(batch, device=q.device)[:, None]
        slots = lengths[:, None] + torch.arange(new_rows, device=q.device)
        if block_table is not None:
            rows, slots = block_table.long()[rows, slots // page_size], slots % page_size
        k_cache[rows, slots], v_cache[rows, slots] = k, v
    layout = Layout(seqlens_k=lengths + new_rows if new_rows else lengths, block_table=block_table)
    return _run(q, k_cache, v_cache, r, ridge, gate, layout, *resolved, stats=False).o


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor | None,
    ridge: float | Tensor,
    gate: float | Tensor,
    layout: Layout,
    options: _Options,
    stats: bool,
) -> Forward:
    _check_rows(ridge, gate, q)
    return _run(q, k, v, r, ridge, gate, layout, *_resolve(q, *options), stats=stats)


def _check_rows(ridge: float | Tensor, gate: float | Tensor, q: Tensor) -> None:
    if ridge is not _NO_RIDGE:
        _validation.check_per_row("ridge", ridge, q, positive=True)
    _validation.check_per_row("gate", gate, q, positive=False)


def _resolve(
    q: Tensor,
    scale: float | None,
    causal: bool,
    window_size: int | None,
    solver: str,
    rtol: float | None,
    max_iters: int | None,
    deterministic: bool | None,
    backend: str,
    decoding: bool = False,
) -> tuple[Options, str]:
    """Defaults filled in, everything checked, the backend chosen."""
    head_dim = int(q.shape[-1])  # a compiler specialises on it: kernels do as well
    scale = head_dim**-0.5 if scale is None else float(scale)
    rtol = DEFAULT_RTOL[q.dtype] if rtol is None else rtol
    max_iters = 2 * head_dim + 16 if max_iters is None else max_iters
    _validation.check_options(scale, causal, window_size, solver, rtol, max_iters)
    # No backend adds atomically, so ``deterministic`` selects nothing yet; it is part of the contract.
    if deterministic not in (None, True, False):
        raise TypeError(f"deterministic must be True, False or None, got {deterministic!r}")
    options = Options(scale, bool(causal), window_size or 0, solver, rtol, max_iters)
    return options, _backends.choose_name(backend, q.device.type, q.dtype, decoding, solver)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor | None,
    ridge: float | Tensor,
    gate: float | Tensor,
    layout: Layout,
    options: Options,
    backend: str,
    *,
    stats: bool,
) -> Forward:
    probe = None if r is None else -r
    rows, dtype, device = tuple(q.shape[:3]), accumulation_dtype(q.dtype), q.device
    ridge_rows = None if ridge is _NO_RIDGE else _per_row(ridge, rows, dtype, device)
    gate_rows = _per_row(gate, rows, dtype, device)
    if backend == "reference":
        _validation.check_values(q, k, ridge_rows, layout)
        o, lse = reference.attention(q, k, v, probe, ridge_rows, gate_rows, layout, options)
        nothing = torch.zeros_like(lse, requires_grad=False)
        return Forward(o, lse, q, q, nothing, nothing.to(torch.int32))
    differentiable = layout.seqlens_k is None and _autograd.wanted(q, k, v, probe, ridge_rows, gate_rows)
    attend = _autograd.attend if differentiable else _library.forward
    value_dim, least = v.shape[-1], _backends.BACKENDS[backend].least_dim
    if least > 1:
        q, k, v, probe = _widened(q, least), _widened(k, least), _widened(v, least), _widened(probe, least)
    out = attend(q, k, v, probe, ridge_rows, gate_rows, layout, options, backend, stats)
    return out if value_dim >= least else out._replace(o=out.o[..., :value_dim])


def _widened(t: _T, least_dim: int) -> _T:
    """Zeros behind a last dimension that is smaller; they change no result."""
    return t if t is None or t.shape[-1] >= least_dim else pad(t, (0, least_dim - t.shape[-1]))


def _per_row(
    value: float | Tensor, rows: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype).expand(rows)
    return torch.full(rows, float(value), dtype=dtype, device=device)


def _with_stats(out: Forward) -> AttentionWithStats:
    return AttentionWithStats(out.o, out.lse.detach(), out.residual, out.iterations)


def _in_autocast(q: Tensor) -> bool:
    device_type = q.device.type
    return device_type in _AUTOCAST and torch.is_autocast_enabled(device_type)


def _autocast(
    q: Tensor, k: Tensor, v: Tensor, r: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Cast to the dtype of an enclosing autocast region, as scaled_dot_product_attention does."""
    if isinstance(q, Tensor) and _in_autocast(q) and q.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(q.device.type)
        return _cast(q, dtype), _cast(k, dtype), _cast(v, dtype), _cast(r, dtype)
    return q, k, v, r


def _cast(t: _T, dtype: torch.dtype) -> _T:
    return t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t


def _cast_like(cache: Tensor, first: _T, second: Tensor | None) -> tuple[_T, Tensor | None]:
    """Under autocast the dtype of the cache decides; elsewhere operands are left as they are."""
    if isinstance(first, Tensor) and isinstance(cache, Tensor) and _in_autocast(first):
        return first.to(cache.dtype), second.to(cache.dtype) if isinstance(second, Tensor) else second
    return first, second
