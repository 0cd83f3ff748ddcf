"""Continuous tokens in, blocks without an MLP, a prediction out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flashlla.models.backbone import NORM_EPS, Model, build_blocks
from flashlla.models.config import StackConfig
from flashlla.models.mixers import build_mixer


class Regressor(Model):
    """Two tokens for every pair: x alone, where y is predicted, and then x with y.

    Args:
        config: the stack.
        dim: entries of x and of y.
    """

    def __init__(self, config: StackConfig, dim: int, device: torch.device | str | None = None):
        super().__init__(config)
        self.embedding = nn.Linear(2 * dim + 1, config.dim, device=device)
        self.blocks = build_blocks(config, build_mixer, device=device)
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS, device=device)
        self.head = nn.Linear(config.dim, dim, device=device)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Predictions of every y from its x and the pairs before, ``[batch, length, dim]`` as x and y."""
        hidden = self.embedding(tokens(x, y))
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden[:, ::2]))


def tokens(x: Tensor, y: Tensor) -> Tensor:
    """``(x_1, 0, 0), (x_1, y_1, 1), (x_2, 0, 0), ...``: ``[batch, 2 length, 2 dim + 1]``; the 1 says that y
    is there.
    """
    one = torch.ones_like(x[..., :1])
    asked = torch.cat([x, torch.zeros_like(y), torch.zeros_like(one)], -1)
    told = torch.cat([x, y, one], -1)
    return torch.stack([asked, told], 2).flatten(1, 2)
