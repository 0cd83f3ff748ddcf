"""Mamba-2, the state-space dual."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flashlla.nn.checks import check_sizes

from . import fla, forms, linear_recurrence
from .base import RecurrentMixer, by_head, from_heads, without_padding
from .decay import Decay
from .gated_norm import GatedRMSNorm
from .short_conv import ShortConv
from .state import MixerState


class Mamba2(RecurrentMixer):
    """Mamba-2 (arXiv 2405.21060, state-space dual of section 5, block of section 7).

    ``h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t^T``, ``y_t = h_t^T C_t + D x_t``: linear attention with keys B,
    queries C, values ``dt x`` and a decay a head, ``dt_t = softplus(w u_t + dt_bias)``, ``A = -exp(A_log)``.
    B and C are shared by all heads of a group, the values are not. x, B and C go through a short convolution
    and SiLU, and the output is ``W rms_norm(y_t * silu(z_t))``. In the paper the block is the whole layer;
    the models here have an MLP behind it, as behind every mixer.

    Args:
        dim: width of inputs and outputs.
        heads: heads of x, dt and the state.
        kv_heads: None or heads; Mamba-2 shares keys and queries by ``groups``, and values never.
        head_dim: width of x of one head; None means ``2 dim / heads``, the paper's expansion.
        state_dim: width of B and C.
        groups: how many B and C there are, a divisor of heads.
        short_conv: taps of the convolution; None for none.
        chunk_size, form: see :class:`flashlla.models.mixers.base.RecurrentMixer`.

    Raises:
        TypeError, ValueError: sizes or options that do not fit together.
    """

    _decays = True

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int | None = None,
        *,
        head_dim: int | None = None,
        state_dim: int = 64,
        groups: int = 1,
        short_conv: int | None = 4,
        chunk_size: int = 64,
        form: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(dim, form, chunk_size)
        self.heads, self.state_dim, self.groups = heads, state_dim, groups
        self.head_dim = self._head_dim(kv_heads, head_dim)
        factory = {"device": device, "dtype": dtype}
        inner, shared = heads * self.head_dim, groups * state_dim
        self.parts = [inner, shared, shared]  # x, B, C
        self.in_proj = nn.Linear(dim, inner + sum(self.parts) + heads, bias=False, **factory)
        self.conv = (
            None if short_conv is None else ShortConv(sum(self.parts), short_conv, bias=True, **factory)
        )
        self.decay = Decay(heads, **factory)
        self.D = nn.Parameter(torch.ones(heads, **factory))
        self.norm = GatedRMSNorm(inner, gate_first=True, **factory)
        self.out_proj = nn.Linear(inner, dim, bias=False, **factory)

    def _head_dim(self, kv_heads: int | None, head_dim: int | None) -> int:
        check_sizes(heads=self.heads, state_dim=self.state_dim, groups=self.groups)
        if kv_heads is not None and kv_heads != self.heads:
            raise ValueError(
                f"kv_heads={kv_heads} must be None or heads={self.heads}: Mamba-2 shares no values; "
                "the option groups shares keys and queries"
            )
        if self.heads % self.groups:
            raise ValueError(f"heads={self.heads} is no multiple of groups={self.groups}")
        if head_dim is None and 2 * self.dim % self.heads:
            raise ValueError(f"2 dim={2 * self.dim} is no multiple of heads={self.heads}; pass head_dim")
        head_dim = 2 * self.dim // self.heads if head_dim is None else head_dim
        check_sizes(head_dim=head_dim)
        return head_dim

    def _sizes(self) -> dict[str, tuple[int, ...]]:
        memory = (self.groups, self.heads // self.groups, self.state_dim, self.head_dim)
        conv = {} if self.conv is None else {"conv": (self.conv.width - 1, sum(self.parts))}
        return {"memory": memory, **conv}

    def _not_by_fla(self) -> str | None:
        return forms.sizes_rejection(self.state_dim, self.head_dim)

    def _mix(self, x: Tensor, state: MixerState, counts: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        projected = self.in_proj(x).to(self._precision())
        z, mixed, dt = projected.split([self.parts[0], sum(self.parts), self.heads], -1)
        tensors = {}
        if self.conv is not None:
            mixed, tensors["conv"] = self.conv(mixed, state.tensors["conv"], counts)
        value, k, q = F.silu(mixed).split(self.parts, -1)
        value = by_head(value, self.groups, self.heads // self.groups)
        k, q = by_head(k, self.groups), by_head(q, self.groups)
        step, log_decay = (by_head(t, self.groups, self.heads // self.groups) for t in self.decay(dt))
        k, log_decay = without_padding(counts, k, log_decay)
        y, tensors["memory"] = self._run(
            linear_recurrence.recurrent,
            linear_recurrence.chunked,
            fla.mamba2,
            *(q, k, step * value, log_decay, state.tensors["memory"]),
        )
        y = from_heads(y) + self.D.to(y.dtype)[:, None] * from_heads(value)
        return self.norm(y.flatten(2), z), tensors
