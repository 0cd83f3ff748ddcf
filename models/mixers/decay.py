"""The decay of Mamba-2, which Gated DeltaNet has taken over."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEP_RANGE = (1e-3, 1e-1)  # where the step starts, spread evenly over the logarithm
RATE_RANGE = (1.0, 16.0)  # where the rate starts, spread evenly


class Decay(nn.Module):
    """A step ``dt = softplus(x + dt_bias)`` and the logarithm of the decay, ``-exp(A_log) dt``, by head."""

    def __init__(self, heads: int, device=None, dtype=None):
        super().__init__()
        rate = torch.empty(heads, device=device).uniform_(*RATE_RANGE)
        step = torch.empty(heads, device=device).uniform_(*map(math.log, STEP_RANGE)).exp()
        self.A_log = nn.Parameter(rate.log().to(dtype or rate.dtype))
        self.dt_bias = nn.Parameter((step + (-torch.expm1(-step)).log()).to(dtype or step.dtype))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Step and logarithm of the decay, in the dtype of ``x``, ``[..., heads]``."""
        step = F.softplus(x + self.dt_bias.to(x.dtype))
        return step, -self.A_log.to(x.dtype).exp() * step
