"""MesaNet."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flashlla.nn.checks import check_sizes
from flashlla.ops.solver import conjugate_gradients

from . import fla, forms
from .base import RecurrentMixer, by_head, from_heads, head_sizes, unit, without_padding
from .chunking import decays_between, decays_from_start, decays_to_end, from_chunks, to_chunks
from .gated_norm import GatedRMSNorm
from .linear_recurrence import read, write
from .projections import QKVProjection
from .state import MixerState

RIDGE_FLOOR, RIDGE_START = 0.25, 1.0
DECAY_START = (2.0, 5.0)  # of the decay's bias, spread over the heads: decays from 0.88 to 0.993


class MesaNet(RecurrentMixer):
    """MesaNet (arXiv 2506.05233, equation 5 and the layer around it).

    ``H_t = a_t H_{t-1} + b_t k_t k_t^T``, ``G_t = a_t G_{t-1} + b_t k_t v_t^T``,
    ``o_t = G_t^T (H_t + Diag(ridge))^{-1} q_t``: the linear map from keys to values with the least squared
    error over all that was seen, regularised, decayed by ``a_t = sigmoid(w_a x_t + c_a)`` and weighted by
    ``b_t = sigmoid(w_b x_t + c_b)``, applied to the query. The ridge is learned, one for every entry of the
    keys of a head, and at least 0.25. Queries and keys go through a short convolution and SiLU and are
    normalised to length 1, and outputs by an RMS norm a head. c_a starts at 2 to 5 over the heads, so that
    they remember for 8 to 150 positions (our choice).

    The chunked form solves by conjugate gradients, at all positions together and without a matrix for any of
    them; a position stops at its own residual. Its gradient solves once more instead of going back through
    the iterations. The recurrence solves by Cholesky. H, G and the solver are in float32 or better: in half
    precision H is not positive definite.

    Args:
        max_iters: most iterations for a query. The paper stops at 30, which is enough unless a state forgets
            next to nothing; rows that are done wait for free. The kernels of flash-linear-attention take at
            most 30, and all of them.
        rtol: residual, relative to the query, at which it stops; None means 1e-6, for float64 1e-12.
        output_gate: gate the normalised outputs by ``silu(W_g x_t)``.
        others: as for :class:`flashlla.models.mixers.LinearAttention`; short_conv is 4.

    Raises:
        TypeError, ValueError: sizes or options that do not fit together.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int | None = None,
        *,
        head_dim: int | None = None,
        value_dim: int | None = None,
        short_conv: int | None = 4,
        max_iters: int = 100,
        rtol: float | None = None,
        output_gate: bool = False,
        chunk_size: int = 64,
        form: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(dim, form, chunk_size)
        factory = {"device": device, "dtype": dtype}
        self.sizes = kv_heads, head_dim, value_dim = head_sizes(dim, heads, kv_heads, head_dim, value_dim)
        check_sizes(max_iters=max_iters)
        if rtol is not None and not 0 < rtol < 1:
            raise ValueError(f"rtol={rtol} must lie between 0 and 1; None follows the dtype")
        self.max_iters, self.rtol = max_iters, rtol
        self.qkv = QKVProjection(
            dim, heads, *self.sizes, short_conv=short_conv, silu=True, values=False, **factory
        )
        self.decay_proj = nn.Linear(dim, kv_heads, **factory)
        self.beta_proj = nn.Linear(dim, kv_heads, **factory)
        raw = math.log(math.expm1(RIDGE_START - RIDGE_FLOOR))
        self.ridge = nn.Parameter(torch.full((kv_heads, head_dim), raw, **factory))
        self.gate_proj = nn.Linear(dim, heads * value_dim, bias=False, **factory) if output_gate else None
        self.norm = GatedRMSNorm(value_dim, **factory)
        self.out_proj = nn.Linear(heads * value_dim, dim, bias=False, **factory)
        with torch.no_grad():
            self.decay_proj.bias.copy_(torch.linspace(*DECAY_START, kv_heads))

    def _sizes(self) -> dict[str, tuple[int, ...]]:
        kv_heads, head_dim, value_dim = self.sizes
        gram, memory = (kv_heads, 1, head_dim, head_dim), (kv_heads, 1, head_dim, value_dim)
        return {"gram": gram, "memory": memory, **self.qkv.state_sizes()}

    def _not_by_fla(self) -> str | None:
        _, head_dim, value_dim = self.sizes
        if head_dim != value_dim:
            return f"flash-linear-attention takes MesaNet with value_dim={head_dim}, not {value_dim}"
        if self.rtol is not None:
            return f"flash-linear-attention solves MesaNet to no set residual: rtol={self.rtol} must be None"
        return forms.sizes_rejection(head_dim, value_dim, most=128)

    def _mix(self, x: Tensor, state: MixerState, counts: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        kv_heads, _, value_dim = self.sizes
        q, k, v, tensors = self.qkv(x, state.tensors, counts, self._precision())
        beta = by_head(self.beta_proj(x).to(q.dtype), kv_heads).sigmoid()
        log_decay = F.logsigmoid(by_head(self.decay_proj(x).to(q.dtype), kv_heads))
        beta, log_decay = without_padding(counts, beta, log_decay)
        ridge = RIDGE_FLOOR + F.softplus(self.ridge.to(q.dtype))[:, None, None, :]
        rtol = (1e-12 if q.dtype == torch.float64 else 1e-6) if self.rtol is None else self.rtol
        out, tensors["gram"], tensors["memory"] = self._run(
            recurrent,
            partial(chunked, rtol=rtol, max_iters=self.max_iters),
            partial(fla.mesanet, max_iters=self.max_iters),
            *(unit(q), unit(k), v, beta, log_decay, ridge, state.tensors["gram"], state.tensors["memory"]),
        )
        gate = None if self.gate_proj is None else self.gate_proj(x).unflatten(-1, (-1, value_dim))
        return self.norm(from_heads(out), gate).flatten(2), tensors


def recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    ridge: Tensor,
    gram: Tensor,
    memory: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """One position after the other.

    Args:
        q, k, v: ``[..., seq, key_dim]`` twice, and ``[..., seq, value_dim]``.
        beta, log_decay: strength of each write, and what decays before it, ``[..., seq, 1]``.
        ridge: ``[..., 1, key_dim]``.
        gram, memory: H and G, ``[..., key_dim, key_dim]`` and ``[..., key_dim, value_dim]``.

    Returns:
        ``[..., seq, value_dim]``, and H and G behind the last position.
    """
    outs = []
    for t in range(q.shape[-2]):
        q_t, k_t, v_t, beta_t = (x[..., t : t + 1, :] for x in (q, k, v, beta))
        decay = log_decay[..., t, :, None].exp()
        gram = decay * gram + k_t.mT * (beta_t * k_t)
        memory = decay * memory + k_t.mT * (beta_t * v_t)
        factor = torch.linalg.cholesky(gram + torch.diag_embed(ridge[..., 0, :]))
        outs.append(torch.cholesky_solve(q_t.mT, factor).mT @ memory)
    return torch.cat(outs, -2), gram, memory


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    ridge: Tensor,
    gram: Tensor,
    memory: Tensor,
    *,
    chunk_size: int,
    rtol: float,
    max_iters: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with matrix products inside each chunk and conjugate gradients at all positions together."""
    seq = q.shape[-2]
    q, k, v, beta, log_decay = (to_chunks(t, chunk_size) for t in (q, k, v, beta, log_decay))
    within, start = decays_between(log_decay), decays_from_start(log_decay)
    end = decays_to_end(log_decay)
    grams, gram = write(k, beta * k, start, end, gram)
    memories, memory = write(k, beta * v, start, end, memory)
    operands = (k, beta * k, within, start, grams, ridge[..., None, :, :])
    solution = _solve(q, rtol, max_iters, *operands)
    out = read(solution, k, beta * v, within, start, memories)
    return from_chunks(out, seq), gram, memory


def _system(
    k: Tensor, scaled: Tensor, within: Tensor, start: Tensor, grams: Tensor, ridge: Tensor, x: Tensor
) -> Tensor:
    """``(H_t + Diag(ridge)) x_t`` for every position of every chunk."""
    return read(x, k, scaled, within, start, grams) + ridge * x


def _solve(b: Tensor, rtol: float, max_iters: int, *operands: Tensor) -> Tensor:
    """x with ``_system(*operands, x) = b``, differentiable in b and the operands.

    One step ``x + A^{-1} (b - A x)`` from a solution x that is a constant has the derivative of the solution:
    autograd goes through the product, and the inverse is a second solve.
    """
    with torch.no_grad():
        x = conjugate_gradients(partial(_system, *operands), b, rtol, max_iters)[0]
    if not torch.is_grad_enabled():
        return x
    return _Step.apply(b - _system(*operands, x), x, rtol, max_iters, *operands)


class _Step(torch.autograd.Function):
    """``x + A^{-1} residual``, with the residual, which is as good as zero, left out of the value."""

    @staticmethod
    def forward(residual: Tensor, x: Tensor, rtol: float, max_iters: int, *operands: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, _, ctx.rtol, ctx.max_iters, *operands = inputs
        ctx.save_for_backward(*operands)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError("MesaNet has no second derivative in chunks; use form='recurrent'")
        operands = ctx.saved_tensors
        solved = conjugate_gradients(partial(_system, *operands), grad, ctx.rtol, ctx.max_iters)[0]
        return solved, *[None] * (3 + len(operands))
