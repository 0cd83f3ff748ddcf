"""Gated linear attention."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from flashlla.nn.checks import check_sizes

from . import fla, forms, linear_recurrence
from .base import RecurrentMixer, by_head, from_heads, head_sizes, without_padding
from .gated_norm import GatedRMSNorm
from .projections import QKVProjection
from .state import MixerState


class GatedLinearAttention(RecurrentMixer):
    """Gated linear attention, GLA (arXiv 2312.06635, sections 4.1 and 4.4).

    ``S_t = Diag(a_t) S_{t-1} + k_t v_t^T``, ``o_t = S_t^T q_t``, a decay for every entry of the keys:
    ``a_t = sigmoid(W_2 W_1 x_t + b) ** (1 / 16)``, with a narrow layer between. Each head's output is
    normalised and gated, ``silu(W_r x_t + b_r) * norm(o_t)``, and queries are scaled by ``head_dim ** -0.5``.

    The norm is an RMS norm where the paper has a LayerNorm. The paper halves the keys, which is
    ``head_dim = dim / (2 heads)``, ``value_dim = dim / heads``. Instead of the
    paper's secondary chunks (section 4.3), blocks of growing size meet within a chunk; see
    :func:`flashlla.models.mixers.linear_recurrence.decayed_scores`.

    Args:
        gate_rank: width of the layer between in the decay.
        gate_power: the 16 above; the larger, the slower the decay at the start.
        others: as for :class:`flashlla.models.mixers.LinearAttention`; chunk_size is a power of 2.

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
        gate_rank: int = 16,
        gate_power: float = 16.0,
        chunk_size: int = 64,
        form: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(dim, form, chunk_size)
        factory = {"device": device, "dtype": dtype}
        self.sizes = kv_heads, head_dim, value_dim = head_sizes(dim, heads, kv_heads, head_dim, value_dim)
        check_sizes(gate_rank=gate_rank)
        if chunk_size & (chunk_size - 1):
            raise ValueError(f"chunk_size={chunk_size} must be a power of 2")
        if not gate_power > 0:
            raise ValueError(f"gate_power={gate_power} must be greater than 0; the paper has 16")
        self.gate_power = gate_power
        self.qkv = QKVProjection(
            dim, heads, *self.sizes, short_conv=short_conv, silu=short_conv is not None, **factory
        )
        self.decay_down = nn.Linear(dim, gate_rank, bias=False, **factory)
        self.decay_up = nn.Linear(gate_rank, kv_heads * head_dim, **factory)
        self.gate_proj = nn.Linear(dim, heads * value_dim, **factory)
        self.norm = GatedRMSNorm(value_dim, **factory)
        self.out_proj = nn.Linear(heads * value_dim, dim, bias=False, **factory)

    def _sizes(self) -> dict[str, tuple[int, ...]]:
        kv_heads, head_dim, value_dim = self.sizes
        return {"memory": (kv_heads, 1, head_dim, value_dim), **self.qkv.state_sizes()}

    def _not_by_fla(self) -> str | None:
        return forms.sizes_rejection(*self.sizes[1:])

    def _mix(self, x: Tensor, state: MixerState, counts: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        kv_heads, head_dim, value_dim = self.sizes
        q, k, v, tensors = self.qkv(x, state.tensors, counts, self._precision())
        decay = by_head(self.decay_up(self.decay_down(x)).to(q.dtype), kv_heads)
        k, log_decay = without_padding(counts, k, F.logsigmoid(decay) / self.gate_power)
        out, tensors["memory"] = self._run(
            linear_recurrence.recurrent,
            linear_recurrence.chunked,
            fla.gla,
            *(q * head_dim**-0.5, k, v, log_decay, state.tensors["memory"]),
        )
        gate = self.gate_proj(x).unflatten(-1, (-1, value_dim))
        return self.norm(from_heads(out), gate).flatten(2), tensors
