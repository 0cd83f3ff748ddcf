"""Losses and gradient norms of the last steps, which stay on the device until they are read together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .seeds import batch_seed
from .world import World


@dataclass(frozen=True)
class Reading:
    """One step, counted from 0.

    Attributes:
        losses: of every micro-batch.
        gradient_norm: before clipping; None where nothing is clipped.
    """

    step: int
    losses: list[float]
    gradient_norm: float | None
    learning_rate: float

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, (*self.losses, self.gradient_norm or 0.0)))

    @property
    def loss(self) -> float:
        return math.fsum(self.losses) / len(self.losses)

    def record(self, seconds: float) -> dict[str, Any]:
        """A line of the log; its step counts those done."""
        norm = {} if self.gradient_norm is None else {"gradient_norm": self.gradient_norm}
        rest = {"learning_rate": self.learning_rate, "seconds": seconds}
        return {"step": self.step + 1, "loss": self.loss, **norm, **rest}

    def problem(self, seed: int) -> str:
        """What is not finite, in words; ``seed`` is that of the run."""
        bad = [i for i, loss in enumerate(self.losses) if not math.isfinite(loss)]
        if bad:
            batch = f"micro-batch {bad[0]} (batch seed {batch_seed(seed, self.step, bad[0])})"
            return f"the loss is {self.losses[bad[0]]} in step {self.step}, {batch}"
        seeds = ", ".join(str(batch_seed(seed, self.step, i)) for i in range(len(self.losses)))
        return f"the gradient norm is {self.gradient_norm} in step {self.step} (batch seeds {seeds})"


class Readings:
    """What this process has measured in steps that were not read yet.

    Args:
        world: the processes; they read together.
        micro_batches: those of this process.
        total: those of a step.
    """

    def __init__(self, world: World, micro_batches: Sequence[int], total: int):
        self._world, self._mine, self._total = world, list(micro_batches), total
        self._steps: list[tuple[int, Tensor, Tensor | None, float]] = []

    def add(self, step: int, losses: list[Tensor], norm: Tensor | None, learning_rate: float) -> None:
        """A step: 0-dim losses of this process's micro-batches, and the gradient norm."""
        self._steps.append((step, torch.stack(losses), norm, learning_rate))

    def read(self) -> list[Reading]:
        """All that was added since the last time, averaged over the processes: here the host waits."""
        found = self._readings(together=True)
        self._steps.clear()
        return found

    def peek(self) -> list[Reading]:
        """The same as far as this process knows it, without asking others; a loss it does not know is 0."""
        return self._readings(together=False)

    def clear(self) -> None:
        """Forget what was not read."""
        self._steps.clear()

    def _readings(self, together: bool) -> list[Reading]:
        if not self._steps:
            return []
        steps, losses, norms, rates = zip(*self._steps, strict=True)
        rows = torch.zeros(len(steps), self._total, device=self._world.device)
        rows[:, self._mine] = torch.stack(losses).to(rows)
        if together:
            rows = self._world.sum_over_replicas(rows / self._world.size_of("context"))
        norms = norms if norms[0] is None else torch.stack(norms).tolist()
        return [Reading(*row) for row in zip(steps, rows.tolist(), norms, rates, strict=True)]
