"""The triplet task: a prompt is a token, and that token three times in a row is paid.

Nothing but the end of an episode tells whether a try was right, and it comes with the first right one.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from .chance import run_probability

TOKENS, LENGTH = 3, 3
SEEN, UNSEEN = (0, 1), 2  # prompts of the training, and the one that is kept for the test
REPEATS = torch.arange(TOKENS)[:, None].expand(-1, LENGTH)  # row i is what the prompt i is paid for
TRIPLETS = torch.tensor(list(product(range(TOKENS), repeat=LENGTH)))
HYPOTHESES = {3: REPEATS, 27: TRIPLETS}  # what could be paid, by their number
PROBE = 9  # tokens that suffice for all three repeats


def completions(actions: Tensor, patterns: Tensor) -> Tensor:
    """Where patterns end.

    Args:
        actions: int64 ``[rows, steps]``.
        patterns: int64 ``[patterns, length]``.

    Returns:
        bool ``[rows, patterns, steps]``.
    """
    length = patterns.shape[1]
    windows = actions.unfold(1, length, 1)[:, None]
    return F.pad((windows == patterns[:, None]).all(-1), (length - 1, 0))


def until_first(hits: Tensor) -> Tensor:
    """Steps up to the first hit, itself among them; all, if there is none. bool ``[..., steps]``."""
    return hits.cumsum(-1) - hits.long() == 0


def of_prompt(hits: Tensor, prompts: Tensor) -> Tensor:
    """From hits of all repeats, ``[rows, 3, steps]``, those of the pattern that each prompt is paid for."""
    return hits[torch.arange(len(prompts), device=hits.device), prompts]


def floor(steps: int) -> float:
    """How often random tokens succeed within so many, exactly."""
    return run_probability([1 / TOKENS] * LENGTH, steps)
