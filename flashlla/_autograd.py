"""Differentiation of the registered operators: one Function for the forward, one for its backward.

The backward operator runs inside a Function of its own whose backward raises: without it a second
derivative (a gradient penalty, say) would silently be zero.
"""

from __future__ import annotations

import inspect
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from flashlla import _library
from flashlla.ops.types import Forward, Layout, Options

_NO_DOUBLE_BACKWARD = (
    "the kernels of flashlla have no second derivative; use backend='reference', which autograd "
    "differentiates any number of times"
)


class _Attention(torch.autograd.Function):
    """(q, k, v, probe, ridge, gate, layout, options, backend, stats) -> the fields of Forward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        probe: Tensor | None,
        ridge: Tensor | None,
        gate: Tensor,
        cu_q: Tensor | None,
        cu_k: Tensor | None,
        seqlens_k: Tensor | None,
        table: Tensor | None,
        options: Options,
        backend: str,
        stats: bool,
    ) -> tuple[Tensor, ...]:
        layout = Layout(cu_q, cu_k, seqlens_k, table)
        return tuple(_library.forward(q, k, v, probe, ridge, gate, layout, options, backend, stats))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *operands, options, backend, _ = inputs
        out = Forward(*output)
        ctx.save_for_backward(*operands, out.kbar, out.g)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.options, ctx.backend = options, backend

    @staticmethod
    def backward(ctx: Any, do: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if do is None:
            return (None,) * 13
        *operands, cu_q, cu_k, seqlens_k, table, kbar, g = ctx.saved_tensors
        grads = _AttentionBackward.apply(
            do, *operands, kbar, g, cu_q, cu_k, seqlens_k, table, ctx.options, ctx.backend
        )
        wanted = zip(grads, ctx.needs_input_grad[:6], strict=True)
        return *(grad if needed else None for grad, needed in wanted), *(None,) * 7


class _AttentionBackward(torch.autograd.Function):
    """(do, operands of the forward, kbar, g, layout, options, backend) -> six gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        do: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        probe: Tensor | None,
        ridge: Tensor | None,
        gate: Tensor,
        kbar: Tensor,
        g: Tensor,
        cu_q: Tensor | None,
        cu_k: Tensor | None,
        seqlens_k: Tensor | None,
        table: Tensor | None,
        options: Options,
        backend: str,
    ) -> tuple[Tensor, ...]:
        layout = Layout(cu_q, cu_k, seqlens_k, table)
        return _library.backward(do, q, k, v, probe, ridge, gate, kbar, g, layout, options, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> NoReturn:
        raise NotImplementedError(_NO_DOUBLE_BACKWARD)


# PyTorch asks for these signatures in every call, and making one takes longer than a kernel's launch.
for _function in (_Attention, _AttentionBackward):
    _function.forward.__signature__ = inspect.signature(_function.forward)  # type: ignore[union-attr]


def wanted(*operands: Tensor | None) -> bool:
    """Whether a derivative may be asked for: if not, a Function would be most of the cost of a small call."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True  # whether it is shows only further out
    if forward_ad._current_level >= 0:
        return True  # and the Function refuses: there is no forward mode
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)


def attend(
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
    """The differentiable operator: only ``o`` carries a gradient."""
    return Forward(*_Attention.apply(q, k, v, probe, ridge, gate, *layout, options, backend, stats))
