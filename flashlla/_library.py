"""Registration with ``torch.library``: schemas, fakes, vmap, one implementation that loads backends lazily.

The operators are opaque to the compiler: what it needs to know (shapes, dtypes, strides) is in the fakes.
Values that decide whether a call is valid (signs, lengths) are checked here, where they are real numbers
even under ``torch.compile`` and ``torch.func``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from flashlla import _backends, _validation, _vmap
from flashlla.ops.types import Forward, Gradients, Layout, Options, accumulation_dtype

_OPERANDS = "Tensor q, Tensor k, Tensor v, Tensor? probe, Tensor? ridge, Tensor gate"
_LAYOUT = "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? seqlens_k, Tensor? block_table"
_OPTIONS = "float scale, bool causal, int window_size, str solver, float rtol, int max_iters"

_library = torch.library.Library("flashlla", "DEF")  # the registrations live as long as this object
_library.define(
    f"forward({_OPERANDS}, {_LAYOUT}, {_OPTIONS}, str backend, bool stats)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    f"backward(Tensor do, {_OPERANDS}, Tensor kbar, Tensor g, {_LAYOUT}, {_OPTIONS}, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)

_LAYOUT_END = len(Layout._fields)
_NO_CONTEXT = nullcontext()
_OPTIONS_END = _LAYOUT_END + len(Options._fields)


def _parts(rest: tuple[Any, ...]) -> tuple[Layout, Options, tuple[Any, ...]]:
    """What follows the operands: layout, options, and what an operator has beside."""
    layout, options = Layout._make(rest[:_LAYOUT_END]), Options._make(rest[_LAYOUT_END:_OPTIONS_END])
    return layout, options, rest[_OPTIONS_END:]


def _no_autocast(device_type: str) -> AbstractContextManager[object]:
    """Precision is the backend's business; entering an autocast region where none is would only take time."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return _NO_CONTEXT


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    probe: Tensor | None,
    ridge: Tensor | None,
    gate: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    layout, options, (backend, stats) = _parts(rest)
    _validation.check_values(q, k, ridge, layout)
    with _no_autocast(q.device.type):
        return tuple(_backends.load(backend).forward(q, k, v, probe, ridge, gate, layout, options, stats))


def _backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    probe: Tensor | None,
    ridge: Tensor | None,
    gate: Tensor,
    kbar: Tensor,
    g: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    layout, options, (backend,) = _parts(rest)
    if do.shape[-1] > 1 and do.stride(-1) != 1:
        do = do.contiguous()
    with _no_autocast(q.device.type):
        grads = _backends.load(backend).backward(do, q, k, v, probe, ridge, gate, kbar, g, layout, options)
    return tuple(t if t is not None else q.new_empty(0) for t in grads)


def _forward_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    probe: Tensor | None,
    ridge: Tensor | None,
    gate: Tensor,
    *rest: Any,
) -> Forward:
    accumulate = accumulation_dtype(q.dtype)
    rows, backend = q.shape[:3], rest[-2]
    state: tuple[int, ...] = q.shape
    state_dtype = accumulate
    if backend == "triton":  # keeps state in float64 for float32, and none where nothing is solved for
        state_dtype = torch.float64 if q.dtype == torch.float32 else accumulate
        state = q.shape if ridge is not None else (0,)
    if backend == "cuda":  # only decodes
        state = (0,)
    return Forward(
        o=q.new_empty(*rows, v.shape[-1]),
        lse=q.new_empty(rows, dtype=accumulate),
        kbar=q.new_empty(state, dtype=state_dtype),
        g=q.new_empty(state, dtype=state_dtype),
        residual=q.new_empty(rows, dtype=accumulate),
        iterations=q.new_empty(rows, dtype=torch.int32),
    )


def _backward_fake(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    probe: Tensor | None,
    ridge: Tensor | None,
    gate: Tensor,
    *rest: Any,
) -> Gradients:
    accumulate = accumulation_dtype(q.dtype)
    rows = q.shape[:3]
    return Gradients(
        dq=q.new_empty(q.shape),
        dk=k.new_empty(k.shape),
        dv=v.new_empty(v.shape),
        dprobe=q.new_empty(0) if probe is None else q.new_empty(q.shape),
        dridge=q.new_empty(0) if ridge is None else q.new_empty(rows, dtype=accumulate),
        dgate=q.new_empty(rows, dtype=accumulate),
    )


_library.impl("forward", _forward, "CompositeExplicitAutograd")
_library.impl("backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("flashlla::forward", lambda *a: tuple(_forward_fake(*a)), lib=_library)
torch.library.register_fake("flashlla::backward", lambda *a: tuple(_backward_fake(*a)), lib=_library)
torch.library.register_vmap("flashlla::forward", _vmap.forward, lib=_library)
torch.library.register_vmap("flashlla::backward", _vmap.backward, lib=_library)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    probe: Tensor | None,
    ridge: Tensor | None,
    gate: Tensor,
    layout: Layout,
    options: Options,
    backend: str,
    stats: bool,
) -> Forward:
    """Call ``flashlla::forward``."""
    out = torch.ops.flashlla.forward.default(q, k, v, probe, ridge, gate, *layout, *options, backend, stats)
    return Forward._make(out)


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
    backend: str,
) -> tuple[Tensor, ...]:
    """Call ``flashlla::backward``; gradients that do not exist come back empty."""
    grads: tuple[Tensor, ...] = torch.ops.flashlla.backward.default(
        do, q, k, v, probe, ridge, gate, kbar, g, *layout, *options, backend
    )
    return grads
