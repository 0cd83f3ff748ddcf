"""Triton kernels for training and prefill.

A forward pass solves for the probe (``solve.py``) and applies it (``apply.py``); a backward pass prepares rows
(``adjoint.py``) and then sums over keys and over rows (``gradients.py``). Parallax and softmax attention skip what they
have no use for. Nothing is copied, nothing waits for the host, nothing is added atomically.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashlla.ops.triton import direct
from flashlla.ops.triton._launch import Problem, strides
from flashlla.ops.triton.adjoint import adjoint_bwd_kernel
from flashlla.ops.triton.apply import apply_fwd_kernel
from flashlla.ops.triton.gradients import EBAR, LSE, PLANES, keys_bwd_kernel, rows_bwd_kernel
from flashlla.ops.triton.solve import probe_fwd_kernel, residual_kernel
from flashlla.ops.types import Forward, Gradients, Layout, Options, accumulation_dtype


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
    problem = Problem(q, k, v, layout, options)
    lse = problem.empty_rows()
    if ridge is None:
        kbar, g = (torch.empty(0, dtype=problem.state_dtype, device=q.device) for _ in range(2))
        iterations, residual = (torch.zeros(q.shape[:3], dtype=t, device=q.device) for t in (torch.int32, lse.dtype))
    else:
        kbar, g = problem.empty_rows(q.shape[-1]), problem.empty_rows(q.shape[-1])
        iterations, residual = problem.empty_rows(dtype=torch.int32), torch.zeros_like(lse)
        problem.launch(
            probe_fwd_kernel,
            "probe_fwd",
            *(q, *strides(q), k, *strides(k), v, *strides(v), ridge, *strides(ridge), gate, *strides(gate)),
            *(problem.broken, lse, kbar, _split_rows(g, q), iterations),
            TERMS=problem.terms,
            PROBE_TERMS=problem.probe_terms,
            DIRECT=problem.direct,
        )
        if problem.direct:
            direct.solve(problem, _split_rows(g, q), lse, kbar, ridge)
        if stats:
            problem.launch(
                residual_kernel,
                "probe_fwd",
                *(q, *strides(q), k, *strides(k), v, *strides(v), ridge, *strides(ridge)),
                *(problem.broken, lse, kbar, _split_rows(g, q), residual),
                TERMS=problem.terms,
                PROBE_TERMS=problem.probe_terms,
            )
    o = problem.empty_rows(v.shape[-1], dtype=q.dtype)
    given = _Probe(problem, probe, g if ridge is not None else None)
    problem.launch(
        apply_fwd_kernel,
        "apply_fwd",
        *(q, *strides(q), k, *strides(k), v, *strides(v), *given.operand),
        *(q if ridge is None else ridge, *strides(ridge), gate, *strides(gate)),
        *(problem.broken, o, lse),
        TERMS=problem.terms if given.terms else 1,
        PROBE_TERMS=given.terms,
        SOLVED=ridge is not None,
    )
    accumulate = accumulation_dtype(q.dtype)
    return Forward(o, lse.to(accumulate), kbar, g, residual.to(accumulate), iterations)


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
    problem = Problem(q, k, v, layout, options)
    solved = ridge is not None
    grads = Gradients(
        dq=torch.empty(q.shape, dtype=q.dtype, device=q.device),
        dk=torch.empty(k.shape, dtype=k.dtype, device=q.device),
        dv=torch.empty(v.shape, dtype=v.dtype, device=q.device),
        dprobe=None if probe is None else torch.empty(q.shape, dtype=q.dtype, device=q.device),
        dridge=problem.empty_rows() if solved else None,
        dgate=problem.empty_rows(),
    )
    planes = torch.empty(PLANES, *q.shape[:3], dtype=problem.state_dtype, device=q.device)
    if not solved:
        kbar = problem.empty_rows(q.shape[-1])
    f = problem.empty_rows(q.shape[-1]) if solved else problem.empty_rows(0)
    given = _Probe(problem, probe, g if solved else None)
    f_terms = problem.probe_terms if solved else 0
    ridge = q if ridge is None else ridge
    tensors = (q, *strides(q), k, *strides(k), v, *strides(v), do, *strides(do))
    per_row = (ridge, *strides(ridge), gate, *strides(gate))
    problem.launch(
        adjoint_bwd_kernel,
        "adjoint_bwd",
        *(*tensors, *per_row, problem.broken, kbar, planes[LSE.value], planes[EBAR.value]),
        *(_split_rows(f, q), q if probe is None else grads.dprobe),
        TERMS=problem.terms,
        F_TERMS=f_terms,
        SOLVED=solved,
        GIVEN=probe is not None,
        DIRECT=problem.direct,
    )
    if solved and problem.direct:
        direct.solve(problem, _split_rows(f, q), planes[LSE.value], kbar, ridge)
    problem.launch(
        rows_bwd_kernel,
        "rows_bwd",
        *(*tensors, *given.operand, *per_row, problem.broken, kbar, _split_rows(f, q)),
        *(planes, planes.stride(0), grads.dq, grads.dridge if solved else q, grads.dgate),
        PROBE_TERMS=given.terms,
        F_TERMS=f_terms,
    )
    problem.launch(
        keys_bwd_kernel,
        "keys_bwd",
        *(*tensors, *given.operand, _split_rows(f, q), planes, planes.stride(0), grads.dk, grads.dv),
        over_keys=True,
        PROBE_TERMS=given.terms,
        F_TERMS=f_terms,
    )
    accumulate = accumulation_dtype(q.dtype)
    return grads._replace(
        dridge=None if grads.dridge is None else grads.dridge.to(accumulate), dgate=grads.dgate.to(accumulate)
    )


class _Probe:
    """The probe as kernels take it: a pointer, its strides, and how many terms make it up (0: there is none)."""

    def __init__(self, problem: Problem, probe: Tensor | None, g: Tensor | None):
        if g is not None:
            g = _split_rows(g, problem.q)
            self.operand, self.terms = (g, *strides(g)), problem.probe_terms
        elif probe is not None:
            self.operand, self.terms = (probe, *strides(probe)), 1
        else:
            self.operand, self.terms = (problem.q, 0, 0, 0), 0


def _split_rows(t: Tensor, q: Tensor) -> Tensor:
    """State ``[..., DIM]`` in float32 as ``[..., 2 DIM]`` in the dtype of q: the same bytes, hi and lo."""
    return t.view(q.dtype) if t.dtype == torch.float32 else t
