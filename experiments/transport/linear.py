"""OPME on the linear interaction, beside methods that leave out one part of it; many runs at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .interaction import FEATURES, NORM, LinearInteraction
from .moments import Ellipsoid, LinearRisk

DELTA = 0.1  # confidence sets hold the truth with probability 0.9
GROWTH = 0.05  # a policy is planned anew when there are so many more episodes, and at first after each
EPSILON = 0.1  # share of random actions of epsilon-greedy


class Method(NamedTuple):
    """How to estimate, where to plan, and how to explore.

    Attributes:
        estimator: ``iv``, two-stage least squares with ``E_source[phi | s, a]`` as instruments; ``ols``,
            least squares on the feedback; ``table``, the mean reward of every (s, a).
        transport: whether the estimate is pushed through the target population, or through the source.
        explore: ``optimism``, ``greedy`` with a share of random actions, or ``uniform``.
    """

    estimator: str
    transport: bool = True
    explore: str = "optimism"

    @property
    def random(self) -> float:
        """The share of random actions."""
        return {"uniform": 1.0, "greedy": EPSILON, "optimism": 0.0}[self.explore]


METHODS = {
    "opme": Method("iv"),
    "uniform": Method("iv", explore="uniform"),
    "epsilon_greedy": Method("iv", explore="greedy"),
    "ols": Method("ols"),
    "no_transport": Method("iv", transport=False),
    "direct": Method("table", transport=False),
    "direct_uniform": Method("table", transport=False, explore="uniform"),
}


class Episodes:
    """Sums over the episodes so far of each of ``[runs, contexts * actions]``, which all estimators need.

    Attributes:
        powers: of ``e^0 ... e^4``, ``[runs, cells, 5]``.
        products: of ``r, r e, r e^2``, ``[runs, cells, 3]``.
    """

    def __init__(self, runs: int, cells: int):
        self.powers = np.zeros((runs, cells, 2 * FEATURES - 1))
        self.products = np.zeros((runs, cells, FEATURES))

    def add(self, cells: np.ndarray, feedback: np.ndarray, rewards: np.ndarray) -> None:
        """Count episodes in, ``[runs, episodes]`` each."""
        runs, width = self.powers.shape[:2]
        places = (cells + width * np.arange(runs)[:, None]).ravel()

        def total(weights: np.ndarray) -> np.ndarray:
            return np.bincount(places, weights.ravel(), runs * width).reshape(runs, width)

        power = np.ones_like(feedback)
        for i in range(2 * FEATURES - 1):
            self.powers[..., i] += total(power)
            if i < FEATURES:
                self.products[..., i] += total(power * rewards)
            power = power * feedback


class Learner:
    """The estimates of one method in every run."""

    def __init__(self, instance: LinearInteraction, method: Method):
        self.instance, self.method = instance, method
        runs, contexts, actions = instance.shape
        self.episodes = Episodes(runs, contexts * actions)
        self.instruments = instance.mean_features(instance.source).reshape(runs, -1, FEATURES)
        planned = instance.mean_features(instance.target if method.transport else instance.source)
        if method.estimator == "table":
            planned = np.eye(contexts * actions).reshape(1, contexts, actions, -1).repeat(runs, 0)
        self.planned = planned
        self.policies = np.array(list(itertools.product(range(actions), repeat=contexts)))
        self.directions = planned[:, np.arange(contexts), self.policies].mean(2)

    def risk(self) -> LinearRisk:
        powers, products = self.episodes.powers, self.episodes.products
        if self.method.estimator == "iv":
            return self._risk(self.instruments, powers[..., :FEATURES], products[..., 0], powers[..., 0])
        if self.method.estimator == "table":
            cells = self.planned.reshape(len(powers), -1, powers.shape[1])
            return self._risk(cells, cells * powers[..., :1], products[..., 0], powers[..., 0])
        squares = powers.sum(1)[:, np.add.outer(range(FEATURES), range(FEATURES))]
        return LinearRisk.of_sums(squares, products.sum(1), squares)

    def _risk(self, instruments, features, rewards, counts) -> LinearRisk:
        """From sums by cell, for instruments that are constant in one."""
        transposed = np.swapaxes(instruments, 1, 2)
        gram = (transposed * counts[:, None]) @ instruments
        return LinearRisk.of_sums(transposed @ features, (transposed @ rewards[..., None])[..., 0], gram)

    def confidence_set(self) -> Ellipsoid:
        risk = self.risk()
        norm = NORM * (1 if self.method.estimator != "table" else risk.moment.shape[1] ** 0.5)
        return risk.ellipsoid(risk.radius(self.instance.noise, DELTA), norm)

    def estimate(self, found: Ellipsoid) -> np.ndarray:
        """What each (s, a) is thought to pay, ``[runs, contexts, actions]``."""
        return np.einsum("rsaf,rf->rsa", self.planned, found.centre)


class Record(NamedTuple):
    """What a method has come to behind ``episodes``; arrays ``[runs]``.

    Attributes:
        value_error: root mean square over (s, a) of what is thought they pay less what they pay in the target
            population.
        suboptimality: of the policy now in use, in the target population.
        mixture: the mean of that over all episodes: of the mixture of all policies.
        greedy: the same of the policy that the estimate prefers.
        optimism: the value that the set thinks possible, less the optimum.
        covered: 1 where the truth was in all confidence sets, and else 0; NaN for a table, which has no
            theta.
        optimistic: 1 where the value thought possible was at least the optimum as long as the truth was in
            the sets, and else 0; NaN for a table.
    """

    episodes: int
    value_error: np.ndarray
    suboptimality: np.ndarray
    mixture: np.ndarray
    greedy: np.ndarray
    optimism: np.ndarray
    covered: np.ndarray
    optimistic: np.ndarray


def play(
    instance: LinearInteraction, method: Method, checkpoints: Sequence[int], rng: np.random.Generator
) -> Iterator[Record]:
    """Interact up to each checkpoint and tell where things stand there."""
    learner, (runs, contexts, actions) = Learner(instance, method), instance.shape
    paid, judged = instance.rewards(instance.target), method.estimator != "table"
    best = paid.max(2).mean(1)
    each = np.arange(runs)[:, None]

    def short_of_best(policy: np.ndarray) -> np.ndarray:
        return best - paid[each, np.arange(contexts), policy].mean(1)

    covered, optimistic, regret, done = np.ones(runs, bool), np.ones(runs, bool), np.zeros(runs), 0
    for checkpoint in checkpoints:
        while done < checkpoint:
            found = learner.confidence_set()
            possible = found.largest(learner.directions)
            policy = learner.policies[possible.argmax(1)]
            if judged:
                covered &= found.covers(instance.theta)
                optimistic &= ~covered | (possible.max(1) >= best)
            if method.explore == "greedy":
                policy = learner.estimate(found).argmax(2)
            episodes = min(max(1, int(GROWTH * done)), checkpoint - done)
            seen = rng.integers(contexts, size=(runs, episodes))
            random, other = rng.random(seen.shape) < method.random, rng.integers(actions, size=seen.shape)
            taken = np.where(random, other, policy[each, seen])
            feedback, rewards, _ = instance.play(seen, taken, rng)
            learner.episodes.add(seen * actions + taken, feedback, rewards)
            by_chance = best - paid.mean((1, 2))
            short = (1 - method.random) * short_of_best(policy) + method.random * by_chance
            regret += episodes * short
            done += episodes
        found = learner.confidence_set()
        thought = learner.estimate(found)
        yield Record(
            done,
            np.sqrt(np.square(thought - paid).mean((1, 2))),
            short,
            regret / done,
            short_of_best(thought.argmax(2)),
            found.largest(learner.directions).max(1) - best,
            covered.astype(float) if judged else np.full(runs, np.nan),
            optimistic.astype(float) if judged else np.full(runs, np.nan),
        )
