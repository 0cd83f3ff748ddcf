"""The specification: local linear attention as its definition says, in plain PyTorch.

Written for reading and for float64; quadratic in memory. ``attention`` is differentiable by autograd
any number of times. ``attention_backward`` is the hand-written gradient (mean-centred closed form) that
the kernels implement; the tests hold it against autograd of ``attention``.

Sources: *Local Linear Attention* (arXiv 2510.01450) and *Parallax* (arXiv 2605.29157).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from flashlla.ops.types import (
    Gradients,
    Layout,
    Options,
    accumulation_dtype,
    contiguous_cache,
    sequences,
    visible_range,
)


class Weights(NamedTuple):
    """Softmax weights of every query over every key, and what the mask says."""

    p: Tensor  # [batch, heads, q_len, kv_len], rows sum to 1, or to 0 where nothing is visible
    lse: Tensor  # [batch, heads, q_len], -inf where nothing is visible
    visible: Tensor  # [q_len, kv_len], bool


def softmax_weights(q: Tensor, k: Tensor, options: Options) -> Weights:
    """Masked softmax of ``scale * q k^T``; q and k are ``[batch, heads, len, head_dim]``."""
    q_len, kv_len = q.shape[2], k.shape[2]
    lo, hi = visible_range(q_len, kv_len, options.causal, options.window_size, q.device)
    key = torch.arange(kv_len, device=q.device)
    visible = (key >= lo[:, None]) & (key < hi[:, None])
    # An empty row pretends to see everything, so that its gradient is 0 and not 0 / 0, and is then erased.
    empty = (lo == hi)[:, None]
    logits = (options.scale * (q @ k.mT)).masked_fill(~(visible | empty), -torch.inf)
    lse = logits.logsumexp(-1)
    p = (logits - lse[..., None]).exp().masked_fill(~visible, 0.0)
    lse = lse.masked_fill(empty[:, 0], -torch.inf)
    return Weights(p, lse, visible)


def local_linear_fit(q: Tensor, k: Tensor, v: Tensor, p: Tensor, ridge: Tensor) -> Tensor:
    """The intercept of the weighted ridge regression of the values on the keys, centred at each query.

    Minimises ``sum_j p_j |v_j - b - W (k_j - q)|^2 + ridge |W|^2`` over ``b`` and ``W`` through its normal
    equations and returns ``b``: ``[batch, heads, q_len, value_dim]`` (arXiv 2510.01450, section 3).
    """
    z = k[:, :, None] - q[:, :, :, None]  # [batch, heads, q_len, kv_len, head_dim]
    design = torch.cat([torch.ones_like(z[..., :1]), z], -1)
    weighted = design * p[..., None]
    # b is not penalised; where nothing is visible, a 1 in its place makes the system regular and b zero.
    empty = (p.sum(-1, keepdim=True) == 0).to(p.dtype)
    penalty = torch.cat([empty, ridge[..., None].expand_as(q)], -1)
    normal = weighted.mT @ design + torch.diag_embed(penalty)
    fit: Tensor = torch.linalg.solve(normal, weighted.mT @ v[:, :, None])
    return fit[..., 0, :]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    probe: Tensor | None,
    ridge: Tensor | None,
    gate: Tensor | None,
    layout: Layout,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Output ``[batch, q_len, heads, value_dim]`` and lse ``[batch, q_len, heads]``; see ``ops.types``."""
    k, v, layout = contiguous_cache(k, v, layout)
    if layout == Layout():
        return _attention_dense(q, k, v, probe, ridge, gate, options)
    pieces = []
    for b, rows, keys in sequences(layout, q, k):
        own_probe, own_ridge, own_gate = (None if t is None else t[b, rows] for t in (probe, ridge, gate))
        pieces.append(
            _attention_dense(q[b, rows], k[b, keys], v[b, keys], own_probe, own_ridge, own_gate, options)
        )
    axis = 0 if layout.seqlens_k is not None else 1
    if not pieces:
        return _attention_dense(q, k[:, :0], v[:, :0], probe, ridge, gate, options)
    o, lse = (torch.cat(parts, axis) for parts in zip(*pieces, strict=True))
    return o, lse


def _attention_dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    probe: Tensor | None,
    ridge: Tensor | None,
    gate: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor]:
    dtype = q.dtype
    q, k, v, probe = _heads_first(q, k, v, probe)
    p, lse, _ = softmax_weights(q, k, options)
    vbar = p @ v
    share = 1.0 if gate is None else rearrange(gate, "b t h -> b h t 1")
    if ridge is not None:
        fit = local_linear_fit(q, k, v, p, rearrange(ridge, "b t h -> b h t").to(q.dtype))
        o = vbar + share * (fit - vbar)
    elif probe is not None:
        c = probe @ k.mT
        c = c - (p * c).sum(-1, keepdim=True)
        o = (p * (1 + share * c)) @ v
    else:
        o = vbar
    return rearrange(o, "b h t d -> b t h d").to(dtype), rearrange(lse, "b h t -> b t h")


def _heads_first(
    q: Tensor, k: Tensor, v: Tensor, probe: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """``[batch, heads, len, dim]`` in the accumulation dtype, grouped key/value heads repeated."""
    dtype, group = accumulation_dtype(q.dtype), q.shape[2] // k.shape[2]
    q = rearrange(q, "b t h d -> b h t d").to(dtype)
    probe = None if probe is None else rearrange(probe, "b t h d -> b h t d").to(dtype)
    k, v = (repeat(t, "b s h d -> b (h g) s d", g=group).to(dtype) for t in (k, v))
    return q, k, v, probe


def attention_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    probe: Tensor | None,
    ridge: Tensor | None,
    gate: Tensor,
    options: Options,
) -> Gradients:
    """The closed-form gradient in mean-centred moments, for one dense batch.

    With ``c_ij = (k_j - kbar_i) . g_i`` and weights ``a_ij = p_ij (1 + gate_i c_ij)``, one formula covers a
    solved, a given and a zero probe: the solved one adds the adjoint ``f_i`` of its linear system.
    """
    kv_heads, group = k.shape[2], q.shape[2] // k.shape[2]
    dtype = q.dtype
    q, k, v, probe = _heads_first(q, k, v, probe)
    do = rearrange(do, "b t h d -> b h t d").to(q.dtype)
    gate = rearrange(gate, "b t h -> b h t 1").to(q.dtype)
    p = softmax_weights(q, k, options).p
    seen = (p.sum(-1, keepdim=True) > 0).to(p.dtype)  # rows that see no key get no gradient at all

    kbar = p @ k
    e = do @ v.mT
    e = e - (p * e).sum(-1, keepdim=True)
    h = (p * e) @ k - (p * e).sum(-1, keepdim=True) * kbar
    g = torch.zeros_like(q) if probe is None else probe
    f = torch.zeros_like(q)
    if ridge is not None:
        ridge = rearrange(ridge, "b t h -> b h t 1").to(q.dtype)
        centred = k[:, :, None] - kbar[:, :, :, None]
        cov = torch.einsum("bhts,bhtsd,bhtse->bhtde", p, centred, centred)
        cov = cov + torch.diag_embed(ridge.expand_as(q))
        rhs = torch.stack([(q - kbar) * seen, gate * h], -1)
        g, f = torch.linalg.solve(cov, rhs).unbind(-1)

    c = g @ k.mT - (g * kbar).sum(-1, keepdim=True)
    u = f @ k.mT - (f * kbar).sum(-1, keepdim=True)
    y = e * (1 + gate * c) - u * (1 + c)
    ds = options.scale * p * (y - (p * y).sum(-1, keepdim=True))
    dq = ds @ k + f
    dk = ds.mT @ q + (p * (gate * e - u)).mT @ g - (p * (1 + c)).mT @ f
    dv = (p * (1 + gate * c)).mT @ do

    def tokens_first(x: Tensor) -> Tensor:
        return rearrange(x, "b h t d -> b t h d")

    def sum_groups(x: Tensor) -> Tensor:
        return reduce(x, "b (h g) s d -> b s h d", "sum", h=kv_heads, g=group)

    return Gradients(
        dq=tokens_first(dq).to(dtype),
        dk=sum_groups(dk).to(dtype),
        dv=sum_groups(dv).to(dtype),
        dprobe=None if probe is None else tokens_first(gate * h).to(dtype),
        dridge=None if ridge is None else -tokens_first((f * g).sum(-1, keepdim=True))[..., 0],
        dgate=tokens_first((h * g).sum(-1, keepdim=True))[..., 0],
    )
