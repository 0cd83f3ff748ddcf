"""The psi-step: a model Q of rationales that give the right answer, by policy gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flashlla.models import LanguageModel, PolicyConfig, PolicyModel, training
from flashlla.models.rl import (
    clipped_surrogate,
    clipped_value_loss,
    generalized_advantages,
    group_normalized,
    leave_one_out,
    rewards_to_go,
    rollout,
    taken_log_probs,
    token_log_probs,
    whiten,
)

from ..common.training import train_policy

UPDATES = 2  # of the model for every draw
LOWEST = -10.0  # log-probabilities of the reference in the reward, at least
CORRECT = (
    10.0  # R / beta of variant ii, where an answer is drawn: what a wrong one costs in variant i at most
)
PARTS = 5  # of the steps; measured behind each


class Estimator(NamedTuple):
    """How rewards become advantages.

    Attributes:
        advantages: from rewards and values, ``[prompts, samples, steps]`` each, to advantages.
        critic: weight of the loss of the values.
    """

    advantages: Callable[[Tensor, Tensor], Tensor]
    critic: float = 0.0


ESTIMATORS = {
    "leave_one_out": Estimator(lambda rewards, values: leave_one_out(rewards_to_go(rewards), dim=1)),
    "grpo": Estimator(
        lambda rewards, values: group_normalized(rewards.sum(-1, keepdim=True), dim=1).expand_as(rewards)
    ),
    "ppo": Estimator(
        lambda rewards, values: whiten(
            generalized_advantages(rewards, values), torch.ones_like(rewards, dtype=torch.bool)
        ),
        critic=0.5,
    ),
}


class Problem(NamedTuple):
    """Prompts ``[count, links + 2]`` with their answers ``[count, 2]``, and the links of a rationale."""

    prompts: Tensor
    answers: Tensor
    links: int

    def some(self, count: int, generator: torch.Generator) -> Problem:
        """So many different ones."""
        chosen = torch.randperm(len(self.prompts), generator=generator)[:count].to(self.prompts.device)
        return self._replace(prompts=self.prompts[chosen], answers=self.answers[chosen])


def token_rewards(
    reference: LanguageModel,
    tokens: Tensor,
    log_probs: Tensor,
    answers: Tensor,
    links: int,
    *,
    verifier: bool,
) -> Tensor:
    """Rewards of the drawn tokens, entropy included: their sum is log P(z, y, o) - log Q.

    Args:
        reference: P, frozen.
        tokens: prompts and what was drawn: a rationale, with a verifier an answer as well.
        log_probs: of the drawn tokens under Q, ``[rows, steps]``.
        answers: the right ones, ``[rows, 2]``.
        verifier: variant ii, in which the answer is drawn and judged; else variant i, in which the right
            answer follows and is scored by P.

    Returns:
        ``[rows, steps]``.
    """
    start, drawn = links + 2, log_probs.shape[1]
    texts = tokens if verifier else torch.cat([tokens, answers], 1)
    likely = taken_log_probs(reference, texts, start).clamp(min=LOWEST)
    rewards = likely[:, :drawn] - log_probs
    right = (tokens[:, -2:] == answers).all(1)
    last = CORRECT * right if verifier else likely[:, drawn:].sum(1)
    rewards[:, -1] += last
    return rewards


def learn_posterior(
    reference: LanguageModel,
    problem: Problem,
    folder: Path,
    *,
    estimator: str,
    verifier: bool,
    steps: int,
    prompts: int,
    samples: int,
    learning_rate: float,
    seed: int,
    measure: Callable[[LanguageModel], dict[str, float]],
) -> tuple[LanguageModel, list[dict[str, Any]]]:
    """Train a copy of the reference towards ``Q(z | x) ~ P(z, y* | x)``.

    Args:
        folder: one that was interrupted goes on from the checkpoint there.
        estimator: a key of ESTIMATORS.
        steps: draws, each of ``prompts`` problems with ``samples`` texts, and with two updates behind it.
        measure: numbers that are asked for behind every part of the steps.

    Returns:
        Q, and a record for every measurement, with the ``step``, counted in draws.
    """
    policy = PolicyModel(PolicyConfig(**reference.config.to_dict())).to(problem.prompts.device)
    policy.actor.load_state_dict(reference.state_dict())
    how, length = ESTIMATORS[estimator], problem.links + 2 * verifier

    def draw(step: int) -> list[tuple[Tensor, ...]]:
        batch = _draw(policy, reference, problem, how, length, verifier, prompts, samples, (seed, step))
        return UPDATES * [batch]

    history = train_policy(
        policy,
        lambda policy, batch: _loss(policy, problem.links + 2, how.critic, *batch),
        draw,
        folder,
        draws=steps,
        updates=UPDATES,
        learning_rate=learning_rate,
        seed=seed,
        weight_decay=0.0,
        evaluate=lambda policy, step: measure(policy.actor),
        evaluate_every=max(1, steps // PARTS),
    )
    return policy.actor.eval(), history.evaluations


def _draw(policy, reference, problem, how, length, verifier, prompts, samples, seeds) -> tuple[Tensor, ...]:
    """Texts, log-probabilities, values, advantages and what the values should be; a row a text."""
    chosen = problem.some(prompts, training.batch_generator(*seeds, 0))
    device = problem.prompts.device
    generator = torch.Generator(device).manual_seed(training.batch_seed(*seeds, 1))
    out = rollout(policy.actor, chosen.prompts, length, samples=samples, generator=generator)
    answers = chosen.answers.repeat_interleave(samples, 0)
    with torch.no_grad():
        rewards = token_rewards(
            reference, out.tokens, out.log_probs, answers, problem.links, verifier=verifier
        )
        values = torch.zeros_like(rewards)
        if how.critic:
            values = policy.value_head(_hidden(policy, out.tokens, out.start))[..., 0]
    grouped = (t.unflatten(0, (-1, samples)) for t in (rewards, values))
    advantages = how.advantages(*grouped).flatten(0, 1)
    targets = generalized_advantages(rewards, values) + values
    return out.tokens, out.log_probs, values, advantages, targets


def _loss(
    policy: PolicyModel, start: int, critic: float, tokens, old, old_values, advantages, targets
) -> Tensor:
    hidden = _hidden(policy, tokens, start)
    log_probs = token_log_probs(policy.actor.logits(hidden), tokens[:, start:])
    values = policy.value_head(hidden.detach())[..., 0]  # errors of values would swamp what trains the actor
    surrogate = clipped_surrogate(log_probs, old, advantages)
    return (surrogate + critic * clipped_value_loss(values, old_values, targets)).mean()


def _hidden(policy: PolicyModel, tokens: Tensor, start: int) -> Tensor:
    """What stands in front of the tokens from ``start`` on."""
    return policy.actor.hidden(tokens[:, :-1])[:, start - 1 :]
