"""The loop: play, estimate, update; the same for all arms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flashlla.models import LanguageModel, PolicyModel
from flashlla.models.rl import (
    BlockKind,
    Response,
    clipped_surrogate,
    constrained_logits,
    masked_mean,
    response_hidden,
    token_log_probs,
)
from flashlla.models.training import batch_seed

from ..common.files import write_json
from ..common.training import History, train_policy
from .arms import Arm, Estimate, estimate
from .critic import Seen, teach
from .episodes import Episodes, numbers, play
from .task import Task

DUAL_CLIP = 3.0  # of the released code, as the clip of 0.2
LESSONS = 3  # on the first episodes, before anything else is learned
FEW = 4  # parts of the episodes that an arm with few has one of


class Batch(NamedTuple):
    """Turns to learn from: what was answered, and the advantages of its tokens with their mask."""

    texts: Response
    advantages: Tensor
    mask: Tensor


class Learned(NamedTuple):
    """A trained policy, the history of its updates, and a record for every draw."""

    policy: PolicyModel
    history: History
    draws: list[dict[str, Any]]


def learn(
    policy: PolicyModel,
    arm: Arm,
    task: Task,
    first: Episodes,
    folder: Path,
    *,
    draws: int,
    episodes: int,
    group: int,
    updates: int,
    seed: int,
    **recipe: Any,
) -> Learned:
    """Train a policy in place; a run that was interrupted goes on from the checkpoint in ``folder``.

    Args:
        first: episodes of the policy in single houses, which the values learn from before they are needed.
        draws: how often it plays.
        episodes: of a draw.
        group: episodes in one house, where an arm wants such.
        updates: behind every draw, each on its part of the turns.
        recipe: ``learning_rate`` and others, as for :func:`..common.training.fit`.
    """
    count = episodes // FEW if arm.few else episodes
    device = policy.value_head.weight.device
    if not arm.grouped:
        seen = Seen(policy, first)
        for _ in range(LESSONS):
            _assess(arm, seen, 1)

    def draw(step: int) -> list[Batch]:
        number = step // updates
        generator = torch.Generator(device).manual_seed(batch_seed(seed, number, 1))
        houses = _houses(seed, number, count, group if arm.grouped else 1)
        made = play(policy.actor, task, houses, plan=arm.plan, generator=generator)
        found = _assess(arm, Seen(policy, made), group)
        write_json(folder / "draws" / f"{number}.json", {"draw": number, **numbers(made)})
        return _parts(made, found, updates, np.random.default_rng([seed, number, 2]))

    history = train_policy(
        policy, _loss, draw, folder, draws=draws, updates=updates, seed=seed, weight_decay=0.0, **recipe
    )
    records = [json.loads((folder / "draws" / f"{n}.json").read_text()) for n in range(draws)]
    return Learned(policy.eval(), history, records)


def copied_gradient(policy: PolicyModel, batch: Batch) -> dict[str, float]:
    """The largest gradients of the loss at what the policy knows in front of a token: of subgoals that were
    copied, and of those that were written.
    """
    hidden = response_hidden(policy.actor, batch.texts).detach().requires_grad_()
    (slopes,) = torch.autograd.grad(_surrogate(policy.actor, hidden, batch), hidden)
    sizes = slopes.abs().amax(-1)
    subgoals = batch.texts.kinds == BlockKind.SUBGOAL
    kept = (batch.texts.choices[:, 0] == 0)[:, None]
    return {name: sizes[subgoals & at].max().item() for name, at in (("copied", kept), ("written", ~kept))}


def as_batch(made: Episodes, found: Estimate) -> Batch:
    """All turns of some episodes."""
    return Batch(made.texts, found.advantages, found.mask)


def _assess(arm: Arm, seen: Seen, group: int) -> Estimate:
    """Advantages with the values there are; then the values learn."""
    found = estimate(arm, seen, group)
    for lesson in found.lessons:
        teach(seen.policy, lesson)
    return found


def _houses(seed: int, number: int, count: int, group: int) -> np.ndarray:
    """Seeds of the episodes of a draw, equal ones for the members of a group."""
    rng = np.random.default_rng([seed, number, 1])
    return rng.integers(1 << 40, 1 << 62, size=count // group).repeat(group)  # the test has small ones


def _parts(made: Episodes, found: Estimate, count: int, rng: np.random.Generator) -> list[Batch]:
    order = torch.from_numpy(rng.permutation(len(made.turn))).to(made.turn.device)
    return [
        Batch(made.texts.select(rows), found.advantages[rows], found.mask[rows])
        for rows in order.tensor_split(count)
    ]


def _loss(policy: PolicyModel, batch: Batch) -> Tensor:
    return _surrogate(policy.actor, response_hidden(policy.actor, batch.texts), batch)


def _surrogate(actor: LanguageModel, hidden: Tensor, batch: Batch) -> Tensor:
    """PPO's, the mean over all tokens that were a choice."""
    log_probs = token_log_probs(constrained_logits(actor, hidden, batch.texts), batch.texts.taken)
    losses = clipped_surrogate(log_probs, batch.texts.log_probs, batch.advantages, dual_clip=DUAL_CLIP)
    return masked_mean(losses, batch.mask)
