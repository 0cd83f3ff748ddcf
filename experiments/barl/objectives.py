"""What the arms are trained on: for every token, the value that its log-probability is weighed by.

All arms have the same network, which reads the whole episode, the same prompts and the same baseline; this is
all that they differ in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from flashlla.models.rl import rewards_to_go

from .posterior import bayes_values, posterior_weights
from .triplets import HYPOTHESES, LENGTH, REPEATS, TOKENS, completions, of_prompt, until_first

ENTROPY = 0.05  # weight of the bonus, where a success pays 1
BETAS = (0, 1, 5)


class Signal(NamedTuple):
    """What an objective says of drawn tokens.

    Attributes:
        values: ``[rows, steps]``, 0 behind the end of an episode.
        mask: bool ``[rows, steps]``, True up to the end of an episode.
    """

    values: Tensor
    mask: Tensor


class Arm(NamedTuple):
    """An objective.

    Attributes:
        signal: ``signal(prompts, actions, generator)``, a :class:`Signal` for prompts ``[rows]`` and the
            tokens that were drawn, ``[rows, steps]``.
        entropy: weight of an entropy bonus.
    """

    signal: Callable[[Tensor, Tensor, torch.Generator], Signal]
    entropy: float = 0.0


def outcome_values(hits: Tensor) -> Signal:
    """A success pays 1 and ends the episode. ``hits`` is bool ``[rows, steps]``."""
    mask = until_first(hits)
    return Signal(rewards_to_go(hits.float(), mask), mask)


def repeated_values(true: Tensor, found: Tensor, beta: float) -> Signal:
    """BARL where every hypothesis pays each time that its pattern is there; a true success ends the episode.

    The values are returns of the mean reward under the posterior of every step: what an action is worth to
    one who goes on learning.

    Args:
        true: bool ``[rows, steps]``, where the pattern of the prompt ends, which is what can be observed.
        found: bool ``[rows, hypotheses, steps]``, the same of every hypothesis.
        beta: of :func:`posterior_weights`; the prior is uniform.
    """
    mask = until_first(true)
    return Signal(rewards_to_go(bayes_values(_weights(true, found, beta), found.float()), mask), mask)


def fixed_values(true: Tensor, found: Tensor, beta: float) -> Signal:
    """The same with returns of every hypothesis under the posterior of the step that is valued, as equation
    5.4 has it: what is paid later counts by what is known now.
    """
    mask = until_first(true)
    returns = rewards_to_go(found.float(), mask[:, None])
    return Signal(bayes_values(_weights(true, found, beta), returns), mask)


def first_values(true: Tensor, found: Tensor, beta: float) -> Signal:
    """BARL where every hypothesis pays once, and where episodes go on to the last step.

    They do because the first success of one hypothesis ends nothing for the others: with beta 0 this is the
    mean of :func:`outcome_values` over the hypotheses. Arguments are those of :func:`repeated_values`.
    """
    true, found = (hits & until_first(hits) for hits in (true, found))
    values = bayes_values(_weights(true, found, beta), rewards_to_go(found.float()))
    return Signal(values, torch.ones_like(true))


def _weights(true: Tensor, found: Tensor, beta: float) -> Tensor:
    rewards = found.float()
    return posterior_weights(torch.zeros_like(rewards), true.float(), rewards, beta)


def _hits(prompts: Tensor, actions: Tensor) -> Tensor:
    """Where the pattern of each prompt ends."""
    return of_prompt(completions(actions, REPEATS.to(actions.device)), prompts)


def _outcome(prompts: Tensor, actions: Tensor, generator: torch.Generator) -> Signal:
    return outcome_values(_hits(prompts, actions))


def _resampled(prompts: Tensor, actions: Tensor, generator: torch.Generator) -> Signal:
    """The outcome for a pattern that is drawn anew for every episode, whatever its prompt."""
    truths = torch.randint(TOKENS, prompts.shape, generator=generator).to(prompts.device)
    return outcome_values(_hits(truths, actions))


def _progress(prompts: Tensor, actions: Tensor, generator: torch.Generator) -> Signal:
    """The outcome, and a third for every token by which more of the pattern stands at the end of the text."""
    patterns = REPEATS.to(actions.device)
    starts = (of_prompt(completions(actions, patterns[:, : n + 1]), prompts) for n in range(LENGTH))
    matched = torch.stack(list(starts)).float().mean(0)
    hits = _hits(prompts, actions)
    mask = until_first(hits)
    steps = matched.diff(dim=1, prepend=torch.zeros_like(matched[:, :1]))
    return Signal(rewards_to_go(steps + hits, mask), mask)


def _barl(
    prompts: Tensor,
    actions: Tensor,
    generator: torch.Generator,
    *,
    values=repeated_values,
    size: int,
    beta: float,
) -> Signal:
    found = completions(actions, HYPOTHESES[size].to(actions.device))
    return values(_hits(prompts, actions), found, beta)


def barl_name(size: int, beta: int) -> str:
    """Of the arm with so many hypotheses."""
    return f"barl_{size}_beta_{beta}"


ARMS = {
    "reinforce": Arm(_outcome),
    "entropy": Arm(_outcome, ENTROPY),
    "progress": Arm(_progress),
    "meta": Arm(_resampled),
    **{
        barl_name(size, beta): Arm(partial(_barl, size=size, beta=beta))
        for size in HYPOTHESES
        for beta in BETAS
    },
    "barl_fixed": Arm(partial(_barl, values=fixed_values, size=len(REPEATS), beta=max(BETAS))),
    "barl_first": Arm(partial(_barl, values=first_values, size=len(REPEATS), beta=0)),
}
