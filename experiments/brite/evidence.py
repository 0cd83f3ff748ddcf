"""The probability of the right answer, whatever the rationale, and its lower bound by another model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flashlla.models import LanguageModel
from flashlla.models.rl import rollout, taken_log_probs


class Bounds(NamedTuple):
    """Lower and upper bound of a mean log-probability, in nats a prompt."""

    low: float
    high: float


@torch.no_grad()
def log_evidence(model: LanguageModel, prompts: Tensor, answers: Tensor, links: int, beam: int) -> Bounds:
    """Mean of ``log P(y* | x) = log sum_z P(z | x) P(y* | x, z)`` by enumeration of the rationales z.

    At every link the ``beam`` likeliest beginnings go on, and all of them if there are no more. What the
    others could add is at most their probability, which the upper bound has in it.

    Args:
        prompts, answers: ``[count, links + 2]`` and ``[count, 2]``.
    """
    low, high = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        texts, log_p = prompt[None], torch.zeros(1, dtype=torch.float64, device=prompt.device)
        for _ in range(links):
            texts, log_p = _continued(model, texts, log_p, beam)
        whole = torch.cat([texts, answer.expand(len(texts), -1)], 1)
        log_p_answer = taken_log_probs(model, whole, texts.shape[1]).double().sum(1)
        found = (log_p + log_p_answer).logsumexp(0)
        dropped = (1 - log_p.exp().sum()).clamp(min=0)
        low.append(found)
        high.append((found.exp() + dropped).log())
    return Bounds(torch.stack(low).mean().item(), torch.stack(high).mean().item())


@torch.no_grad()
def elbo(
    q: LanguageModel,
    reference: LanguageModel,
    prompts: Tensor,
    answers: Tensor,
    links: int,
    samples: int,
    generator: torch.Generator,
) -> tuple[float, float]:
    """Mean of ``E_q[log P(z, y* | x) - log q(z | x)]`` by sampling, and its standard error over samples."""
    drawn = rollout(q, prompts, links, samples=samples, generator=generator)
    texts = torch.cat([drawn.tokens, answers.repeat_interleave(samples, 0)], 1)
    joint = taken_log_probs(reference, texts, drawn.start).sum(1)
    terms = (joint - drawn.log_probs.sum(1)).double().view(-1, samples)
    error = (terms.var(1).mean() / terms.numel()).sqrt()
    return terms.mean().item(), error.item()


def _continued(model: LanguageModel, texts: Tensor, log_p: Tensor, beam: int) -> tuple[Tensor, Tensor]:
    """The likeliest texts that are one token longer, and their log-probabilities."""
    following = log_p[:, None] + model(texts, last_only=True)[:, -1].double().log_softmax(-1)
    log_p, places = following.flatten().topk(min(beam, following.numel()))
    tokens = places % following.shape[1]
    return torch.cat([texts[places // following.shape[1]], tokens[:, None]], 1), log_p
