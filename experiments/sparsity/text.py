"""Facts as text, ``Q12 P3 Q45`` and an end, a symbol a token; questions of ten choices."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .graph import Fact, Graph

SYMBOLS = "0123456789QP \n"
VOCABULARY = 20  # as in the paper; what it has beside these symbols is not known
PAD = VOCABULARY - 1
CHOICES = 10


def prompt(fact: Fact) -> str:
    """What a question shows."""
    return f"Q{fact.subject} P{fact.relation} "


def encode(facts: list[Fact] | tuple[Fact, ...], length: int) -> tuple[Tensor, Tensor]:
    """Tokens, int64 ``[facts, length]``, padded on the right, and how many of each row its prompt takes."""
    tokens = torch.full((len(facts), length), PAD)
    prompts = torch.empty(len(facts), dtype=torch.int64)
    for row, fact in enumerate(facts):
        symbols = [SYMBOLS.index(c) for c in f"{prompt(fact)}Q{fact.answer}\n"]
        tokens[row, : len(symbols)] = torch.tensor(symbols)
        prompts[row] = len(prompt(fact))
    return tokens, prompts


def length_of(graph: Graph) -> int:
    """Of the longest fact that can be asked or learned."""
    relation = max(fact.relation for fact in graph.training)
    return len(f"{prompt(Fact(graph.entities - 1, relation, 0))}Q{graph.entities - 1}\n")


def choices(graph: Graph, facts: tuple[Fact, ...], seed: int) -> list[list[Fact]]:
    """Every fact in front of nine that are wrong: other entities that make no fact of this prompt."""
    rng = np.random.default_rng(seed)
    found = []
    for fact in facts:
        right = graph.answers[fact.subject, fact.relation]
        wrong = [e for e in rng.permutation(graph.entities).tolist() if e not in right]
        found.append([fact, *(fact._replace(answer=e) for e in wrong[: CHOICES - 1])])
    return found
