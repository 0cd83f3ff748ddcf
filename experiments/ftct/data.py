"""Sequences of lines: fragments of the chains among noise, and patterns without any knowledge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .graph import CausalGraph, largest_value, random_graph
from .vocabulary import LETTERS, Vocabulary

NOISE = 10  # noise is 0 to 9
LONGER = 5  # the longest line has so many vertices more than a chain
SHORTEST = 4  # a line with a fragment has at least so many vertices
PATTERNS = 0.2  # share of sequences that are patterns alone
PAD, HEAD, CONTEXT, LETTER, EQUALS, VALUE, COMMA, NEWLINE = range(8)  # what a token is


class Sequences(NamedTuple):
    """Tokens, and what each of them is; all int64 ``[batch, seq]``, padded on the right.

    Attributes:
        tokens: of the vocabulary.
        kinds: what a token is: ``HEAD`` (of a line, three tokens), ``CONTEXT``, ``LETTER`` and so on.
        lines: the line that it is in, from 0.
        places: the vertex of the line that it belongs to, from 0; -1 in the head and for the newline.
    """

    tokens: Tensor
    kinds: Tensor
    lines: Tensor
    places: Tensor

    @property
    def taught(self) -> Tensor:
        """Tokens that the loss is on: all of a line behind its first vertex, bool ``[batch, seq]``."""
        return (self.kinds != PAD) & (self.places >= 1)


@dataclass(frozen=True)
class Task:
    """A graph and how it is written.

    Attributes:
        graph: what there is to know.
        vocabulary: the words.
        fragment: M, the most vertices of a chain that a training sequence shows.
        inserted: the most contexts in front of a vertex.
        trained: columns of ``graph.values`` that training uses, int64, in a random order.
        held_out: the others.
    """

    graph: CausalGraph
    vocabulary: Vocabulary
    fragment: int
    inserted: int
    trained: Tensor
    held_out: Tensor

    @property
    def chain(self) -> int:
        """N, the vertices of a complete chain."""
        return self.graph.chains.shape[1]


def make_task(
    chain: int, fragment: int, roots: int, held_out: int, contexts: int, inserted: int, seed: int
) -> Task:
    """The task of a seed; its values of the root are split at random into those of training and others."""
    graph = random_graph(chain, roots, seed)
    vocabulary = Vocabulary(contexts, largest_value(chain, roots) + 1)
    order = torch.randperm(roots, generator=torch.Generator().manual_seed(seed))
    trained, other = order[held_out:], order[:held_out]
    return Task(graph, vocabulary, fragment, inserted, trained, other)


def training_sequences(task: Task, batch: int, lines: int, generator: torch.Generator) -> Sequences:
    """Fresh sequences; each is a pattern alone with a chance of one in five.

    Others hold a fragment: 2 to M vertices of a chain, in their order, at random places of lines that are
    filled up with letters outside of the graph. All lines of a sequence have the same letters in the same
    order, and values and contexts of their own.
    """
    longest = task.chain + LONGER
    letters, known, lengths = _fragments(task, batch, longest, generator)
    pattern = torch.rand(batch, generator=generator) < PATTERNS
    letters = torch.where(pattern[:, None], _distinct(batch, longest, None, generator), letters)
    known = known & ~pattern[:, None]
    lengths = torch.where(pattern, torch.randint(2, longest + 1, (batch,), generator=generator), lengths)
    roots = task.trained[torch.randint(len(task.trained), (batch, lines, 1), generator=generator)]
    noise = torch.randint(NOISE, (batch, lines, longest), generator=generator)
    values = torch.where(known[:, None], task.graph.values[letters[:, None], roots], noise)
    return write(task, letters, values, lengths, generator)


def longest_fragment(task: Task, sequences: Sequences) -> int:
    """The most vertices of one chain in a line that have a value which they may have."""
    words, values = task.vocabulary, task.graph.values
    rows, columns = (sequences.kinds == VALUE).nonzero(as_tuple=True)
    letters = sequences.tokens[rows, columns - 2] - words.first_letter
    numbers = sequences.tokens[rows, columns] - words.first_number
    legal = (values[letters] == numbers[:, None]).any(1)
    line = rows * (sequences.lines.max() + 1) + sequences.lines[rows, columns]
    shown = (line[legal & torch.isin(letters, chain)] for chain in task.graph.chains)
    return max(int(lines.bincount(minlength=1).max()) for lines in shown)


def _fragments(
    task: Task, batch: int, longest: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Letters ``[batch, longest]``, which of them are of the fragment, and vertices of a line ``[batch]``."""
    least = max(task.fragment, SHORTEST)
    lengths = torch.randint(least, longest + 1, (batch,), generator=generator)
    size = torch.randint(2, task.fragment + 1, (batch,), generator=generator)
    start = (torch.rand(batch, generator=generator) * (task.chain - size + 1)).long()
    chain = task.graph.chains[torch.randint(len(task.graph.chains), (batch,), generator=generator)]
    chances = torch.rand(batch, longest, generator=generator)
    chances = chances.masked_fill(torch.arange(longest) >= lengths[:, None], 2.0)
    known = chances.argsort(1).argsort(1) < size[:, None]  # a random subset of the places
    place = (start[:, None] + known.cumsum(1) - 1).clamp(0, task.chain - 1)
    outside = _distinct(batch, longest, task.graph.letters, generator)
    return torch.where(known, chain.gather(1, place), outside), known, lengths


def _distinct(batch: int, count: int, without: Tensor | None, generator: torch.Generator) -> Tensor:
    """``[batch, count]``: in every row different letters, none of those in ``without``."""
    chances = torch.rand(batch, len(LETTERS), generator=generator)
    if without is not None:
        chances = chances.masked_fill(without, 2.0)
    return chances.argsort(1)[:, :count]


def write(
    task: Task, letters: Tensor, values: Tensor, lengths: Tensor, generator: torch.Generator
) -> Sequences:
    """Lines ``LAST=?:`` and then, for every vertex, some of its contexts and ``V=value,``.

    In front of a vertex stand 1 to ``inserted`` different ones of its contexts. The last vertex of a line has
    no comma, and the last line no newline.

    Args:
        letters: ``[batch, places]``; or ``[batch, lines, places]`` where lines differ.
        values: ``[batch, lines, places]``.
        lengths: vertices of a line, ``[batch]``; what stands behind them is left out.
    """
    words, (batch, lines, places) = task.vocabulary, values.shape
    letters = letters.reshape(batch, -1, places).expand(-1, lines, -1)
    room = task.inserted + 4  # tokens of a vertex at most
    slots = _slots(places, task.inserted)

    owned = torch.rand(batch, lines, places, words.contexts, generator=generator).argsort(-1)
    contexts = words.first_context + letters[..., None] * words.contexts + owned[..., : task.inserted]
    vertex = torch.full((batch, lines, places, room), words.equals)
    vertex[..., : task.inserted] = contexts
    vertex[..., task.inserted] = words.first_letter + letters
    vertex[..., -2] = words.first_number + values
    vertex[..., -1] = words.comma
    last = letters.gather(2, (lengths - 1)[:, None, None].expand(-1, lines, -1))
    signs = torch.tensor([words.equals, words.query]).expand(batch, lines, 2)
    newline = torch.full((batch, lines, 1), words.newline)
    tokens = torch.cat([words.first_letter + last, signs, vertex.flatten(2), newline], 2)

    count = torch.randint(1, task.inserted + 1, (batch, lines, places, 1), generator=generator)
    used = torch.ones_like(vertex, dtype=torch.bool)
    used[..., : task.inserted] = torch.arange(task.inserted) < count
    used &= (torch.arange(places) < lengths[:, None])[:, None, :, None]
    used[..., -1] &= (torch.arange(places) < lengths[:, None] - 1)[:, None]
    ends = torch.ones(batch, lines, 1, dtype=torch.bool)
    used = torch.cat([ends.expand(-1, -1, 3), used.flatten(2), ends], 2)
    used[:, -1, -1] = False

    line = torch.arange(lines)[:, None].expand(lines, tokens.shape[2])
    every = [tokens, *(t.expand_as(tokens) for t in (slots[0], line, slots[1]))]
    return _compact([t.flatten(1) for t in every], used.flatten(1), words.pad)


def _slots(places: int, inserted: int) -> tuple[Tensor, Tensor]:
    """Kinds and places of the tokens of a line that has all that it may have."""
    vertex = [CONTEXT] * inserted + [LETTER, EQUALS, VALUE, COMMA]
    kinds = [HEAD] * 3 + vertex * places + [NEWLINE]
    of = [-1] * 3 + [place for place in range(places) for _ in vertex] + [-1]
    return torch.tensor(kinds), torch.tensor(of)


def _compact(every: list[Tensor], used: Tensor, pad: int) -> Sequences:
    """Move what is used to the left, and cut off what no row needs."""
    order = (~used).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(used.sum(1).max())]
    kept = used.gather(1, order)
    fills = (pad, PAD, -1, -1)
    return Sequences(
        *(t.gather(1, order).masked_fill(~kept, fill) for t, fill in zip(every, fills, strict=True))
    )
