"""GRPO on whole episodes: every answer of an episode shares the advantage of the episode in its group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flashlla.models import LanguageModel, training
from flashlla.models.rl import (
    Response,
    clipped_surrogate,
    constrained_log_probs,
    group_normalized,
    kl_estimate,
    masked_mean,
)

from ..common.training import History, train_policy
from ..worlds import WorldVectorEnv
from .domains import episode_seeds
from .episodes import Episodes, play

CONSTANT_RATE = {"warmup": 0.0, "floor": 1.0, "weight_decay": 0.0}  # so that longer runs begin alike


@dataclass(frozen=True)
class Recipe:
    """How a policy is trained.

    Attributes:
        draws: how often episodes are played.
        groups, samples: of a draw: beginnings, and episodes from each.
        updates: behind every draw.
        states: turns of an update at most.
        learning_rate: of AdamW.
        kl: weight of the KL to the reference.
        evaluate_every: draws between two evaluations.
    """

    draws: int
    groups: int
    samples: int
    updates: int
    states: int
    learning_rate: float
    kl: float
    evaluate_every: int


def learn(
    reference: LanguageModel,
    env: WorldVectorEnv,
    folder: Path,
    recipe: Recipe,
    *,
    seed: int,
    evaluate: Callable[[LanguageModel], Mapping[str, float]],
) -> tuple[LanguageModel, History]:
    """Train a copy of the reference in one world.

    Args:
        env: with ``groups * samples`` rows.
        folder: one that was interrupted goes on from the checkpoint there.
        evaluate: numbers that are asked for on the way.
    """
    policy = deepcopy(reference)
    device = policy.embedding.weight.device

    def draw(step: int) -> list[tuple[Response, Tensor, Tensor]]:
        seeds = episode_seeds(seed, "training", recipe.groups, step).repeat(recipe.samples)
        generator = torch.Generator(device).manual_seed(training.batch_seed(seed, step, 1))
        episodes = play(policy, env, seeds, generator)
        chosen = training.batch_generator(seed, step, 2)
        return batches(episodes, reference, recipe, chosen)

    history = train_policy(
        policy,
        lambda policy, batch: grpo_loss(policy, *batch, recipe.kl),
        draw,
        folder,
        draws=recipe.draws,
        updates=recipe.updates,
        learning_rate=recipe.learning_rate,
        seed=seed,
        evaluate=lambda policy, step: evaluate(policy),
        evaluate_every=recipe.evaluate_every,
        **CONSTANT_RATE,
    )
    return policy.eval(), history


def batches(
    episodes: Episodes, reference: LanguageModel, recipe: Recipe, generator: torch.Generator
) -> list[tuple[Response, Tensor, Tensor]]:
    """Turns, their advantages ``[turns]`` and what the reference thinks of them, for every update.

    Groups whose episodes all end alike have no advantage and are left out, unless there are no others.
    """
    advantages = episode_advantages(episodes.success, recipe.samples)[episodes.episode]
    (useful,) = torch.nonzero(advantages, as_tuple=True)
    if len(useful) < recipe.updates:
        useful = torch.arange(len(advantages))
    order = useful[torch.randperm(len(useful), generator=generator)]
    found = []
    for rows in order[: recipe.updates * recipe.states].tensor_split(recipe.updates):
        turns = trimmed(episodes.turns.select(rows.to(episodes.turns.tokens.device)))
        with torch.no_grad():
            before = constrained_log_probs(reference, turns)
        found.append((turns, advantages[rows].to(before), before))
    return found


def episode_advantages(success: Tensor, samples: int) -> Tensor:
    """From successes ``[groups * samples]``, neighbours in a group, to advantages of the same shape."""
    return group_normalized(success.float().view(-1, samples)).flatten()


def trimmed(turns: Response) -> Response:
    """Without the padding that all rows have at their end."""
    width = int((turns.lengths + turns.mask.sum(1)).max())
    return turns._replace(tokens=turns.tokens[:, :width])


def grpo_loss(
    policy: LanguageModel, turns: Response, advantages: Tensor, reference: Tensor, kl: float
) -> Tensor:
    """The clipped surrogate and the KL to the reference, mean over all tokens that were a choice.

    arXiv 2402.03300, equation 3, with a mean over tokens in place of one over texts and then tokens.

    Args:
        advantages: ``[turns]``.
        reference: log-probabilities, ``[turns, steps]``.
    """
    log_probs = constrained_log_probs(policy, turns)
    losses = clipped_surrogate(log_probs, turns.log_probs, advantages[:, None].expand_as(log_probs))
    return masked_mean(losses + kl * kl_estimate(log_probs, reference, "k3"), turns.free)
