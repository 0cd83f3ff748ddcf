"""OPME over a finite class of models, exactly: every model is planned for, and those that survive compete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .interaction import (
    ACTIONS,
    BAD,
    GOOD,
    HORIZON,
    LEVELS,
    MOVED,
    REWARD_JITTER,
    REWARD_PULL,
    SOURCE,
    STATES,
    FiniteInteraction,
    draw_effect,
    draw_push,
)
from .linear import DELTA, GROWTH
from .moments import finite_radius, finite_risk

# Effects a step, and pushes a step: 8^3 rewards and, as the last push is idle, 8^2 transitions.
CANDIDATES = 8
TRUTH, DECOY = CANDIDATES - 1, 0  # ties go to the first, which is not the truth
PARTS = 2 * HORIZON - 1  # of a model, each with a confidence set
NOISE = float(np.hypot(REWARD_PULL / 2, REWARD_JITTER))  # of rewards, sub-Gaussian by Hoeffding's lemma
METHODS = ("opme", "regression", "no_transport")


class ModelClass:
    """Candidates for what feedback does to rewards and to transitions, and the optimal policy of each model.

    One candidate is the truth, and one is a decoy: the truth and what confounding adds to it in the mean
    given e alone, so that a regression on the feedback takes it for better.

    A model is ``(r1, p1, r2, p2, r3)``, an index of a candidate for each part; arrays of models have these
    five axes.

    Args:
        population: P(t = 1) of the population that is planned for.
    """

    def __init__(self, truth: FiniteInteraction, population: float, rng: np.random.Generator):
        self.truth = truth
        self.effects = np.stack([draw_effect(rng) for _ in range(CANDIDATES)], 1)
        self.pushes = np.stack([draw_push(rng) for _ in range(CANDIDATES)], 1)
        tilt = truth.type_given_feedback()
        self.effects[:, TRUTH], self.effects[:, DECOY] = truth.effect, truth.effect + REWARD_PULL * tilt
        self.pushes[:, TRUTH] = truth.push
        self.pushes[:, DECOY] = np.clip(truth.push + MOVED / SOURCE * tilt, -MOVED, MOVED)
        self._plan(truth.feedback_law(population))
        law = truth.feedback_law(truth.source)
        self.tests = (self.values[1].reshape(-1, STATES), self.values[2])  # what comes behind steps 1 and 2
        self.discriminators = [_differences(law, effects) for effects in self.effects]
        self.push_discriminators = [_differences(law, pushes) for pushes in self.pushes[:-1]]

    def _plan(self, law: np.ndarray) -> None:
        """Dynamic programming for all models at once; what a step decides depends on later parts alone."""
        rewards = self.truth.plain[:, None] + np.einsum("sae,hje->hjsa", law, self.effects)
        moved = np.einsum("sae,hje->hjsa", law, self.pushes)
        chances = np.repeat(self.truth.still[:, None], CANDIDATES, 1)
        chances[..., GOOD] += moved
        chances[..., BAD] -= moved
        actions, values = [rewards[2]], [rewards[2].max(-1)]
        for h in (1, 0):
            following = np.einsum("jsax,...x->j...sa", chances[h], values[0])
            shape = (CANDIDATES, *(1,) * (following.ndim - 2), STATES, ACTIONS)
            q = rewards[h].reshape(shape) + following
            actions.insert(0, q)
            values.insert(0, q.max(-1))
        self.actions = [q.argmax(-1) for q in actions]  # axes: the parts from that step on, then states
        self.values = values
        self.optimal_values = values[0].mean(-1)

    def policy(self, model: tuple[int, ...]) -> np.ndarray:
        """The optimal policy of a model, ints ``[horizon, states]``."""
        return np.stack([self.actions[h][model[2 * h :]] for h in range(HORIZON)])

    # ---- confidence sets ------------------------------------------------------------------------------

    def minimax_sets(self, seen: Tally) -> list[np.ndarray]:
        """Candidates of every part, in the order of a model's, whose minimax risk is within the radius."""
        sets = []
        for h in range(HORIZON):
            risks = self._reward_risk(seen, h) / NOISE**2
            sets.append(_within(risks, finite_radius(1.0, CANDIDATES**2, DELTA / PARTS)))
            if h < HORIZON - 1:
                tests = self.tests[h]
                risks = self._transition_risk(seen, h, tests)
                sets.append(_within(risks, finite_radius(1.0, len(tests) * CANDIDATES**2, DELTA / PARTS)))
        return sets

    def _reward_risk(self, seen: Tally, h: int) -> np.ndarray:
        visits = seen.counts[h].sum(-1)
        residuals = visits.sum(-1) * self.truth.plain[h] - seen.rewards[h].sum(-1)
        residuals = residuals + np.einsum("sae,je->jsa", visits, self.effects[h])
        return finite_risk(residuals.reshape(CANDIDATES, -1), visits.sum(-1).ravel(), self.discriminators[h])

    def _transition_risk(self, seen: Tally, h: int, tests: np.ndarray) -> np.ndarray:
        """The largest over test functions, each in units of its own noise: g(s') varies by its range."""
        tests = tests / np.ptp(tests, axis=1, keepdims=True)
        visits, following = seen.counts[h].sum(-1), seen.counts[h].sum(2)
        still = visits.sum(-1)[..., None] * self.truth.still[h] - following
        pushed = np.einsum("sae,je->jsa", visits, self.pushes[h]).reshape(CANDIDATES, -1)
        reach = (tests[:, GOOD] - tests[:, BAD])[:, None, None]
        residuals = (tests @ still.reshape(-1, STATES).T)[:, None] + reach * pushed
        discriminators = reach * self.push_discriminators[h]
        return finite_risk(residuals, visits.sum(-1).ravel(), discriminators).max(0)

    def regression_sets(self, seen: Tally) -> list[np.ndarray]:
        """The same from squared errors of rewards, and likelihoods of next states, given the feedback."""
        room, sets = np.log(CANDIDATES * PARTS / DELTA), []
        for h in range(HORIZON):
            visits = seen.counts[h].sum(-1)
            thought = self.truth.plain[h][..., None] + self.effects[h][:, None, None]
            squares = (visits * np.square(thought) - 2 * thought * seen.rewards[h]).sum((1, 2, 3))
            sets.append(_within((squares - squares.min()) / (2 * NOISE**2), room))
            if h < HORIZON - 1:
                chances = np.broadcast_to(
                    self.truth.still[h][:, :, None], (CANDIDATES, STATES, ACTIONS, LEVELS, STATES)
                ).copy()
                chances[..., GOOD] += self.pushes[h][:, None, None]
                chances[..., BAD] -= self.pushes[h][:, None, None]
                likely = (seen.counts[h] * np.log(chances)).sum((1, 2, 3, 4))
                sets.append(_within(likely.max() - likely, room))
        return sets


class Tally:
    """What was seen of every step: episodes by (s, a, e, s'), and sums of rewards by (s, a, e)."""

    def __init__(self):
        self.counts = np.zeros((HORIZON, STATES, ACTIONS, LEVELS, STATES))
        self.rewards = np.zeros((HORIZON, STATES, ACTIONS, LEVELS))

    def add(self, steps: list[tuple]) -> None:
        for h, (states, actions, feedback, rewards, following) in enumerate(steps):
            np.add.at(self.counts[h], (states, actions, feedback, following), 1)
            np.add.at(self.rewards[h], (states, actions, feedback), rewards)


def play(
    truth: FiniteInteraction, method: str, checkpoints: Sequence[int], seed: int
) -> Iterator[dict[str, Any]]:
    """Interact up to each checkpoint and tell where things stand there.

    Args:
        method: ``opme``; ``regression``, with sets that ignore confounding; ``no_transport``, which plans for
            the source.

    Returns:
        ``episodes``; ``survivors``, models in the set; ``value_error``, of the optimal value of the model
        that was chosen; ``suboptimality`` and ``mixture`` of policies in the target population;
        ``optimism``, that value less the optimum; ``covered`` and ``optimistic`` as in the linear
        interaction.
    """
    rng = np.random.default_rng((seed, 1))  # of the class: the same candidates for all methods
    judge = ModelClass(truth, truth.target, rng)
    planner = judge
    if method == "no_transport":
        planner = ModelClass(truth, truth.source, np.random.default_rng((seed, 1)))
    true_model = (TRUTH,) * PARTS
    best = judge.optimal_values[true_model]
    rng, seen, regret, done = np.random.default_rng((seed, 2)), Tally(), 0.0, 0
    covered = optimistic = True
    for checkpoint in checkpoints:
        while done < checkpoint:
            sets = planner.regression_sets(seen) if method == "regression" else planner.minimax_sets(seen)
            possible = np.where(_product(sets), planner.optimal_values, -np.inf)
            model = np.unravel_index(possible.argmax(), possible.shape)
            covered = covered and all(kept[TRUTH] for kept in sets)
            optimistic = optimistic and (not covered or possible.max() >= best)
            policy = planner.policy(model)
            short = best - policy_value(truth, policy, truth.target)
            episodes = min(max(1, int(GROWTH * done)), checkpoint - done)
            seen.add(truth.play(policy, episodes, rng))
            regret += episodes * short
            done += episodes
        yield {
            "episodes": done,
            "survivors": int(_product(sets).sum()),
            "value_error": float(abs(possible.max() - best)),
            "suboptimality": float(short),
            "mixture": float(regret / done),
            "optimism": float(possible.max() - best),
            "covered": float(covered),
            "optimistic": float(optimistic),
        }


def policy_value(truth: FiniteInteraction, policy: np.ndarray, population: float) -> float:
    """What a policy ``[horizon, states]`` pays in the aggregated model of a population."""
    law, states, value = truth.feedback_law(population), np.arange(STATES), np.zeros(STATES)
    for h in reversed(range(HORIZON)):
        chosen = law[states, policy[h]]
        pushed = (chosen @ truth.push[h]) * (value[GOOD] - value[BAD])
        reward = truth.plain[h, states, policy[h]] + chosen @ truth.effect[h]
        value = reward + truth.still[h, states, policy[h]] @ value + pushed
    return float(value.mean())


def _differences(law: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """``E[c - c' | s, a]`` for all pairs of candidates ``[count, levels]``: ``[count^2, cells]``."""
    projected = candidates @ law.reshape(-1, LEVELS).T
    return (projected[:, None] - projected[None]).reshape(-1, projected.shape[1])


def _within(risks: np.ndarray, radius: float) -> np.ndarray:
    """The candidates within the radius, or the best if there are none."""
    return risks <= max(radius, risks.min())


def _product(sets: list[np.ndarray]) -> np.ndarray:
    """Models all of whose parts are kept, bool with an axis a part."""
    kept = sets[0]
    for more in sets[1:]:
        kept = kept[..., None] & more
    return kept
