"""DeltaNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import delta_rule, fla, forms
from .base import RecurrentMixer, by_head, from_heads, head_sizes, unit, without_padding
from .gated_norm import GatedRMSNorm
from .projections import QKVProjection
from .state import MixerState


class DeltaNet(RecurrentMixer):
    """DeltaNet (arXiv 2406.06484, section 2.2).

    ``S_t = (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T``, ``o_t = S_t^T q_t``: what the state holds for a key
    moves to the new value by the share ``b_t = sigmoid(w x_t)``. Queries, keys and values go through a short
    convolution and SiLU, queries and keys are then normalised to length 1, and outputs by an RMS norm a head.

    Args:
        negative_eigenvalues: ``b_t = 2 sigmoid(w x_t)``, so that the state can be reflected along a key
            (arXiv 2411.12537), which tracking of states needs.
        others: as for :class:`flashlla.models.mixers.LinearAttention`; short_conv is 4 as in the paper.

    Raises:
        TypeError, ValueError: sizes or options that do not fit together.
    """

    _by_fla = staticmethod(fla.deltanet)

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int | None = None,
        *,
        head_dim: int | None = None,
        value_dim: int | None = None,
        short_conv: int | None = 4,
        negative_eigenvalues: bool = False,
        chunk_size: int = 64,
        form: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(dim, form, chunk_size)
        factory = {"device": device, "dtype": dtype}
        self.sizes = kv_heads, head_dim, value_dim = head_sizes(dim, heads, kv_heads, head_dim, value_dim)
        if not isinstance(negative_eigenvalues, bool):
            raise TypeError(f"negative_eigenvalues must be a bool, got {type(negative_eigenvalues).__name__}")
        self.negative_eigenvalues = negative_eigenvalues
        self.qkv = QKVProjection(dim, heads, *self.sizes, short_conv=short_conv, silu=True, **factory)
        self.beta_proj = nn.Linear(dim, kv_heads, bias=False, **factory)
        self.norm = GatedRMSNorm(value_dim, **factory)
        self.out_proj = nn.Linear(heads * value_dim, dim, bias=False, **factory)

    def _sizes(self) -> dict[str, tuple[int, ...]]:
        kv_heads, head_dim, value_dim = self.sizes
        return {"memory": (kv_heads, 1, head_dim, value_dim), **self.qkv.state_sizes()}

    def _not_by_fla(self) -> str | None:
        return forms.sizes_rejection(*self.sizes[1:])

    def _mix(self, x: Tensor, state: MixerState, counts: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        q, k, v, tensors = self.qkv(x, state.tensors, counts, self._precision())
        beta = by_head(self.beta_proj(x).to(q.dtype), self.sizes[0]).sigmoid()
        beta = 2 * beta if self.negative_eigenvalues else beta
        beta, log_decay = without_padding(counts, beta, self._log_decay(x, beta))
        out, tensors["memory"] = self._run(
            delta_rule.recurrent,
            delta_rule.chunked,
            self._by_fla,
            *(unit(q), unit(k), v, beta, log_decay, state.tensors["memory"]),
        )
        return self.norm(from_heads(out), self._gate(x)).flatten(2), tensors

    def _log_decay(self, x: Tensor, beta: Tensor) -> Tensor:
        """Logarithm of what is kept of the state, like beta."""
        return torch.zeros_like(beta)

    def _gate(self, x: Tensor) -> Tensor | None:
        """What gates the output, ``[batch, seq, heads, value_dim]``."""
        return None
