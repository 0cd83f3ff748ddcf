"""The text of the demonstration, and the windows of it that losses are measured on."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..demo.data import Corpus, load_corpus, random_batch

WINDOWS_SEED = 0

corpus = cache(load_corpus)  # one reading serves all trials of a process


def held_out(text: Corpus, windows: int, context: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets from files that nothing trains on, int64 ``[windows, context]`` each.

    The same windows at every call, whatever the seed of a trial.
    """
    generator = torch.Generator().manual_seed(WINDOWS_SEED)
    return random_batch(text.validation, windows, context, generator)
