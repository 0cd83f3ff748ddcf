"""What a trial cost, for the table."""

from __future__ import annotations

import resource
from typing import Any

from torch import nn

from .training import History


def peak_megabytes() -> int:
    """The most memory that the process ever had."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def costs(model: nn.Module, *histories: History) -> dict[str, Any]:
    """Parameters, seconds of all training steps, and :func:`peak_megabytes`."""
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_seconds": round(sum(history.seconds for history in histories), 1),
        "peak_megabytes": peak_megabytes(),
    }
