"""BARL's gradient against that of REINFORCE, where all texts of a small task can be enumerated.

With beta 0 and hypotheses that pay once, BARL's gradient is the mean of REINFORCE's over the hypothesis that
pays, given the text: the same mean, and by the theorem of Rao and Blackwell no more variance.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

from .objectives import first_values, outcome_values
from .triplets import completions

TOKENS, LENGTH, STEPS = 2, 2, 5


class Policy:
    """A table of logits behind every beginning of a text, in float64.

    Args:
        seed: of the logits.

    Attributes:
        logits: ``[beginnings, tokens]``.
        texts: int64 ``[texts, steps]``, all that there are.
    """

    def __init__(self, seed: int):
        self.texts = torch.tensor(list(product(range(TOKENS), repeat=STEPS)))
        beginnings = [tuple(text[:t]) for text in self.texts.tolist() for t in range(STEPS)]
        numbers = {beginning: i for i, beginning in enumerate(dict.fromkeys(beginnings))}
        self._places = torch.tensor([numbers[b] for b in beginnings]).view(-1, STEPS)
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(len(numbers), TOKENS, generator=generator, dtype=torch.float64)

    def log_probs(self, logits: Tensor) -> Tensor:
        """Of the tokens of all texts, ``[texts, steps]``."""
        behind = logits.log_softmax(-1)[self._places]
        return behind.gather(-1, self.texts[..., None])[..., 0]

    def gradients(self, values: Tensor) -> Tensor:
        """``sum_t grad log pi(a_t | h_t) values_t`` of every text, ``[texts, parameters]``."""
        return torch.autograd.functional.jacobian(
            lambda logits: (self.log_probs(logits) * values).sum(1), self.logits, vectorize=True
        ).flatten(1)

    def exact_gradient(self, successes: Tensor) -> Tensor:
        """Of the expected success, differentiated as the sum over all texts; successes are ``[texts]``."""
        logits = self.logits.clone().requires_grad_()
        expected = self.log_probs(logits).sum(1).exp() @ successes
        return torch.autograd.grad(expected, logits)[0].flatten()


def compare(seed: int) -> dict[str, float]:
    """Both estimators for one policy, the prior uniform over all patterns.

    Returns:
        ``barl_error`` and ``reinforce_error``, the largest errors of their means against the exact gradient;
        ``barl_variance`` and ``reinforce_variance``, traces of their covariances.
    """
    policy = Policy(seed)
    patterns = torch.tensor(list(product(range(TOKENS), repeat=LENGTH)))
    found = completions(policy.texts, patterns)
    exact = policy.exact_gradient(found.any(2).double().mean(1))
    chances = policy.log_probs(policy.logits).sum(1).exp()
    by_pattern = [policy.gradients(outcome_values(hits).values) for hits in found.unbind(1)]
    barl = policy.gradients(first_values(found[:, 0], found, beta=0.0).values)
    result = {}
    for name, samples in {"barl": [barl], "reinforce": by_pattern}.items():
        gradients = torch.cat(samples)
        weights = chances.repeat(len(samples)) / len(samples)
        mean = weights @ gradients
        result[f"{name}_error"] = (mean - exact).abs().max().item()
        result[f"{name}_variance"] = (weights @ (gradients - mean).square()).sum().item()
    return result


def rows(instances: int) -> list[dict[str, Any]]:
    """A row for every random policy."""
    return [{"kind": "gradient", "instance": seed, **compare(seed)} for seed in range(instances)]
