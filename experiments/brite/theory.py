"""The theory of the paper where everything can be enumerated: no network, float64."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

OUTCOMES, FEATURES = 24, 4  # pairs of rationale and answer, and numbers that describe one
GRID = np.linspace(-4, 4, 13)  # rationales, and answers, of an instance with a concave objective
STEPS = 30  # of generalised EM
TREE = (3, 3, 3)  # choices of a token at each of three places
NEWTON_STEPS, NEWTON_ERROR = 50, 1e-12


class LogLinear:
    """``P(w) = exp(theta . phi(w) + b(w) - A(theta))`` over few w, and a soft signal ``P(o | w)`` in (0, 1].

    This is Assumption 3.2 of the paper with a finite number of features. The signal is soft because with an
    indicator the best theta is at infinity.

    Args:
        features: ``[outcomes, features]``.
        signal: ``[outcomes]``, log-probabilities of the evaluation signal.
        base: ``[outcomes]``, b.
    """

    def __init__(self, features: np.ndarray, signal: np.ndarray, base: np.ndarray):
        self.features, self.signal, self.base = features, signal, base

    @classmethod
    def draw(cls, seed: int) -> LogLinear:
        rng = np.random.default_rng(seed)
        return cls(rng.normal(size=(OUTCOMES, FEATURES)), -rng.exponential(size=OUTCOMES), np.zeros(OUTCOMES))

    @classmethod
    def draw_concave(cls, seed: int) -> LogLinear:
        """w is a point of a grid, and its own features; P is a bell that theta moves, and so is the signal.

        The posterior is then narrower than P, which is what makes the objective concave.
        """
        rng = np.random.default_rng(seed)
        grid = np.stack(np.meshgrid(GRID, GRID), -1).reshape(-1, 2)
        away, widths = grid - rng.uniform(-1, 1, size=2), rng.uniform(0.5, 2, size=2)
        return cls(grid, -np.square(away / widths).sum(1) / 2, -np.square(grid).sum(1) / 2)

    def log_p(self, theta: np.ndarray) -> np.ndarray:
        scores = self.features @ theta + self.base
        return scores - logsumexp(scores)

    def objective(self, theta: np.ndarray) -> float:
        """``L(theta) = log sum_w P(w, o)``."""
        return logsumexp(self.log_p(theta) + self.signal)

    def posterior(self, theta: np.ndarray) -> np.ndarray:
        """The E-step: log-probabilities of the q that is proportional to ``P(w, o)``."""
        joint = self.log_p(theta) + self.signal
        return joint - logsumexp(joint)

    def fit(self, q: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """The M-step, ``argmax_theta E_q[log P(w)]``, by Newton's method: the means of the features agree."""
        target = np.exp(q) @ self.features
        for _ in range(NEWTON_STEPS):
            p = np.exp(self.log_p(theta))
            mean = p @ self.features
            covariance = (self.features * p[:, None]).T @ self.features - np.outer(mean, mean)
            theta = theta + np.linalg.solve(covariance, target - mean)
            if np.abs(target - mean).max() < NEWTON_ERROR:
                break
        return theta

    def curvature(self, theta: np.ndarray) -> float:
        """The largest eigenvalue of the objective's Hessian; it is concave where this is not positive."""
        after, before = np.exp(self.posterior(theta)), np.exp(self.log_p(theta))
        hessian = np.cov(self.features.T, aweights=after, ddof=0) - np.cov(
            self.features.T, aweights=before, ddof=0
        )
        return np.linalg.eigvalsh(hessian)[-1]

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        """Of the objective."""
        return (np.exp(self.posterior(theta)) - np.exp(self.log_p(theta))) @ self.features

    def best(self, theta: np.ndarray) -> np.ndarray:
        """Where the objective is largest, searched from ``theta``."""
        return minimize(
            lambda t: -self.objective(t), theta, jac=lambda t: -self.gradient(t), options={"gtol": 1e-10}
        ).x


def kl(log_p: np.ndarray, log_q: np.ndarray) -> float:
    """``KL(p || q)`` from log-probabilities."""
    return float(np.exp(log_p) @ (log_p - log_q))


def variational_error(seed: int, trials: int = 20) -> float:
    """Lemma 3.1, ``log sum_w P_w = max_q E_q[log P_w - log q(w)]``: the largest error of two equalities.

    At the optimal q both sides are equal, and at any other q they differ by ``KL(q || optimum)``.
    """
    rng = np.random.default_rng(seed)
    log_weights = rng.normal(size=OUTCOMES)
    total = logsumexp(log_weights)
    optimum = log_weights - total
    others = np.log(rng.dirichlet(np.ones(OUTCOMES), size=trials))
    gaps = [total - np.exp(q) @ (log_weights - q) - kl(q, optimum) for q in (optimum, *others)]
    return float(np.abs(gaps).max())


def soft_optimum(rewards: Sequence[np.ndarray], beta: float) -> np.ndarray:
    """Log-probabilities of whole texts under the best policy of the entropy-regularised MDP over tokens.

    Soft value iteration from the last token to the first, which knows nothing of whole texts.

    Args:
        rewards: of the h-th token, ``[choices] * h``, for h = 1, 2, ...: by all tokens up to this one.

    Returns:
        ``[choices] * len(rewards)``.
    """
    value: np.ndarray = np.zeros(rewards[-1].shape)
    policies = []
    for reward in reversed(rewards):
        q = reward + value
        value = beta * logsumexp(q / beta, axis=-1)
        policies.append((q - value[..., None]) / beta)
    shape = rewards[-1].shape
    whole = (np.expand_dims(p, tuple(range(p.ndim, len(shape)))) for p in policies)
    return sum(np.broadcast_to(p, shape) for p in whole)


def token_tree_error(seed: int) -> float:
    """Proposition 3.7, ``pi*(a_1 ... a_H) ~ exp(sum_h r_h / beta)``: the largest error of a probability."""
    rng = np.random.default_rng(seed)
    rewards = [rng.normal(size=TREE[:h]) for h in range(1, len(TREE) + 1)]
    beta = rng.uniform(0.3, 3.0)
    returns = sum(np.expand_dims(r, tuple(range(r.ndim, len(TREE)))) for r in rewards)
    wanted = softmax(returns.ravel() / beta).reshape(TREE)
    return float(np.abs(np.exp(soft_optimum(rewards, beta)) - wanted).max())


def exact_em(model: LogLinear) -> dict[str, float]:
    """Generalised EM with exact steps from theta = 0, and how the inequalities of the paper stand.

    Returns:
        ``smallest_gain``, of the objective in one step; ``smallest_slack``, of
        ``L_{t+1} - L_t - KL(P_{t+1} || P_t)``; ``largest_sum``, over T of ``T min_t KL(P_{t+1} || P_t)`` over
        ``L_{T+1} - L_1`` (Theorem D.3: at most 1); ``largest_rate``, over T of ``T (L* - max_t L_t)`` over
        ``KL(P* || P_1)`` (Theorem 3.3, for concave objectives: at most 1); ``curvature``, the largest
        eigenvalue of the Hessian on the way and on the line to the optimum.
    """
    thetas = [np.zeros(model.features.shape[1])]
    for _ in range(STEPS):
        thetas.append(model.fit(model.posterior(thetas[-1]), thetas[-1]))
    best = model.best(thetas[-1])
    objectives = np.array([model.objective(theta) for theta in thetas])
    log_p = [model.log_p(theta) for theta in thetas]
    steps = np.array([kl(after, before) for before, after in pairwise(log_p)])
    gains, counts = np.diff(objectives), np.arange(1, STEPS + 1)
    left = model.objective(best) - np.maximum.accumulate(objectives)[1:]
    line = [share * best for share in np.linspace(0, 1, 21)]
    return {
        "smallest_gain": gains.min(),
        "smallest_slack": (gains - steps).min(),
        "largest_sum": (counts * np.minimum.accumulate(steps) / (objectives[1:] - objectives[0])).max(),
        "largest_rate": (counts * left).max() / kl(model.log_p(best), log_p[0]),
        "curvature": max(map(model.curvature, (*thetas, *line))),
    }


def rows(instances: int) -> list[dict[str, Any]]:
    """A row for every instance: errors of the two equalities, and EM on an objective of either kind."""
    found = []
    for seed in range(instances):
        equalities = {"lemma_error": variational_error(seed), "proposition_error": token_tree_error(seed)}
        for concave in (False, True):
            model = LogLinear.draw_concave(seed) if concave else LogLinear.draw(seed)
            em = {name: float(value) for name, value in exact_em(model).items()}
            found.append({"kind": "theory", "instance": seed, "concave": concave, **equalities, **em})
    return found
