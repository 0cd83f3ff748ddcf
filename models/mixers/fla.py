"""The mixers by the kernels of flash-linear-attention (the package ``fla``), one function each.

Their operands are ``[batch, seq, heads, size]``, every query head with keys, values and a state of its own:
what heads share is repeated for them. Queries, keys and values are in half precision, decays (logarithms, as
here), strengths and states in float32. Queries come scaled and normalised: ``scale=1``, and no
``use_qk_l2norm_in_kernel``. Names and meanings of these arguments are those of the releases 0.4.0 to 0.6.0.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import by_head, from_heads

CG_ITERATIONS = 30  # of MesaNet, whose kernels stop at no residual: the number of the paper


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, *, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """:func:`linear_recurrence.recurrent` where nothing decays, for values of any size."""
    size, missing = v.shape[-1], (0, v.shape[-1] % 2)
    operands, states = _half(dtype, q=q, k=k, v=F.pad(v, missing)), {"initial_state": F.pad(state, missing)}
    out, state = _call("simple_gla", operands, states, scale=1.0)
    return out[..., :size], state[..., :size]


def gla(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, *, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """:func:`linear_recurrence.recurrent` with a decay for each entry of the keys."""
    operands = {**_half(dtype, q=q, k=k, v=v), "g": log_decay}
    return _call("gla", operands, {"initial_state": state}, scale=1.0)


def mamba2(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, *, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """:func:`linear_recurrence.recurrent` with one decay for all entries of the keys."""
    operands = {**_half(dtype, q=q, k=k, v=v), "g": log_decay}
    return _call("simple_gla", operands, {"initial_state": state}, scale=1.0)


def deltanet(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor, *, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """:func:`delta_rule.recurrent` where nothing decays."""
    operands = {**_half(dtype, q=q, k=k, v=v), "beta": beta}
    return _call("delta_rule", operands, {"initial_state": state}, scale=1.0)


def gated_deltanet(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor, *, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """:func:`delta_rule.recurrent`."""
    operands = {**_half(dtype, q=q, k=k, v=v), "beta": beta, "g": log_decay}
    return _call("gated_delta_rule", operands, {"initial_state": state}, scale=1.0)


def mesanet(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    ridge: Tensor,
    gram: Tensor,
    memory: Tensor,
    *,
    dtype: torch.dtype,
    max_iters: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`mesanet.recurrent` with a fixed number of iterations, queries and keys in float16."""
    operands = {**_half(torch.float16, q=q, k=k), **_half(dtype, v=v), "beta": beta, "g": log_decay}
    lamb = ridge.expand(-1, q.shape[2], -1, -1).flatten(0, 2)
    states = {"h_kk_init": gram, "h_kv_init": memory}
    return _call("mesa_net", operands, states, lamb=lamb, max_CG_iteration=min(max_iters, CG_ITERATIONS))


def _half(dtype: torch.dtype, **vectors: Tensor) -> dict[str, Tensor]:
    return {name: t.to(dtype) for name, t in vectors.items()}


def _call(op: str, operands: dict[str, Tensor], states: dict[str, Tensor], **options) -> tuple[Tensor, ...]:
    """``fla.ops.<op>.chunk_<op>`` on operands and states by head: its output and states, the same way."""
    kv_heads = operands["q"].shape[1]
    group = max(t.shape[2] for t in (*operands.values(), *states.values()))
    arguments = {name: from_heads(_repeat(t, group)).squeeze(-1) for name, t in operands.items()}
    arguments |= {name: _repeat(t, group).flatten(1, 2) for name, t in states.items()}
    function = getattr(importlib.import_module(f"fla.ops.{op}"), f"chunk_{op}")
    out, *following = function(**arguments, output_final_state=True, **options)
    pairs = list(zip(states.values(), following, strict=True))
    out = by_head(_FirstDerivative.apply(out).to(pairs[0][0].dtype).flatten(2), kv_heads, group)
    return out, *(new.unflatten(1, (kv_heads, group))[:, :, : old.shape[2]] for old, new in pairs)


def _repeat(x: Tensor, group: int) -> Tensor:
    """Copies of what a group shares, for each of its heads."""
    return x.expand(-1, -1, group, -1, -1)


class _FirstDerivative(torch.autograd.Function):
    """The identity. A second derivative, which the kernels would silently get wrong, is an error."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise NotImplementedError("flash-linear-attention has no second derivative; use form='chunked'")
        return grad
