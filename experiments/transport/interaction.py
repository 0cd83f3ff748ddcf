"""The interaction of a principal with agents of private type (arXiv 2506.09940, section 3).

At every step the principal sees s and plays a. An agent of private type t, drawn from the population, plays
the private action b that is best for itself, and hands in the feedback e. Reward and next state depend on
(s, a, e) and on t, so that what is left of the reward, xi, goes with e, though it has mean zero given (s, a)
in the source population. The principal knows the populations and the law of e, and sees s, a, e, r and s'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SOURCE, TARGET = 0.8, 0.2  # P(t = 1) where data comes from, and where policies are judged
FEATURES = 3  # 1, e, e^2
NORM = 1.5  # of the unknown coefficients of the reward; the principal knows it
BLUR, JITTER, PULL = 0.5, 0.3, 1.5  # standard deviations of e and of xi, and what a type adds to xi


def best_action(gain: np.ndarray, types: np.ndarray) -> np.ndarray:
    """The private action: ``argmax_b gain t b - b^2 / 2``, which is ``gain t``."""
    return gain * types


def features(feedback: np.ndarray) -> np.ndarray:
    """``(1, e, e^2)`` along a new last axis."""
    return np.stack([np.ones_like(feedback), feedback, np.square(feedback)], -1)


@dataclass(frozen=True)
class LinearInteraction:
    """One step (H = 1) with a reward that is linear in ``(1, e, e^2)``; as many instances as there are runs.

    ``e = base[s, a] + b + 0.5 N`` with ``b = gain[s, a] t``, and ``r = theta . (1, e, e^2) + xi`` with
    ``xi = 1.5 confounding (t - source) + 0.3 N``. Contexts s are uniform.

    Attributes:
        base, gain: ``[runs, contexts, actions]``.
        theta: ``[runs, 3]``, of norm at most ``NORM``.
        confounding: how much xi goes with the type; 0 is not at all.
        source, target: P(t = 1).
    """

    base: np.ndarray
    gain: np.ndarray
    theta: np.ndarray
    confounding: float = 1.0
    source: float = SOURCE
    target: float = TARGET

    @classmethod
    def draw(
        cls, runs: int, contexts: int, actions: int, rng: np.random.Generator, *, spread: float = 1.0, **more
    ) -> LinearInteraction:
        """Random instances. A small ``spread`` makes e depend little on (s, a): a weak instrument.

        Args:
            more: the other attributes.
        """
        shape = (runs, contexts, actions)
        theta = rng.standard_normal((runs, FEATURES))
        theta *= NORM / np.linalg.norm(theta, axis=1, keepdims=True)
        base, gain = rng.uniform(-1, 1, shape), rng.uniform(-0.7, 0.7, shape)
        return cls(spread * base, 0.8 + spread * gain, theta, **more)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Runs, contexts, actions."""
        return self.base.shape

    @property
    def noise(self) -> float:
        """A number sigma such that xi is sigma-sub-Gaussian given (s, a): Hoeffding's lemma for t."""
        return np.hypot(JITTER, PULL * self.confounding / 2)

    def mean_features(self, population: float) -> np.ndarray:
        """``E[(1, e, e^2) | s, a]`` where P(t = 1) is ``population``, ``[runs, contexts, actions, 3]``."""
        means = [features(self.base + best_action(self.gain, t)) for t in (0, 1)]
        mean = (1 - population) * means[0] + population * means[1]
        return mean + np.array([0, 0, BLUR**2])

    def rewards(self, population: float) -> np.ndarray:
        """``E[R*(s, a, e) | s, a]``, ``[runs, contexts, actions]``."""
        return np.einsum("rsaf,rf->rsa", self.mean_features(population), self.theta)

    def play(
        self, contexts: np.ndarray, actions: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Feedback, rewards and xi of episodes in the source population, each as ``actions``.

        Args:
            contexts, actions: ints ``[runs, episodes]``.
        """
        runs = np.arange(len(self.base))[:, None]
        types = (rng.random(actions.shape) < self.source).astype(float)
        private = best_action(self.gain[runs, contexts, actions], types)
        blur, jitter = rng.standard_normal((2, *actions.shape))
        feedback = self.base[runs, contexts, actions] + private + BLUR * blur
        noise = PULL * self.confounding * (types - self.source) + JITTER * jitter
        intercept, slope, bend = self.theta.T[..., None]
        return feedback, intercept + feedback * (slope + bend * feedback) + noise, noise


# ---- the finite model with three steps --------------------------------------------------------------

HORIZON, STATES, ACTIONS, LEVELS = 3, 6, 3, 5  # steps, |S|, |A| and |E|
GOOD, BAD = STATES - 1, 0  # the states between which feedback and type move probability
MOVED = 0.12  # of it, at most, by either
REWARD_PULL, REWARD_JITTER = 0.5, 0.1  # what a type adds to xi, and the largest noise beside


@dataclass(frozen=True)
class FiniteInteraction:
    """Three steps with finitely many states, actions and levels of feedback, and confounded transitions.

    ``R_h(s, a, e) = plain[h, s, a] + effect[h, e]`` and
    ``P_h(. | s, a, e) = still[h, s, a] + push[h, e] (1[good] - 1[bad])``; the type adds
    ``0.5 (t - source)`` to the reward and moves ``0.15 (t - source)`` from the bad state to the good one, so
    that neither has an effect in the mean of the source population. The rewards of the first state are 0: it
    starts there.

    Attributes:
        plain: ``[horizon, states, actions]``.
        effect: ``[horizon, levels]``.
        still: ``[horizon, states, actions, states]``, rows sum to 1.
        push: ``[horizon, levels]``, at most ``MOVED`` in size.
        law: ``[2, states, actions, levels]``, the law of e by type: a level that is random and the private
            action.
    """

    plain: np.ndarray
    effect: np.ndarray
    still: np.ndarray
    push: np.ndarray
    law: np.ndarray
    source: float = SOURCE
    target: float = TARGET

    @classmethod
    def draw(cls, rng: np.random.Generator) -> FiniteInteraction:
        """A random instance, in which good states pay."""
        plain = 0.3 * rng.random((HORIZON, STATES, ACTIONS)) + 0.3 * np.linspace(0, 1, STATES)[:, None]
        ends = np.where(np.isin(np.arange(STATES), (GOOD, BAD)), 0.4, 0.05)
        still = 0.35 * rng.dirichlet(np.ones(STATES), (HORIZON, STATES, ACTIONS)) + 0.65 * ends
        gain = rng.integers(0, 3, (STATES, ACTIONS))
        own = rng.dirichlet(np.full(LEVELS - 2, 0.5), (STATES, ACTIONS))  # levels 0, 1, 2; b adds 0, 1 or 2
        law = np.zeros((2, STATES, ACTIONS, LEVELS))
        for kind in (0, 1):
            private = best_action(gain, np.full_like(gain, kind))
            for level in range(LEVELS - 2):
                at = np.take_along_axis(law[kind], (level + private)[..., None], -1)
                np.put_along_axis(law[kind], (level + private)[..., None], at + own[..., level, None], -1)
        return cls(plain, draw_effect(rng), still, draw_push(rng), law)

    def feedback_law(self, population: float) -> np.ndarray:
        """``P(e | s, a)`` where P(t = 1) is ``population``, ``[states, actions, levels]``."""
        return (1 - population) * self.law[0] + population * self.law[1]

    def type_given_feedback(self) -> np.ndarray:
        """``E[t - source | e]`` in the source population with uniform states and actions, ``[levels]``."""
        joint = self.source * self.law[1].mean((0, 1))
        return joint / self.feedback_law(self.source).mean((0, 1)) - self.source

    def play(self, policy: np.ndarray, episodes: int, rng: np.random.Generator) -> list[tuple]:
        """Episodes in the source population, from a uniform first state.

        Args:
            policy: ints ``[horizon, states]``.

        Returns:
            For every step: states, actions, feedback, rewards and next states, ``[episodes]`` each.
        """
        states, steps = rng.integers(STATES, size=episodes), []
        for h in range(HORIZON):
            actions = policy[h, states]
            types = (rng.random(episodes) < self.source).astype(int)
            feedback = _choose(self.law[types, states, actions], rng)
            tilt = types - self.source
            jitter = rng.uniform(-REWARD_JITTER, REWARD_JITTER, episodes)
            rewards = self.plain[h, states, actions] + self.effect[h, feedback] + REWARD_PULL * tilt + jitter
            chances = self.still[h, states, actions].copy()
            moved = self.push[h, feedback] + MOVED / SOURCE * tilt
            chances[:, GOOD] += moved
            chances[:, BAD] -= moved
            following = _choose(chances, rng)
            steps.append((states, actions, feedback, rewards, following))
            states = following
        return steps


def draw_effect(rng: np.random.Generator) -> np.ndarray:
    """What feedback adds to rewards, in every step: ``[horizon, levels]``."""
    return rng.uniform(-0.4, 0.4, (HORIZON, LEVELS))


def draw_push(rng: np.random.Generator) -> np.ndarray:
    """What feedback moves from the bad state to the good one, in every step: ``[horizon, levels]``."""
    return rng.uniform(-MOVED, MOVED, (HORIZON, LEVELS))


def _choose(chances: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One index a row of probabilities."""
    return (rng.random((len(chances), 1)) > chances[:, :-1].cumsum(1)).sum(1)
