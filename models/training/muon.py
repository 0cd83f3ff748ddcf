"""Muon: momentum, orthogonalised before it is applied (kellerjordan.github.io/posts/muon).

``torch.optim.Muon`` came with torch 2.9, works in bfloat16 alone and knows nothing of sharded parameters;
this one runs on every torch that the library supports, in float32 on a CPU, and on a sharded model equals
one process.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .shards import like_shards_of, whole

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic: steepest at 0, all singular values end near 1
_RMS_OF_ADAMW = 0.2  # arXiv 2502.16982


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for parameters with two dimensions.

    An update is ``0.2 sqrt(max(rows, columns))`` times an orthogonal matrix, which has the root mean square
    that updates of AdamW have: learning rates of AdamW can be kept.

    Args:
        params: matrices, or parameter groups of such; sharded ones (DTensor) are gathered for the update.
        lr: learning rate.
        momentum: share of the momentum that is kept.
        weight_decay: decoupled.
        newton_schulz_steps: iterations of the orthogonalisation.

    Raises:
        ValueError: a parameter that is no matrix.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        newton_schulz_steps: int = 5,
    ):
        options = {"momentum": momentum, "weight_decay": weight_decay, "steps": newton_schulz_steps}
        super().__init__(params, {"lr": lr, **options})
        for group in self.param_groups:
            for p in group["params"]:
                if p.dim() != 2:
                    raise ValueError(
                        f"Muon takes matrices only, got shape {tuple(p.shape)}; give it to AdamW"
                    )

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient; ``closure`` recomputes the loss."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)
        return loss

    def _update(self, p: Tensor, group: dict) -> None:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        momentum = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
        update = whole(p.grad.lerp(momentum, group["momentum"]))
        update = orthogonalize(update, group["steps"]) * (_RMS_OF_ADAMW * max(update.shape) ** 0.5)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(like_shards_of(p, update.to(p.dtype)), alpha=-group["lr"])


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Singular values moved to about 1, by Newton-Schulz iterations.

    Args:
        matrix: ``[rows, columns]``.
        steps: iterations.

    Returns:
        The shape of matrix, in the dtype of the iterations: bfloat16 on a GPU, else float32 or better.
    """
    a, b, c = _COEFFICIENTS
    dtype = torch.bfloat16 if matrix.is_cuda else torch.promote_types(matrix.dtype, torch.float32)
    x = matrix.to(dtype)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.mT
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT
