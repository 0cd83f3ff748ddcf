"""A transformer that learns the triplet task by policy gradients, and what its episodes are like."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from flashlla.models import LanguageModel, generate
from flashlla.models.rl import leave_one_out, token_entropy, token_log_probs
from flashlla.models.training import batch_generator, batch_seed

from ..common.costs import costs
from ..common.training import seed_for, train_policy
from .measures import episode_text, measures
from .model import model_config
from .objectives import ARMS, Arm
from .triplets import SEEN, TOKENS, UNSEEN

if TYPE_CHECKING:
    from .run import Trial

EPISODES = 7  # of every prompt, kept as text


class Batch(NamedTuple):
    """Episodes with their advantages: ``[rows, 1 + steps]`` tokens, the rest ``[rows, steps]``."""

    tokens: Tensor
    advantages: Tensor
    mask: Tensor


def learn(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """Rows of one arm: ``curve`` on the way, ``prompt`` for every prompt at the end, and ``episode``."""
    arm = ARMS[trial.arm]
    torch.manual_seed(trial.seed)
    config = model_config(TOKENS, trial.mixer, trial.dim, trial.depth, trial.heads)
    policy = LanguageModel(config).to(trial.device)
    policy.embedding.reset_parameters()  # variance 1, as in associative recall

    def evaluate(policy: LanguageModel, step: int) -> dict[str, float]:
        episodes = _episodes(policy, trial, "curve", trial.probes)
        shares = [measures(prompt, actions)["success"] for prompt, actions in enumerate(episodes)]
        return {"seen": sum(shares[prompt] for prompt in SEEN) / len(SEEN), "unseen": shares[UNSEEN]}

    at_first = evaluate(policy.eval(), 0)
    history = train_policy(
        policy,
        lambda policy, batch: policy_loss(policy, batch, arm),
        lambda step: [draw(policy, arm, trial, step)],
        folder,
        draws=trial.updates,
        learning_rate=trial.learning_rate,
        seed=trial.seed,
        optimizer="muon",
        weight_decay=0.0,
        evaluate=evaluate,
        evaluate_every=trial.every,
    )
    curve = [{"step": 0, **at_first}, *history.evaluations]
    rows = [{"kind": "curve", **{n: r[n] for n in ("step", "seen", "unseen")}} for r in curve]
    return rows + _ending(policy.eval(), trial, costs(policy, history))


def draw(policy: LanguageModel, arm: Arm, trial: Trial, step: int) -> Batch:
    """Episodes of both prompts of the training. The baseline of a token is the mean value of that step in the
    other episodes of its prompt, where those that have ended count as 0.
    """
    samples = trial.episodes // len(SEEN)
    prompts = torch.tensor(SEEN, device=trial.device)
    tokens = _continued(policy, prompts, trial, samples, batch_seed(trial.seed, step, 1))
    signal = arm.signal(tokens[:, 0], tokens[:, 1:], batch_generator(trial.seed, step, 2))
    advantages = leave_one_out(signal.values.unflatten(0, (-1, samples)), dim=1).flatten(0, 1)
    return Batch(tokens, advantages, signal.mask)


def policy_loss(policy: LanguageModel, batch: Batch, arm: Arm) -> Tensor:
    """Its gradient is that of a draw: the sum over an episode, divided by the number of steps that there
    could have been, and the mean over episodes.
    """
    logits = policy(batch.tokens[:, :-1])
    gains = token_log_probs(logits, batch.tokens[:, 1:]) * batch.advantages
    if arm.entropy:
        gains = gains + arm.entropy * token_entropy(logits)
    return -gains.masked_fill(~batch.mask, 0.0).mean()


@torch.no_grad()
def _continued(policy: LanguageModel, prompts: Tensor, trial: Trial, samples: int, seed: int) -> Tensor:
    """Prompts with sampled episodes of all steps, ``[prompts * samples, 1 + horizon]``."""
    generator = torch.Generator(trial.device).manual_seed(seed)
    return generate(
        policy,
        prompts[:, None],
        trial.horizon,
        temperature=1.0,
        generator=generator,
        num_return_sequences=samples,
    )


def _episodes(policy: LanguageModel, trial: Trial, purpose: str, samples: int) -> Tensor:
    """Episodes of every prompt, ``[prompts, samples, horizon]``, which depend on seed, purpose and policy."""
    seed = seed_for(trial.seed, purpose)
    prompts = torch.arange(TOKENS, device=trial.device)
    return _continued(policy, prompts, trial, samples, seed)[:, 1:].unflatten(0, (TOKENS, samples))


def _ending(policy: LanguageModel, trial: Trial, about: dict[str, Any]) -> list[dict[str, Any]]:
    begun = time.perf_counter()
    episodes = _episodes(policy, trial, "test", trial.test)
    found = [measures(prompt, actions) for prompt, actions in enumerate(episodes)]
    about = {**about, "environment_steps_per_second": episodes.numel() / (time.perf_counter() - begun)}
    rows = []
    for prompt, actions in enumerate(episodes):
        common = {"prompt": prompt, "unseen": prompt == UNSEEN}
        rows.append({"kind": "prompt", **common, **found[prompt], **about})
        texts = [episode_text(prompt, episode) for episode in actions[:EPISODES]]
        rows += [{"kind": "episode", **common, "episode": n, "text": text} for n, text in enumerate(texts)]
    return rows
