"""Triton kernels for training and prefill.

A forward pass solves for the probe (``solve.py``) and applies it (``apply.py``); a backward
pass prepares rows (``adjoint.py``) and then sums over keys and over rows (``gradients.py``). Parallax and
softmax attention skip what they have no use for. Nothing of the operands is copied, nothing waits for the
host, nothing is added atomically.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flashlla.ops.triton import _runtime, decode
from flashlla.ops.triton._launch import FEW, Problem, parts, strides
from flashlla.ops.triton.adjoint import adjoint_bwd_kernel
from flashlla.ops.triton.apply import apply_fwd_kernel
from flashlla.ops.triton.gradients import EBAR, LSE, PLANES, keys_bwd_kernel, rows_bwd_kernel
from flashlla.ops.triton.solve import probe_fwd_kernel, residual_kernel
from flashlla.ops.types import Forward, Gradients, Layout, Options, accumulation_dtype, contiguous_cache


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
    """See ``flashlla.ops.types``. Only a solved probe leaves something for its backward pass."""
    if decode.takes(q, layout):
        return decode.forward(q, k, v, probe, ridge, gate, layout, options)
    k, v, layout = contiguous_cache(k, v, layout)
    solved, accumulate = ridge is not None, accumulation_dtype(q.dtype)
    rows = q.shape[:3]
    o = torch.empty(*rows, v.shape[-1], dtype=q.dtype, device=q.device)
    lse = torch.empty(rows, dtype=accumulate, device=q.device)
    iterations = torch.zeros(rows, dtype=torch.int32, device=q.device)
    residual = torch.zeros(rows, dtype=accumulate, device=q.device)
    saved = None
    with _runtime.aside(q.device) as side:
        for part in parts(q, k, v, solved, layout, options):
            with side() if part.rows == FEW else nullcontext():
                state = None
                if ridge is not None:
                    state = _solve(part, ridge, gate, iterations, residual if stats else None)
                given = _Probe(part, probe, state)
                part.launch(
                    apply_fwd_kernel,
                    "apply_fwd",
                    *(*part.tensors, *given.operand, *_per_row(q, ridge, gate), part.broken, o, lse),
                    TERMS=part.terms if given.terms else 1,
                    PROBE_TERMS=given.terms,
                    SOLVED=solved,
                )
            if solved and part.saves:
                saved = state
    kbar, g = _saved(q, solved, saved)
    return Forward(o, lse, kbar, g, residual, iterations)


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
    solved, accumulate = ridge is not None, accumulation_dtype(q.dtype)
    per_row: dict[str, Any] = {"size": q.shape[:3], "dtype": accumulate, "device": q.device}
    grads = Gradients(
        dq=torch.empty(q.shape, dtype=q.dtype, device=q.device),
        dk=torch.empty(k.shape, dtype=k.dtype, device=q.device),
        dv=torch.empty(v.shape, dtype=v.dtype, device=q.device),
        dprobe=None if probe is None else torch.empty(q.shape, dtype=q.dtype, device=q.device),
        dridge=torch.empty(**per_row) if solved else None,
        dgate=torch.empty(**per_row),
    )
    few = []
    with _runtime.aside(q.device) as side:
        for part in parts(q, k, v, solved, layout, options):
            with side() if part.rows == FEW else nullcontext():
                if ridge is None:
                    state = _Solved(None, part.state(q.shape[-1]), g)
                else:
                    state = _Solved(None, kbar, g) if part.saves else _solve(part, ridge, gate)
                rows = _backward_rows(part, do, probe, ridge, gate, state, grads)
            if part.rows == FEW:
                few.append(rows)
            else:
                _backward_keys(rows, grads)
    for rows in few:  # these add to the gradients of keys that the others have left
        _backward_keys(rows, grads)
    return grads


class _Solved(NamedTuple):
    """What solving leaves of the rows of one part: lse, kbar, and the probe as ``solve.store_split`` stores
    it.
    """

    lse: Tensor | None
    kbar: Tensor
    g: Tensor


def _solve(
    part: Problem,
    ridge: Tensor,
    gate: Tensor,
    iterations: Tensor | None = None,
    residual: Tensor | None = None,
) -> _Solved:
    """Probes of the rows of one part; iterations and residual are filled in if they are wanted."""
    dim = part.q.shape[-1]
    state = _Solved(part.state(), part.state(dim), part.state(dim))
    if iterations is None:
        iterations = torch.empty(part.q.shape[:3], dtype=torch.int32, device=part.q.device)
    part.launch(
        probe_fwd_kernel,
        "probe_fwd",
        *(*part.tensors, ridge, *strides(ridge), gate, *strides(gate), part.broken),
        *(state.lse, state.kbar, part.split(state.g), iterations),
        TERMS=part.terms,
        PROBE_TERMS=part.probe_terms,
    )
    if residual is not None:
        part.launch(
            residual_kernel,
            "probe_fwd",
            *(*part.tensors, ridge, *strides(ridge), part.broken),
            *(state.lse, state.kbar, part.split(state.g), residual),
            TERMS=part.terms,
            PROBE_TERMS=part.probe_terms,
        )
    return state


class _Rows(NamedTuple):
    """What the rows of one part leave for the gradients of the keys that they see."""

    part: Problem
    tensors: tuple[Tensor | int, ...]  # q, k, v and do with their strides
    probe: _Probe
    f: Tensor
    f_terms: int
    planes: Tensor


def _backward_rows(
    part: Problem,
    do: Tensor,
    probe: Tensor | None,
    ridge: Tensor | None,
    gate: Tensor,
    state: _Solved,
    grads: Gradients,
) -> _Rows:
    """Gradients of the rows of one part."""
    solved = ridge is not None
    planes = part.state(planes=PLANES)
    f = part.split(part.state(part.q.shape[-1] if solved else 0))
    given = _Probe(part, probe, state if solved else None)
    f_terms = part.probe_terms if solved else 0
    tensors = (*part.tensors, do, *strides(do))
    per_row = _per_row(part.q, ridge, gate)
    part.launch(
        adjoint_bwd_kernel,
        "adjoint_bwd",
        *(*tensors, *per_row, part.broken, state.kbar, planes[LSE.value], planes[EBAR.value], f),
        part.q if probe is None else grads.dprobe,
        TERMS=part.terms if given.terms else 1,
        F_TERMS=f_terms,
        SOLVED=solved,
        GIVEN=probe is not None,
    )
    part.launch(
        rows_bwd_kernel,
        "rows_bwd",
        *(*tensors, *given.operand, *per_row, part.broken, state.kbar, f, planes, planes.stride(0)),
        *(grads.dq, grads.dridge if solved else part.q, grads.dgate),
        PROBE_TERMS=given.terms,
        F_TERMS=f_terms,
    )
    return _Rows(part, tensors, given, f, f_terms, planes)


def _backward_keys(rows: _Rows, grads: Gradients) -> None:
    """What the rows of one part give to the gradients of keys and values, on top of it if they see FEW."""
    rows.part.launch(
        keys_bwd_kernel,
        "keys_bwd",
        *(*rows.tensors, *rows.probe.operand, rows.f, rows.planes, rows.planes.stride(0), grads.dk, grads.dv),
        over_keys=True,
        PROBE_TERMS=rows.probe.terms,
        F_TERMS=rows.f_terms,
    )


def _per_row(q: Tensor, ridge: Tensor | None, gate: Tensor) -> tuple[Tensor | int, ...]:
    """ridge and gate with their strides; q stands in for a ridge that is never read."""
    return (q if ridge is None else ridge, *strides(ridge), gate, *strides(gate))


class _Probe:
    """The probe as kernels take it: a pointer, its strides, and how many terms make it up (0: there is
    none).
    """

    operand: tuple[Tensor, int, int, int]
    terms: int

    def __init__(self, part: Problem, probe: Tensor | None, state: _Solved | None):
        if state is not None:
            self.operand, self.terms = (part.split(state.g), 0, 0, 0), part.probe_terms
        elif probe is not None:
            self.operand, self.terms = (probe, *strides(probe)), 1
        else:
            self.operand, self.terms = (part.q, 0, 0, 0), 0


def _saved(q: Tensor, solved: bool, state: _Solved | None) -> tuple[Tensor, Tensor]:
    """kbar and g for the backward pass, in the shapes that ``flashlla._library`` promises."""
    if state is not None:
        return state.kbar, state.g
    dtype = torch.float64 if q.dtype in (torch.float32, torch.float64) else torch.float32
    kbar, g = (torch.zeros(q.shape if solved else 0, dtype=dtype, device=q.device) for _ in range(2))
    return kbar, g
