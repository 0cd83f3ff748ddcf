"""What a trial cost, for the table."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from typing import Any

from flashlla.models import LanguageModel


def costs(model: LanguageModel, records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Parameters, seconds of all training steps, and the most memory that the process ever had, in MB."""
    seconds = sum(record["seconds"] for record in records if "loss" in record)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "parameters": model.num_parameters(),
        "training_seconds": round(seconds, 1),
        "peak_megabytes": round(peak),
    }
