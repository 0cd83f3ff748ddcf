"""The pre-norm decoder block that every model here is a stack of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))`` (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int, device=None, dtype=None):
        super().__init__()
        factory = {"bias": False, "device": device, "dtype": dtype}
        self.gate = nn.Linear(dim, hidden, **factory)
        self.up = nn.Linear(dim, hidden, **factory)
        self.down = nn.Linear(hidden, dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """``x + mixer(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, mixer: nn.Module, dim: int, hidden: int, device=None, dtype=None):
        super().__init__()
        self.mixer_norm = nn.RMSNorm(dim, eps=NORM_EPS, device=device, dtype=dtype)
        self.mixer = mixer
        self.mlp_norm = nn.RMSNorm(dim, eps=NORM_EPS, device=device, dtype=dtype)
        self.mlp = SwiGLU(dim, hidden, device=device, dtype=dtype)

    def forward(self, x: Tensor, state: Any = None, lengths: Sequence[int] | None = None) -> Tensor:
        x = x + self.mixer(self.mixer_norm(x), state, lengths)
        return x + self.mlp(self.mlp_norm(x))

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        """Rescale what both halves add to the residual stream."""
        self.mixer.scale_output(factor)
        self.mlp.down.weight.mul_(factor)
