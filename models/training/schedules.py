"""Learning rates over a run."""

from __future__ import annotations

import math

from .config import ScheduleConfig


def learning_rate_factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Share of the peak learning rate in ``step``, counted from 0, of ``steps``; always above 0.

    The fall would end at the floor in step ``steps``, one behind the last: no step is spent at 0.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.kind == "cosine":
        fallen = (step - schedule.warmup_steps) / (steps - schedule.warmup_steps)
        remaining = (1 + math.cos(math.pi * fallen)) / 2
    elif schedule.kind == "wsd":
        remaining = min(1.0, (steps - step) / max(schedule.decay_steps, 1))
    else:
        remaining = 1.0
    return schedule.floor + (1 - schedule.floor) * remaining
