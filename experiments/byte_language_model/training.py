"""What is measured while a model trains."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

from torch import Tensor

from flashlla.models import LanguageModel

from ..common.training import History, token_loss

EVALUATIONS = 8  # spread evenly over the steps
EVALUATED_TOGETHER = 16  # windows


def bits_per_byte(model: LanguageModel, windows: tuple[Tensor, Tensor]) -> float:
    """The loss over all windows, inputs and targets, in bits a byte."""
    device = next(model.parameters()).device
    parts = zip(*(t.to(device).split(EVALUATED_TOGETHER) for t in windows), strict=True)
    return sum(len(x) * token_loss(model, (x, y)).item() for x, y in parts) / len(windows[0]) / math.log(2)


def by_evaluation(history: History) -> list[dict[str, Any]]:
    """The evaluations, each with ``training_seconds``, the wall-clock time of all steps up to there."""
    seconds = [0.0, *accumulate(record["seconds"] for record in history.steps)]
    return [{**record, "training_seconds": seconds[record["step"]]} for record in history.evaluations]
