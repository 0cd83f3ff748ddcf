"""The "answer" form of BARL on a small model that thinks in sums: hypotheses are final answers."""

from __future__ import annotations

from copy import deepcopy
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.special import comb
from torch import Tensor

from flashlla.models import LanguageModel, generate
from flashlla.models.rl import (
    Rollout,
    clipped_surrogate,
    group_normalized,
    masked_mean,
    rollout,
    taken_log_probs,
    whiten,
)
from flashlla.models.training import batch_generator, batch_seed

from ..common.costs import costs
from ..common.training import train, train_policy
from .arithmetic import END, STOP, VOCABULARY, WAIT, Problems, as_text, digits, longest, problems, texts
from .model import model_config
from .posterior import answer_values

if TYPE_CHECKING:
    from .run import Trial

ARMS = ("grpo", "answer_progress", "answer_barl")
BETA = 1.0
UPDATES = 2  # of the model for every draw
EPISODES = 20  # kept as text
ROWS = 8192  # texts that are scored together, at most about so many
TEST_SEED = 10**6  # apart from the seeds of training


class Thoughts(NamedTuple):
    """What was drawn, read.

    Attributes:
        lengths: int64 ``[rows]``, tokens of the thought, without END; all tokens where that is missing.
        answers: int64 ``[rows]``, -1 where there is none.
    """

    lengths: Tensor
    answers: Tensor


def read(out: Rollout) -> Thoughts:
    """Where thoughts end, and the number in the two tokens behind that."""
    taken = out.taken.masked_fill(~out.mask, STOP)
    ends = taken == END
    ended = ends.any(1)
    lengths = torch.where(ended, ends.int().argmax(1), out.mask.sum(1))
    places = (lengths[:, None] + torch.arange(1, 3, device=taken.device)).clamp(max=taken.shape[1] - 1)
    tens, ones = taken.gather(1, places).unbind(1)
    valid = ended & (tens < 10) & (ones < 10) & (places[:, 1] > places[:, 0])
    return Thoughts(lengths, torch.where(valid, 10 * tens + ones, -1))


def candidates(answers: Tensor, truths: Tensor) -> Tensor:
    """The hypotheses of every prompt: the true answer first, and the different ones that were given.

    Args:
        answers: int64 ``[prompts, samples]``, -1 where there is none.
        truths: int64 ``[prompts]``.

    Returns:
        int64 ``[prompts, 1 + samples]``, -1 behind the last.
    """
    width = 1 + answers.shape[1]
    rows = []
    for truth, given in zip(truths.tolist(), answers.tolist(), strict=True):
        row = [truth, *sorted(set(given) - {truth, -1})]
        rows.append([*row, *[-1] * (width - len(row))])
    return torch.tensor(rows, device=answers.device)


@torch.no_grad()
def plausibilities(model: LanguageModel, tokens: Tensor, ends: Tensor, numbers: Tensor) -> Tensor:
    """How likely the model finds answers behind cut-off thoughts: the geometric mean of the probabilities of
    their two digits, END in front of them.

    Args:
        tokens: int64 ``[rows, seq]``, prompts and thoughts.
        ends: int64 ``[rows]``, where they are cut off.
        numbers: int64 ``[rows, answers]``, -1 for none, which has 0.

    Returns:
        ``[rows, answers]``.
    """
    rows, count = numbers.shape
    suffixes = torch.cat([torch.full_like(numbers[..., None], END), digits(numbers.clamp(min=0))], -1)
    places = (ends[:, None] + torch.arange(3, device=ends.device))[:, None].expand(-1, count, -1)
    room = torch.cat([tokens, tokens.new_full((rows, 3), STOP)], 1)[:, None].expand(-1, count, -1)
    whole = room.scatter(2, places, suffixes).flatten(0, 1)  # what stands behind the digits is not seen
    log_probs = torch.cat([taken_log_probs(model, part, 1) for part in whole.split(ROWS)])
    chosen = log_probs.unflatten(0, (rows, count)).gather(2, places[..., 1:] - 1)
    return chosen.mean(2).exp().masked_fill(numbers < 0, 0.0)


def token_values(
    model: LanguageModel,
    out: Rollout,
    thoughts: Thoughts,
    problem: Problems,
    *,
    chunk: int,
    beta: float | None,
) -> Tensor:
    """Values of all tokens, ``[rows, steps]``: constant in each ``chunk`` tokens of a thought, and the
    outcome behind it; ``beta`` is that of :func:`answer_values`.

    Args:
        problem: of the rollout, ``[prompts]``; its rows are ``[prompts, samples]``.
    """
    samples = len(out.tokens) // len(problem.prompts)
    numbers = candidates(thoughts.answers.unflatten(0, (-1, samples)), problem.answers)
    numbers = numbers.repeat_interleave(samples, 0)
    parts = ceil(out.mask.shape[1] / chunk)
    cuts = [out.start + thoughts.lengths.clamp(max=chunk * part) for part in range(parts + 1)]
    found = torch.stack([plausibilities(model, out.tokens, cut, numbers) for cut in cuts], -1)
    right = _right(thoughts, problem, samples).to(found.dtype)
    values = answer_values(found, right, beta).repeat_interleave(chunk, 1)[:, : out.mask.shape[1]]
    thinking = torch.arange(out.mask.shape[1], device=values.device) < thoughts.lengths[:, None]
    return torch.where(thinking, values, right[:, None])


def learn(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """Rows of the base model and of all arms, which start from it: ``answers``, and ``pass`` for every k."""
    base, about = _base(trial, folder / "base")
    rows = _examine(base, trial, "base", about)
    for arm in ARMS:
        policy, about = _reinforced(base, arm, trial, folder / arm)
        rows += _examine(policy, trial, arm, about)
    return rows


def _base(trial: Trial, folder: Path) -> tuple[LanguageModel, dict[str, Any]]:
    torch.manual_seed(trial.seed)
    config = model_config(VOCABULARY, trial.mixer, trial.dim, trial.depth, trial.heads)
    model = LanguageModel(config).to(trial.device)
    model.embedding.reset_parameters()
    start = 3 + 2 * trial.operations

    def loss(model: LanguageModel, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, mask = batch
        return -masked_mean(taken_log_probs(model, tokens, start), mask)

    history = train(
        model,
        loss,
        lambda generator: texts(problems(trial.base_batch, trial.operations, generator), generator),
        folder,
        steps=trial.base_steps,
        learning_rate=trial.base_rate,
        seed=trial.seed,
        optimizer="muon",
    )
    return model.eval(), costs(model, history)


def _reinforced(
    base: LanguageModel, arm: str, trial: Trial, folder: Path
) -> tuple[LanguageModel, dict[str, Any]]:
    """A copy of the base model, trained on outcomes, on progress, or with BARL."""
    policy = deepcopy(base)

    def draw(step: int) -> list[tuple[Tensor, ...]]:
        problem = problems(trial.episodes, trial.operations, batch_generator(trial.seed, step, 0))
        problem = problem.to(trial.device)
        generator = torch.Generator(trial.device).manual_seed(batch_seed(trial.seed, step, 1))
        out = _sampled(policy, problem, trial.samples, generator)
        return UPDATES * [
            (out.tokens, out.log_probs, out.mask, _advantages(policy, out, problem, arm, trial))
        ]

    def loss(policy: LanguageModel, batch: tuple[Tensor, ...]) -> Tensor:
        tokens, old, mask, advantages = batch
        log_probs = taken_log_probs(policy, tokens, tokens.shape[1] - mask.shape[1])
        return masked_mean(clipped_surrogate(log_probs, old, advantages), mask)

    history = train_policy(
        policy,
        loss,
        draw,
        folder,
        draws=trial.updates,
        updates=UPDATES,
        learning_rate=trial.learning_rate,
        seed=trial.seed,
        weight_decay=0.0,
    )
    return policy.eval(), costs(policy, history)


def _advantages(policy: LanguageModel, out: Rollout, problem: Problems, arm: str, trial: Trial) -> Tensor:
    """Of all tokens: the outcome normalised in its group, or values normalised over the whole draw."""
    thoughts = read(out)
    if arm == "grpo":
        right = _right(thoughts, problem, trial.samples).float()
        normal = group_normalized(right.unflatten(0, (-1, trial.samples))).flatten()
        return normal[:, None].expand_as(out.log_probs)
    beta = BETA if arm == "answer_barl" else None
    values = token_values(policy, out, thoughts, problem, chunk=trial.chunk, beta=beta)
    return whiten(values, out.mask)


def _sampled(model: LanguageModel, problem: Problems, samples: int, generator: torch.Generator) -> Rollout:
    length = longest(problem.results.shape[1])
    return rollout(model, problem.prompts, length, samples=samples, generator=generator, eos_token_id=STOP)


def _right(thoughts: Thoughts, problem: Problems, samples: int) -> Tensor:
    return thoughts.answers == problem.answers.repeat_interleave(samples)


def _examine(model: LanguageModel, trial: Trial, arm: str, about: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracy, tokens and corrections on new problems, how many pass in k tries, and some texts."""
    problem = problems(trial.test, trial.operations, torch.Generator().manual_seed(TEST_SEED + trial.seed))
    problem = problem.to(trial.device)
    generator = torch.Generator(trial.device).manual_seed(TEST_SEED + trial.seed)
    out = _sampled(model, problem, trial.tries, generator)
    thoughts = read(out)
    right = _right(thoughts, problem, trial.tries)
    waits = ((out.taken == WAIT) & out.mask).sum(1).double()
    success = right.double()
    tokens = out.mask.sum(1).double().mean().item()
    found = {
        "success": success.mean().item(),
        "greedy": _greedy(model, problem),
        "tokens": tokens,
        "switches": waits.mean().item(),
        "switch_variance": waits.var(correction=0).item(),
        "switch_success": ((waits - waits.mean()) * success).mean().item(),
    }
    rows = [{"kind": "answers", "arm": arm, **found, **about}]
    counts = right.unflatten(0, (-1, trial.tries)).sum(1).cpu().numpy()
    for k in [2**i for i in range(trial.tries.bit_length())]:
        share = pass_at(counts, trial.tries, k).mean()
        rows.append({"kind": "pass", "arm": arm, "k": k, "passed": float(share), "tokens": k * tokens})
    for number, text in enumerate(out.tokens[:: trial.tries][:EPISODES]):
        rows.append({"kind": "episode", "arm": arm, "episode": number, "text": as_text(text)})
    return rows


def _greedy(model: LanguageModel, problem: Problems) -> float:
    start = problem.prompts.shape[1]
    tokens = generate(model, problem.prompts, longest(problem.results.shape[1]), eos_token_id=STOP)
    taken = tokens[:, start:]
    ended = (taken == STOP).int()
    mask = ended.cumsum(1) - ended == 0
    return _right(read(Rollout(tokens, start, mask, mask)), problem, 1).double().mean().item()


def pass_at(right: np.ndarray, tries: int, k: int) -> np.ndarray:
    """Chance that one of k is right, drawn without replacement from tries of which so many are right."""
    return 1 - comb(tries - right, k) / comb(tries, k)
