"""The loss of a training run, and what it tells behind each evaluation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..common.training import History
from .data import Sequences

EVALUATIONS = 4  # spread evenly over the steps


def mean_loss(model: nn.Module, batch: Sequences) -> Tensor:
    """Cross-entropy over the tokens that are taught, nats, 0-dim."""
    taught = batch.taught[:, 1:]
    hidden = model.hidden(batch.tokens[:, :-1])
    return F.cross_entropy(model.logits(hidden[taught]), batch.tokens[:, 1:][taught])


def by_evaluation(history: History) -> list[dict[str, Any]]:
    """The evaluations, each with the mean ``loss`` and ``step_seconds`` of the steps since the one before."""
    found, done = [], 0
    for record in history.evaluations:
        since, done = history.steps[done : record["step"]], record["step"]
        loss, seconds = (sum(step[name] for step in since) / len(since) for name in ("loss", "seconds"))
        found.append({**record, "loss": loss, "step_seconds": seconds})
    return found
