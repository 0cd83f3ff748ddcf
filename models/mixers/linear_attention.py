"""Linear attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import fla, forms, linear_recurrence
from .base import RecurrentMixer, from_heads, head_sizes, without_padding
from .projections import QKVProjection
from .state import MixerState


class LinearAttention(RecurrentMixer):
    """Linear attention (arXiv 2006.16236, equations 16 to 20 of section 3.4).

    ``S_t = S_{t-1} + f(k_t) v_t^T``, ``z_t = z_{t-1} + f(k_t)``, ``o_t = S_t^T f(q_t) / (z_t . f(q_t))`` with
    ``f(x) = elu(x) + 1``. The sum z is a column of S here: every value is one entry longer, which is 1.

    Args:
        dim: width of inputs and outputs.
        heads: query heads.
        kv_heads: heads of keys, values and states, a divisor of heads; None means heads.
        head_dim: width of queries and keys of one head; None means ``dim / heads``.
        value_dim: width of values of one head; None means head_dim.
        short_conv: taps of a causal convolution of q, k and v; None, as in the paper, for none.
        chunk_size, form: see :class:`flashlla.models.mixers.base.RecurrentMixer`.

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
        short_conv: int | None = None,
        chunk_size: int = 64,
        form: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(dim, form, chunk_size)
        factory = {"device": device, "dtype": dtype}
        self.sizes = kv_heads, head_dim, value_dim = head_sizes(dim, heads, kv_heads, head_dim, value_dim)
        self.qkv = QKVProjection(dim, heads, *self.sizes, short_conv=short_conv, silu=False, **factory)
        self.out_proj = nn.Linear(heads * value_dim, dim, bias=False, **factory)

    def _sizes(self) -> dict[str, tuple[int, ...]]:
        kv_heads, head_dim, value_dim = self.sizes
        return {"memory": (kv_heads, 1, head_dim, value_dim + 1), **self.qkv.state_sizes()}

    def _not_by_fla(self) -> str | None:
        return forms.sizes_rejection(self.sizes[1], 2)  # values of any size

    def _mix(self, x: Tensor, state: MixerState, counts: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        q, k, v, tensors = self.qkv(x, state.tensors, counts, self._precision())
        (k,) = without_padding(counts, _feature(k))
        v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
        no_decay = torch.zeros_like(v[..., :1])
        out, tensors["memory"] = self._run(
            linear_recurrence.recurrent,
            linear_recurrence.chunked,
            fla.linear_attention,
            *(_feature(q), k, v, no_decay, state.tensors["memory"]),
        )
        total = out[..., -1:].clamp(min=torch.finfo(out.dtype).tiny)
        return from_heads(out[..., :-1] / total).flatten(2), tensors


def _feature(x: Tensor) -> Tensor:
    """``elu(x) + 1``, without the digits that adding 1 would cost far below zero."""
    return x.clamp(max=0).exp() + x.clamp(min=0)
