"""A plan-execute policy in a small Markov decision process.

Values are exact, and so is the gradient; trajectories, each with its own gradient, are enumerated or drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Policy(NamedTuple):
    """Logits, of old subgoals where there is one: ``switch [states, subgoals, 2]``, keep first, ``subgoal
    [states, subgoals]`` and ``action [states, subgoals, actions]``."""

    switch: Tensor
    subgoal: Tensor
    action: Tensor


class Values(NamedTuple):
    """Exact values, ``[horizon + 1, states, ...]``, 0 at the horizon: ``high``, ``low [..., subgoals]``, and
    ``before [..., subgoals]``, U of the old subgoal."""

    low: Tensor
    high: Tensor
    before: Tensor


class Trajectories(NamedTuple):
    """A row a trajectory, a column a turn: the old subgoal, what was decided, and the reward.

    ``mask`` is False behind the end; ``chances`` are the probabilities of the rows, which sum to 1.
    """

    states: Tensor
    old: Tensor
    switches: Tensor
    subgoals: Tensor
    actions: Tensor
    rewards: Tensor
    mask: Tensor
    chances: Tensor


class PlanExecute:
    """States, of which the last one ends an episode and pays, subgoals, actions, and a horizon.

    Args:
        sizes: states, subgoals, actions.
        dense: scale of the rewards of all actions.
        steady: how much more likely a subgoal is kept than switched, in logits.
    """

    def __init__(
        self,
        sizes: tuple[int, int, int],
        horizon: int,
        *,
        seed: int = 0,
        discount: float = 1.0,
        dense: float = 0.0,
        steady: float = 1.5,
        sharpness: float = 1.0,
    ):
        self.states, self.subgoals, self.actions = sizes
        self.horizon, self.discount = horizon, discount
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        s, o, a = sizes
        self.start = torch.cat([normal(s - 1).softmax(0), torch.zeros(1, dtype=torch.float64)])
        transitions = 1.5 * normal(s, a, s)
        transitions[..., -1] -= 2.0  # the end is far
        self.transitions = transitions.softmax(-1)
        self.rewards = dense * normal(s, a, 1) + torch.eye(s, dtype=torch.float64)[-1]  # [s, a, s']
        self.rewards = self.rewards.expand(s, a, s)
        switch = sharpness * normal(s, o, 2)
        switch[..., 0] += steady
        self.policy = Policy(switch, sharpness * normal(s, o), sharpness * normal(s, o, a))

    # ---- exact ----------------------------------------------------------------------------------------

    def values(self, policy: Policy) -> Values:
        """By dynamic programming; the gradient flows to the policy."""
        beta, fresh, act = (logits.softmax(-1) for logits in policy)
        alive = torch.ones(self.states, 1, dtype=torch.float64)
        alive[-1] = 0
        gains = (self.transitions * self.rewards).sum(-1)
        before = torch.zeros(self.states, self.subgoals, dtype=torch.float64)
        low, high, all_before = [before], [before[:, 0]], [before]
        for _ in range(self.horizon):
            q = gains[:, None] + self.discount * (self.transitions @ before).transpose(1, 2)  # [s, o, a]
            values = alive * (act * q).sum(-1)
            mean = (fresh * values).sum(-1)
            before = beta[..., 0] * values + beta[..., 1] * mean[:, None]
            low.append(values), high.append(mean), all_before.append(before)
        return Values(*(torch.stack(parts[::-1]) for parts in (low, high, all_before)))

    def expected_return(self, policy: Policy) -> Tensor:
        return self.start @ self.values(policy).high[0]

    def gradient(self) -> Tensor:
        """Of the expected return, by autograd, all logits in one row."""
        leaves = Policy(*(logits.clone().requires_grad_() for logits in self.policy))
        return flat(torch.autograd.grad(self.expected_return(leaves), leaves))

    # ---- trajectories ---------------------------------------------------------------------------------

    def enumerate(self) -> Trajectories:
        """All trajectories that can be; the first turn has no old subgoal, written 0, and switches."""
        sizes = (2, self.subgoals, self.actions, self.states)
        switch, new, action, following = torch.cartesian_prod(*map(torch.arange, sizes)).T[:, None]
        beta, fresh, act = (logits.softmax(-1) for logits in self.policy)
        state, chances, turns = torch.arange(self.states), self.start, []
        old = torch.zeros_like(state)
        for t in range(self.horizon):
            s, o, made = state[:, None], old[:, None], state[:, None] != self.states - 1
            p_switch = beta[s, o, switch] if t else (switch == 1).double()
            p_new = torch.where(switch == 1, fresh[s, new], (new == o).double())
            p = p_switch * p_new * act[s, new, action] * self.transitions[s, action, following]
            stays = (following == s) & (switch == 0) & (new == o) & (action == 0)  # behind the end
            chances = chances[:, None] * torch.where(made, p, stays.double())
            reward = torch.where(made, self.rewards[s, action, following], 0.0)
            rows, taken = (chances > 0).nonzero(as_tuple=True)
            columns = (s, o, switch == 1, new, action, reward, made)
            turn = tuple(x.expand(chances.shape)[rows, taken] for x in columns)
            turns = [tuple(x[rows] for x in before) for before in turns] + [turn]
            state, old, chances = following[0, taken], new[0, taken], chances[rows, taken]
        return Trajectories(*(torch.stack(parts, 1) for parts in zip(*turns, strict=True)), chances)

    def sample(self, rows: int, generator: torch.Generator) -> Trajectories:
        """Trajectories from the policy, each with the same weight."""

        def draw(p: Tensor) -> Tensor:
            return torch.multinomial(p, 1, generator=generator)[:, 0]

        beta, fresh, act = (logits.softmax(-1) for logits in self.policy)
        state, old, turns = draw(self.start.expand(rows, -1)), torch.zeros(rows, dtype=torch.int64), []
        for t in range(self.horizon):
            switch = (draw(beta[state, old]) if t else torch.ones_like(state)) == 1
            new = torch.where(switch, draw(fresh[state]), old)
            action = draw(act[state, new])
            made = state != self.states - 1
            following = torch.where(made, draw(self.transitions[state, action]), state)
            reward = torch.where(made, self.rewards[state, action, following], 0.0)
            turns.append((state, old, switch, new, action, reward, made))
            state, old = following, new
        columns = (torch.stack(parts, 1) for parts in zip(*turns, strict=True))
        return Trajectories(*columns, torch.full((rows,), 1 / rows, dtype=torch.float64))

    # ---- estimates ------------------------------------------------------------------------------------

    def read(self, values: Values, made: Trajectories) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Along trajectories, ``[rows, turns]``: V_low of the subgoal, V_high, V_low and U of the old one."""
        t = torch.arange(self.horizon)
        before = values.before[t, made.states, made.old]
        before = torch.where(t == 0, values.high[t, made.states], before)
        return (
            values.low[t, made.states, made.subgoals],
            values.high[t, made.states],
            values.low[t, made.states, made.old],
            before,
        )

    def state_values(self, made: Trajectories) -> Tensor:
        """The mean of U over old subgoals, given the state and the turn: what a critic of states can know."""
        *_, before = self.read(self.values(self.policy), made)
        key = torch.arange(self.horizon) * self.states + made.states
        weights = (made.chances[:, None] * made.mask).flatten()
        zeros = torch.zeros(self.horizon * self.states, dtype=torch.float64)
        mass = zeros.index_add(0, key.flatten(), weights)
        return (zeros.index_add(0, key.flatten(), weights * before.flatten()) / mass.clamp(min=1e-300))[key]

    def scores(self, made: Trajectories, switch: Tensor, high: Tensor, low: Tensor) -> Tensor:
        """The gradient of every trajectory, ``[rows, logits]``: that of log-probabilities times advantages.

        With a discount below 1 the exact gradient discounts turns from the first one on, and so do these; in
        practice nobody does.
        """
        rows, time = len(made.states), torch.arange(self.horizon, dtype=torch.float64)
        weights = made.mask * self.discount**time
        chosen = (
            (self.policy.switch, made.states * self.subgoals + made.old, made.switches.long(), switch),
            (self.policy.subgoal, made.states, made.subgoals, high * made.switches),
            (self.policy.action, made.states * self.subgoals + made.subgoals, made.actions, low),
        )
        gradients = []
        for logits, place, choice, advantages in chosen:
            logits = logits.flatten(0, -2)
            one_hot = torch.nn.functional.one_hot(choice, logits.shape[-1])
            per_turn = (one_hot - logits.softmax(-1)[place]) * (advantages * weights)[..., None]
            total = torch.zeros(rows, *logits.shape, dtype=torch.float64)
            total.scatter_add_(1, place[..., None].expand_as(per_turn), per_turn)
            gradients.append(total.flatten(1))
        return torch.cat(gradients, 1)


def flat(policy: Policy | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([logits.flatten() for logits in policy])


def mean_and_variance(scores: Tensor, chances: Tensor) -> tuple[Tensor, float]:
    """The mean gradient, and the trace of the covariance."""
    mean = chances @ scores
    return mean, (chances @ (scores - mean).square().sum(1)).item()
