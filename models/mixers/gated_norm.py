"""The norm in front of the output projection, with or without a gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6


class GatedRMSNorm(nn.Module):
    """``rms_norm(x) * silu(gate)``, or with ``gate_first`` ``rms_norm(x * silu(gate))``; float32 or better.

    Args:
        size: the last size of x, over which the mean square is taken.
        gate_first: gate in front of the norm, as Mamba-2 does.
    """

    def __init__(self, size: int, *, gate_first: bool = False, device=None, dtype=None):
        super().__init__()
        self.gate_first = gate_first
        self.weight = nn.Parameter(torch.ones(size, device=device, dtype=dtype))

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        gate = None if gate is None else F.silu(gate.to(x.dtype))
        if gate is not None and self.gate_first:
            x = x * gate
        x = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + NORM_EPS) * self.weight.to(x.dtype)
        return x if gate is None or self.gate_first else x * gate
