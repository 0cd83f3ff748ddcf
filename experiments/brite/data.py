"""Chains of lookups in a table of facts, half of which the writers of the corpus know badly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SYSTEMATIC = 5 / 8  # share of the wrong results that is one and the same for a fact; the others are uniform


@dataclass(frozen=True)
class Chains:
    """A random operation on ``values`` numbers, and what a corpus says of it.

    A prompt is ``a_0 ... a_K SEP``, its rationale ``s_1 ... s_K`` with ``s_i = s_{i-1} o a_i`` and
    ``s_0 = a_0``, its answer ``SEP s_K``. Tokens are the numbers, and the separator behind them.

    Attributes:
        results: int64 ``[values, values]``, the operation.
        mistakes: the same shape; never the result.
        known: bool, the same shape; half of the facts, about which the corpus is always right.
        links: K, lookups in a chain.
        right: probability with which the corpus gives the right result of another fact.
    """

    results: Tensor
    mistakes: Tensor
    known: Tensor
    links: int
    right: float

    @classmethod
    def draw(cls, values: int, links: int, right: float, seed: int) -> Chains:
        """A table of its own for every seed."""
        generator = torch.Generator().manual_seed(seed)
        results = torch.randint(values, (values, values), generator=generator)
        shifts = torch.randint(1, values, (values, values), generator=generator)
        order = torch.randperm(values * values, generator=generator)
        known = (order < values * values // 2).view(values, values)
        return cls(results, (results + shifts) % values, known, links, right)

    @property
    def values(self) -> int:
        return len(self.results)

    @property
    def separator(self) -> int:
        return self.values

    @property
    def prompt_length(self) -> int:
        return self.links + 2

    def prompts(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform ones, int64 ``[count, links + 2]``."""
        operands = torch.randint(self.values, (count, self.links + 1), generator=generator)
        return torch.cat([operands, torch.full((count, 1), self.separator)], 1)

    def rationales(self, prompts: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``[count, links]``: true ones, or with a generator those of the corpus, errors and what follows."""
        state, steps = prompts[:, 0], []
        for i in range(1, self.links + 1):
            fact = state, prompts[:, i]
            state = self.results[fact]
            if generator is not None:
                state = torch.where(self.known[fact], state, self._guess(fact, generator))
            steps.append(state)
        return torch.stack(steps, 1)

    def answers(self, rationales: Tensor) -> Tensor:
        """``[count, 2]``: the separator, and where a rationale ends."""
        return torch.stack([torch.full_like(rationales[:, 0], self.separator), rationales[:, -1]], 1)

    def unknown(self, prompts: Tensor) -> Tensor:
        """``[count]``: facts of the true rationale that the corpus does not know."""
        before = torch.cat([prompts[:, :1], self.rationales(prompts)[:, :-1]], 1)
        return (~self.known[before, prompts[:, 1:-1]]).sum(1)

    def _guess(self, fact: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        count = len(fact[0])
        uniform = torch.randint(self.values, (count,), generator=generator)
        draws = torch.rand(count, generator=generator)
        mistaken = draws < self.right + (1 - self.right) * SYSTEMATIC
        wrong = torch.where(mistaken, self.mistakes[fact], uniform)
        return torch.where(draws < self.right, self.results[fact], wrong)


def joined(prompts: Tensor, rationales: Tensor, answers: Tensor) -> Tensor:
    """Whole texts, ``[count, 2 links + 4]``."""
    return torch.cat([prompts, rationales, answers], 1)
