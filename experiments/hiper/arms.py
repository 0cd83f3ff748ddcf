"""The arms: how the rewards of episodes become advantages of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flashlla.models.rl import (
    block_advantages,
    generalized_advantages,
    group_in_group,
    group_normalized,
    hierarchical_advantages,
    switch_advantages,
    termination_advantages,
    whiten,
)

from .critic import HIGH, LOW, THIRD, Lesson, Seen
from .episodes import Episodes

KEEP_PENALTY = -0.3  # of the released code, beside 10 for a success


@dataclass(frozen=True)
class Arm:
    """A way to learn.

    Attributes:
        name: in words.
        estimator: of the advantages, a key of ESTIMATORS.
        plan: whether prompts and answers have subgoals.
        decay: lambda of turns or, with HAE, of actions.
        high_decay: lambda of subgoals.
        switch: advantage of the switch, ``"paper"`` or ``"code"``.
        boundary: whether V_high stands behind the segments of actions.
        shaped: with the penalty for keeping that is in the released code and not in the paper.
        few: with a quarter of the episodes in every draw.
    """

    name: str
    estimator: str
    plan: bool = True
    decay: float = 1.0
    high_decay: float = 0.95
    switch: str = "paper"
    boundary: bool = True
    shaped: bool = False
    few: bool = False

    @property
    def grouped(self) -> bool:
        """Whether several episodes of a draw are in one house."""
        return self.estimator in ("grpo", "gigpo")


ARMS = {  # in the order that readers meet them
    "hiper": Arm("HiPER", "hae"),
    "hiper_code": Arm("HiPER, switch of the code", "hae", switch="code"),
    "hiper_shaped": Arm("HiPER, shaped", "hae", shaped=True),
    "hiper_boundary": Arm("HiPER, nothing behind segments", "hae", boundary=False),
    "hiper_095": Arm("HiPER, λ 0.95", "hae", decay=0.95, high_decay=0.95),
    "hiper_08": Arm("HiPER, λ 0.8", "hae", decay=0.8, high_decay=0.8),
    "turn_plan_1": Arm("turn GAE + plan, λ 1", "turn", decay=1.0),
    "turn_plan": Arm("turn GAE + plan", "turn", decay=0.95),
    "turn_plan_08": Arm("turn GAE + plan, λ 0.8", "turn", decay=0.8),
    "turn": Arm("turn GAE", "turn", plan=False, decay=0.95),
    "ppo_plan": Arm("PPO + plan", "token"),
    "ppo": Arm("PPO", "token", plan=False),
    "grpo_plan": Arm("GRPO + plan", "grpo"),
    "grpo": Arm("GRPO", "grpo", plan=False),
    "gigpo_plan": Arm("GiGPO + plan", "gigpo"),
    "gigpo": Arm("GiGPO", "gigpo", plan=False),
    "hiper_few": Arm("HiPER, few episodes", "hae", few=True),
    "turn_plan_few": Arm("turn GAE + plan, few episodes", "turn", decay=0.95, few=True),
}


class Estimate(NamedTuple):
    """Advantages of tokens, ``[rows, steps]``, with the bool mask of those that were chosen, and what the
    values should learn.
    """

    advantages: Tensor
    mask: Tensor
    lessons: tuple[Lesson, ...] = ()


def estimate(arm: Arm, seen: Seen, group: int) -> Estimate:
    """The advantages of an arm.

    Args:
        group: episodes in one house, neighbours, if the arm wants such.
    """
    return ESTIMATORS[arm.estimator](arm, seen, group)


def rewards(arm: Arm, episodes: Episodes) -> Tensor:
    """``[episodes, turns]``, with what the released code takes for keeping, if the arm does.

    It takes KEEP_PENALTY times the share of turns with KEEP from an episode, in equal parts at those turns.
    """
    given = episodes.grid(episodes.rewards)
    if not arm.shaped:
        return given
    kept = episodes.grid((~episodes.switched).to(given.dtype))
    return given + KEEP_PENALTY * kept / episodes.made.sum(1, keepdim=True)


def _hae(arm: Arm, seen: Seen, group: int) -> Estimate:
    """HiPER. Each of the three kinds of advantages is whitened by itself, as in the released code."""
    e = seen.episodes
    made, switches, gains = e.made, e.grid(e.switched), rewards(arm, e)
    low, high, third = (e.grid(values) for values in (seen.low, seen.high, seen.third))
    hae = hierarchical_advantages(
        gains,
        switches,
        low,
        high,
        made,
        low_decay=arm.decay,
        high_decay=arm.high_decay,
        boundary_values=None if arm.boundary else torch.zeros_like(high),
    )
    begins = e.rows(hae.boundaries)
    lessons = [
        Lesson(LOW, seen.subgoals, e.rows(hae.low_targets)),
        Lesson(HIGH, seen.prompts[begins], e.rows(hae.high_targets)[begins]),
    ]
    if arm.switch == "paper":
        probabilities = e.texts.log_probs[:, 0].exp()
        chances = torch.where(e.switched, probabilities, 1 - probabilities)
        switch = switch_advantages(switches, e.grid(chances), high, e.grid(seen.kept), made)
    else:
        switch = termination_advantages(gains, switches, high, third, made)
        lessons.append(Lesson(THIRD, seen.prompts, e.rows(switch + third)))
    later = made & (torch.arange(made.shape[1], device=made.device) > 0)
    whitened = (whiten(switch, later), whiten(hae.high, hae.boundaries), whiten(hae.low, made))
    by_row = [e.rows(level)[:, None] for level in (*whitened, hae.boundaries)]
    kinds = e.texts.kinds
    advantages, mask = block_advantages(kinds, torch.zeros_like(kinds), *by_row)
    return Estimate(advantages, mask & e.texts.free, tuple(lessons))


def _turn(arm: Arm, seen: Seen, group: int) -> Estimate:
    """GAE over turns, one value a turn; what is chosen in a turn has one advantage."""
    e = seen.episodes
    values, made = e.grid(seen.high), e.made
    found = generalized_advantages(rewards(arm, e), values, made, decay=arm.decay)
    lesson = Lesson(HIGH, seen.prompts, e.rows(found + values))
    return Estimate(_everywhere(e, whiten(found, made)), e.texts.free, (lesson,))


def _token(arm: Arm, seen: Seen, group: int) -> Estimate:
    """PPO as the authors' baseline has it: a turn is a text whose last token is paid the whole episode."""
    e = seen.episodes
    mask, returns = e.texts.mask, rewards(arm, e).sum(1)
    last = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
    values = seen.value(LOW, seen.hidden)
    found = generalized_advantages(returns[e.episode, None] * last, values, mask, decay=arm.decay)
    lesson = Lesson(LOW, seen.hidden[mask], (found + values)[mask])
    return Estimate(whiten(found, mask), e.texts.free, (lesson,))


def _grpo(arm: Arm, seen: Seen, group: int) -> Estimate:
    e = seen.episodes
    found = group_normalized(rewards(arm, e).sum(1).view(-1, group)).view(-1, 1)
    return Estimate(_everywhere(e, found.expand(-1, e.made.shape[1])), e.texts.free)


def _gigpo(arm: Arm, seen: Seen, group: int) -> Estimate:
    e = seen.episodes
    parts = (t.unflatten(0, (-1, group)) for t in (rewards(arm, e), e.grid(e.observed), e.made))
    return Estimate(_everywhere(e, group_in_group(*parts, scale=True).flatten(0, 1)), e.texts.free)


def _everywhere(episodes: Episodes, advantages: Tensor) -> Tensor:
    """Those of turns ``[episodes, turns]`` at all tokens."""
    return episodes.rows(advantages)[:, None].expand_as(episodes.texts.log_probs)


ESTIMATORS: dict[str, Callable[[Arm, Seen, int], Estimate]] = {
    "hae": _hae,
    "turn": _turn,
    "token": _token,
    "grpo": _grpo,
    "gigpo": _gigpo,
}
