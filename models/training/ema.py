"""A moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .shards import forget_gathered, local


class MovingAverage:
    """``average <- average + (1 - decay) (weights - average)`` after every step, in float32 or better.

    Sharded weights have a sharded average.

    Args:
        model: whose parameters are averaged; the average starts as a copy of them.
        decay: in (0, 1); after ``t`` steps it is at most ``(1 + t) / (10 + t)``.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.parameters = dict(model.named_parameters())
        self.tensors: dict[str, Tensor] = {
            name: p.detach().clone().to(torch.promote_types(p.dtype, torch.float32))
            for name, p in self.parameters.items()
        }

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights after ``steps`` steps."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        averages = [local(t) for t in self.tensors.values()]
        weights = [local(p).to(t.dtype) for p, t in zip(self.parameters.values(), averages, strict=True)]
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Within, the model has the averages for weights."""
        forget_gathered(self.model)
        held = [local(p).clone() for p in self.parameters.values()]
        try:
            for name, p in self.parameters.items():
                local(p).copy_(local(self.tensors[name]))
            yield
        finally:
            for p, weights in zip(self.parameters.values(), held, strict=True):
                local(p).copy_(weights)
            forget_gathered(self.model)
