"""The weights and values of BARL (arXiv 2505.20561), as functions of rewards; nothing here knows a task.

A hypothesis M is a decision process that could be the true one. It says a reward ``r_M`` for every step, and
``Q_M``, what is still to come from there on. Hypotheses lie along the dimension before the last one.
"""

from __future__ import annotations

from torch import Tensor


def log_consistency(observed: Tensor, hypothesised: Tensor, beta: float) -> Tensor:
    """``log prod_{t' < t} exp(-beta |r_t' - r_M,t'|)``, the second factor of equation 5.4.

    Args:
        observed: rewards that came, ``[..., steps]``.
        hypothesised: what each hypothesis said would come, ``[..., hypotheses, steps]``.
        beta: how much a wrong reward counts against a hypothesis, at least 0.

    Returns:
        ``[..., hypotheses, steps]``, what is known in front of every step: 0 at the first.
    """
    errors = (observed.unsqueeze(-2) - hypothesised).abs()
    return -beta * (errors.cumsum(-1) - errors)


def posterior_weights(log_prior: Tensor, observed: Tensor, hypothesised: Tensor, beta: float) -> Tensor:
    """Probabilities of the hypotheses in front of every step, equation 5.4.

    Args:
        log_prior: the first factor, up to a constant, broadcast to ``[..., hypotheses, steps]``: how
            plausible a hypothesis is by what has been written; -inf rules one out.
        observed, hypothesised, beta: as for :func:`log_consistency`.

    Returns:
        ``[..., hypotheses, steps]``, which sum to 1 over hypotheses.
    """
    return (log_prior + log_consistency(observed, hypothesised, beta)).softmax(-2)


def bayes_values(weights: Tensor, returns: Tensor) -> Tensor:
    """``sum_M w_M Q_M`` at every step, ``[..., steps]``: what the log-probability of an action is weighed by
    in equation 5.1.

    Args:
        weights: from :func:`posterior_weights`.
        returns: ``Q_M``, of the shape of weights.
    """
    return (weights * returns).sum(-2)


def answer_values(plausibilities: Tensor, outcomes: Tensor, beta: float | None) -> Tensor:
    """Values of the parts of a thought in the form of the authors' code, where hypotheses are answers.

    The reward of a part is the progress ``p_M(t + 1) - p_M(t)`` in the probability of the answer M, the prior
    is ``p_M(t)``, and what counts as observed is the progress of the true answer. What is still to come is
    ``p_M(T) - p_M(t)``; the outcome is added to the weighted sum.

    Args:
        plausibilities: ``p_M`` in front of every part and behind the last, ``[..., answers, parts + 1]``; the
            true answer is number 0, and an answer with 0 everywhere does not exist.
        outcomes: ``[...]``, 1 where the text gives the right answer and 0 elsewhere.
        beta: as for :func:`log_consistency`; None has all weight on the true answer, the progress reward that
            BARL is compared with.

    Returns:
        ``[..., parts]``.
    """
    before, remaining = plausibilities[..., :-1], plausibilities[..., -1:] - plausibilities[..., :-1]
    if beta is None:
        values = remaining[..., 0, :]
    else:
        rewards = plausibilities.diff(dim=-1)
        values = bayes_values(posterior_weights(before.log(), rewards[..., 0, :], rewards, beta), remaining)
    return values + outcomes[..., None]
