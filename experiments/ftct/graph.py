"""What there is to know: a graph of letters whose values follow from one another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .vocabulary import LETTERS

CHAINS = 2  # that leave the root
ROOT = 100  # the least value of the root
STEP = 9  # the most that a child differs from its parent
MODULUS = 1000


@dataclass(frozen=True)
class CausalGraph:
    """Two chains of letters from one root; a child's value is that of its parent plus or minus a constant.

    Attributes:
        chains: ``[2, N]``, int64: the letters of each complete chain, numbered as in ``LETTERS``.
        values: ``[52, roots]``, int64: the value of every letter for each value of the root, which is 100 and
            up; -1 for letters outside of the graph.
    """

    chains: Tensor
    values: Tensor

    @property
    def letters(self) -> Tensor:
        """Which of the 52 letters are vertices, bool ``[52]``."""
        return self.values[:, 0] >= 0


def random_graph(length: int, roots: int, seed: int) -> CausalGraph:
    """A graph with chains of ``length`` vertices whose root has one of ``roots`` values.

    The rule of a child is ``|parent +- c| mod 1000`` with c from 1 to 9, as in the code of arXiv 2501.15857.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(LETTERS), generator=generator)
    branches = order[1 : 1 + CHAINS * (length - 1)].reshape(CHAINS, length - 1)
    chains = torch.cat([order[:1].expand(CHAINS, 1), branches], 1)
    steps = torch.randint(1, STEP + 1, branches.shape, generator=generator)
    steps = steps * (2 * torch.randint(2, branches.shape, generator=generator) - 1)
    values = torch.full((len(LETTERS), roots), -1)
    values[order[0]] = torch.arange(ROOT, ROOT + roots)
    for i in range(1, length):
        parents = values[chains[:, i - 1]]
        values[chains[:, i]] = (parents + steps[:, i - 1, None]).abs() % MODULUS
    return CausalGraph(chains, values)


def largest_value(length: int, roots: int) -> int:
    """The most that a vertex of such a graph can have."""
    return min(ROOT + roots - 1 + STEP * (length - 1), MODULUS - 1)
