"""Gated DeltaNet."""

from __future__ import annotations

from torch import Tensor, nn

from . import fla
from .base import by_head
from .decay import Decay
from .deltanet import DeltaNet


class GatedDeltaNet(DeltaNet):
    """Gated DeltaNet (arXiv 2412.06464v3, equation 10).

    ``S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T``, ``o_t = S_t^T q_t``: DeltaNet with the decay of
    Mamba-2, ``a_t = exp(-exp(A_log) softplus(w x_t + dt_bias))``, a number a head; outputs are gated behind
    their norm, ``rms_norm(o_t) * silu(W_g x_t)``.

    Args:
        output_gate: gate the outputs.
        others: as for :class:`flashlla.models.mixers.DeltaNet`.

    Raises:
        TypeError, ValueError: sizes or options that do not fit together.
    """

    _by_fla, _decays = staticmethod(fla.gated_deltanet), True

    def __init__(
        self, dim: int, heads: int, kv_heads: int | None = None, *, output_gate: bool = True, **options
    ):
        super().__init__(dim, heads, kv_heads, **options)
        factory = {"device": options.get("device"), "dtype": options.get("dtype")}
        kv_heads, _, self.value_dim = self.sizes
        self.decay_proj = nn.Linear(dim, kv_heads, bias=False, **factory)
        self.decay = Decay(kv_heads, **factory)
        self.gate_proj = (
            nn.Linear(dim, heads * self.value_dim, bias=False, **factory) if output_gate else None
        )

    def _log_decay(self, x: Tensor, beta: Tensor) -> Tensor:
        _, log_decay = self.decay(self.decay_proj(x).to(beta.dtype))
        return by_head(log_decay, self.sizes[0])

    def _gate(self, x: Tensor) -> Tensor | None:
        return None if self.gate_proj is None else self.gate_proj(x).unflatten(-1, (-1, self.value_dim))
