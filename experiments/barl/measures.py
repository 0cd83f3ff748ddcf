"""What episodes of the triplet task say of the policy that wrote them."""

from __future__ import annotations

import torch
from torch import Tensor

from .triplets import PROBE, REPEATS, completions, until_first


def measures(prompt: int, actions: Tensor) -> dict[str, float | None]:
    """Means over episodes of one prompt, each of which ends with its first success.

    A hypothesis is one of the three repeats; it is tried where it is completed, and refuted by that if it is
    not the one that the prompt is paid for. A switch is a try of another hypothesis than the one before it.

    Args:
        actions: int64 ``[rows, steps]``, all steps, as if no success had ended anything.

    Returns:
        ``success`` and ``success_9``, within all steps and within 9; ``steps`` to success, of those that
        succeed, None if none does; ``distinct_per_9``, hypotheses that are tried for the first time, in 9
        tokens; ``retests``, tries of what is refuted, an episode; ``switches``, an episode, with
        ``switch_variance`` and ``switch_success``, their covariance with success; ``bayes_value``, the
        success within all steps if any of the three repeats could be the paid one.
    """
    hits = completions(actions, REPEATS.to(actions.device))
    mask = until_first(hits[:, prompt])
    tries = hits & mask[:, None]
    right = tries[:, prompt]
    success = right.any(1).double()
    lengths = mask.sum(1).double()
    wrong = tries.sum((1, 2)) - right.sum(1)
    distinct = tries.any(2).sum(1)
    refuted = distinct - right.any(1).long()
    switches = _switches(tries).double()
    return {
        "success": success.mean().item(),
        "success_9": right[:, :PROBE].any(1).double().mean().item(),
        "steps": lengths[right.any(1)].mean().item() if right.any() else None,
        "distinct_per_9": PROBE * (distinct.sum() / lengths.sum()).item(),
        "retests": (wrong - refuted).double().mean().item(),
        "switches": switches.mean().item(),
        "switch_variance": switches.var(correction=0).item(),
        "switch_success": ((switches - switches.mean()) * success).mean().item(),
        "bayes_value": hits.any(2).double().mean().item(),
    }


def episode_text(prompt: int, actions: Tensor) -> str:
    """The tokens of an episode, ``[steps]``, up to its end, as digits."""
    hits = completions(actions[None], REPEATS.to(actions.device))[0, prompt]
    return "".join(map(str, actions[until_first(hits)].tolist()))


def _switches(tries: Tensor) -> Tensor:
    """How often the hypothesis that is tried is another one than before, ``[rows]``."""
    tried, which = tries.any(1), tries.int().argmax(1)
    places = torch.arange(tried.shape[1], device=tried.device).expand_as(tried)
    last = places.masked_fill(~tried, -1).cummax(1).values
    before = torch.cat([torch.full_like(last[:, :1], -1), last[:, :-1]], 1)
    other = which.gather(1, before.clamp(min=0)) != which
    return (tried & (before >= 0) & other).sum(1)
