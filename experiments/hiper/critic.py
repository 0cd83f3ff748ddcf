"""Three values on the hidden states of a policy, and how they learn."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flashlla.models import PolicyModel
from flashlla.models.rl import BlockKind, response_hidden

from .episodes import Episodes
from .task import KEEP, SUBGOAL_END, subgoal_table

LOW, HIGH, THIRD = range(3)  # V_low(s, o); V_high(s); of the released code, before the switch decision
RIDGE = 0.1  # how strongly a value stays where it is, relative to features of variance 1


class Lesson(NamedTuple):
    """What one of the values should be, ``targets [n]``, where the policy's state is ``hidden [n, dim]``."""

    value: int
    hidden: Tensor
    targets: Tensor


class Seen:
    """Turns as the policy sees them, without gradient: hidden states once, values as they are when asked.

    Attributes:
        hidden: in front of every token of the answers, ``[rows, steps, dim]``.
        acting: int64 ``[rows]``, the step of the first token of the action: it stands behind the subgoal.
    """

    @torch.no_grad()
    def __init__(self, policy: PolicyModel, episodes: Episodes):
        self.policy, self.episodes = policy, episodes
        self.hidden = response_hidden(policy.actor, episodes.texts)
        self.acting = (episodes.texts.kinds == BlockKind.ACTION).int().argmax(1)

    @torch.no_grad()
    def value(self, which: int, hidden: Tensor) -> Tensor:
        """One of the values at hidden states ``[..., dim]``."""
        return self.policy.value_head(hidden)[..., which]

    @property
    def prompts(self) -> Tensor:
        """The states behind the prompts, ``[rows, dim]``."""
        return self.hidden[:, 0]

    @property
    def subgoals(self) -> Tensor:
        """The states behind the subgoals, ``[rows, dim]``."""
        return self.hidden[torch.arange(len(self.acting)), self.acting]

    @property
    def low(self) -> Tensor:
        """V_low of the subgoal that is executed, ``[rows]``."""
        return self.value(LOW, self.subgoals)

    @property
    def high(self) -> Tensor:
        """V_high, ``[rows]``."""
        return self.value(HIGH, self.prompts)

    @property
    def third(self) -> Tensor:
        """The third value, ``[rows]``."""
        return self.value(THIRD, self.prompts)

    @property
    def kept(self) -> Tensor:
        """V_low of the old subgoal, ``[rows]``: where it was dropped, of the answer that would have kept it.

        0 where there was none.
        """
        old, (rows, states) = self.episodes.old, self._dropped
        found = torch.where(old >= 0, self.low, 0.0)
        found[rows] = self.value(LOW, states)
        return found

    @cached_property
    @torch.no_grad()
    def _dropped(self) -> tuple[Tensor, Tensor]:
        """Rows where a subgoal was dropped, and the states behind it if it had been kept."""
        texts, old = self.episodes.texts, self.episodes.old
        rows = (self.episodes.switched & (old >= 0)).nonzero()[:, 0]
        if not len(rows):
            return rows, self.prompts[rows]
        answers = [_keeping(goal).to(old.device) for goal in old[rows].tolist()]
        prompts = [texts.tokens[row, : texts.lengths[row]] for row in rows]
        both = [torch.cat(parts) for parts in zip(prompts, answers, strict=True)]
        last = torch.tensor([len(text) - 1 for text in both], device=old.device)
        hidden = self.policy.actor.hidden(pad_sequence(both, batch_first=True))
        return rows, hidden[torch.arange(len(rows)), last]


def _keeping(goal: int) -> Tensor:
    """The tokens of an answer that keeps a subgoal, up to its action."""
    phrase = subgoal_table()[goal]
    return torch.tensor([KEEP, *phrase[phrase >= 0].tolist(), SUBGOAL_END])


@torch.no_grad()
def teach(policy: PolicyModel, lesson: Lesson) -> None:
    """Move a value to the ridge regression on a lesson, around the weights that it has."""
    head, value = policy.value_head, lesson.value
    x = torch.cat([lesson.hidden, torch.ones_like(lesson.hidden[:, :1])], 1).double()
    weights = torch.cat([head.weight[value], head.bias[value, None]]).double()
    gram = x.T @ x / len(x) + RIDGE * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    step = torch.linalg.solve(gram, x.T @ (lesson.targets.double() - x @ weights) / len(x))
    weights = (weights + step).to(head.weight.dtype)
    head.weight[value], head.bias[value] = weights[:-1], weights[-1]
