"""What a policy may write: blocks of phrases, one behind the other, as tables on the device of the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .blocks import BlockKind

NONE = -1  # behind the end of a phrase
ANY = -2  # in a phrase: every token but the one that ends the block


def phrase_table(rows: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Lists of tokens, those of a row in a list, as a table for :class:`Block`, ``[rows, phrases, length]``.

    A list without tokens becomes a phrase that cannot be chosen.
    """
    phrases, length = max(map(len, rows)), max((len(p) for row in rows for p in row), default=0)
    whole = ([*row, *[[]] * (phrases - len(row))] for row in rows)
    return torch.tensor([[[*p, *[NONE] * (length - len(p))] for p in row] for row in whole])


class Block:
    """A choice among phrases; one phrase is a forced text.

    Args:
        phrases: int64 ``[rows, phrases, length]``, on the CPU, NONE behind the end of a phrase; or with one
            row, which all rows of a batch share. A phrase of nothing but NONE cannot be chosen: the others
            keep their numbers.
        kind: what the tokens of the block are, start and end among them, for :func:`block_advantages`.
        start: tokens in front of every phrase.
        end: the token behind every phrase, which none of them has; None is for phrases of one length.
        requires: int64 ``[rows, phrases]``, or with one row: the number of the phrase in the block before
            that a phrase goes with, NONE for any. A subgoal is copied behind the phrase "keep" alone.

    Attributes:
        tokens: phrases with start and end.

    Raises:
        ValueError: a row without phrases, one with its end in it, or several lengths in a row without an end.
    """

    def __init__(
        self,
        phrases: Tensor,
        kind: BlockKind,
        *,
        start: Sequence[int] = (),
        end: int | None = None,
        requires: Tensor | None = None,
    ):
        lengths = (phrases != NONE).sum(-1)
        _check_ends(phrases, lengths, end)
        self.kind, self.end = kind, NONE if end is None else end
        front = torch.tensor(start, dtype=torch.int64).expand(*lengths.shape, -1)
        tokens = torch.cat([front, F.pad(phrases, (0, 1), value=NONE)], -1)
        tokens.scatter_(-1, len(start) + lengths[..., None], self.end)
        longest = len(start) + int(lengths.max()) + (end is not None)
        self.tokens = tokens[..., :longest].masked_fill((lengths == 0)[..., None], NONE)
        self.requires = torch.full((1, lengths.shape[1]), NONE) if requires is None else requires

    @property
    def length(self) -> int:
        """Tokens of the longest phrase."""
        return self.tokens.shape[-1]


def free_text(limit: int, kind: BlockKind, *, end: int, start: Sequence[int] = ()) -> Block:
    """A block of 1 to ``limit`` tokens, any but ``end``, which ends it; phrase n has n + 1 tokens."""
    lengths = torch.arange(1, limit + 1)[:, None]
    phrases = torch.full((limit, limit), ANY).masked_fill(torch.arange(limit) >= lengths, NONE)
    return Block(phrases[None], kind, start=start, end=end)


class Grammar:
    """Blocks that follow one another: what is allowed next in every row of a batch.

    Args:
        blocks: in their order.
        rows: of the batch; a block has phrases for so many rows, or for one, which all share.
        vocab_size: of the model.
        device: of the model.

    Attributes:
        longest: tokens that a row takes at most.

    Raises:
        ValueError: tokens outside the vocabulary, another number of rows, a row that has no phrase left.
    """

    def __init__(
        self, blocks: Sequence[Block], rows: int, vocab_size: int, device: torch.device | str | None = None
    ):
        self.rows, self.vocab_size, self.device = rows, vocab_size, device
        self.longest = sum(block.length for block in blocks)
        for number, block in enumerate(blocks):
            _check_block(number, block, rows, vocab_size)
            _check_reachable(number, block, blocks[number - 1] if number else None)
        self.tables = [_Table(block, rows, vocab_size, device) for block in blocks]

    def reader(self, pad: int = 0) -> Reader:
        """A new reader, in front of the first token; rows that are finished go on with ``pad``."""
        return Reader(self, pad)


class Reader:
    """Follows the tokens of a batch through the blocks. It never waits for a GPU.

    Attributes:
        choices: int64 ``[rows, blocks]``, the numbers of the phrases that were read; of a block that is being
            read the first that is left, and 0 in front of it.
    """

    def __init__(self, grammar: Grammar, pad: int):
        self.tables, self.vocab_size, self.pad = grammar.tables, grammar.vocab_size, pad
        rows, device = grammar.rows, grammar.device
        self._block = torch.zeros(rows, dtype=torch.int64, device=device)
        self._place = torch.zeros_like(self._block)  # in the block
        self._left = [table.present for table in self.tables]  # phrases that agree with what was read
        self.choices = torch.zeros(rows, len(self.tables), dtype=torch.int64, device=device)

    @property
    def finished(self) -> Tensor:
        """Rows behind the last block, bool ``[rows]``."""
        return self._block == len(self.tables)

    def allowed(self) -> Tensor:
        """Tokens that may come next, bool ``[rows, vocab_size]``, in every row at least one."""
        allowed = torch.zeros(len(self._block), self.vocab_size, dtype=torch.bool, device=self._block.device)
        allowed[:, self.pad] = self.finished
        for number, table in enumerate(self.tables):
            left = self._left[number] & (self._block == number)[:, None]
            allowed = allowed | table.next_tokens(self._place, left)
        return allowed

    def read(self, tokens: Tensor) -> Tensor:
        """Go on by one allowed token a row, ``[rows]``.

        Returns:
            int64 ``[rows]``, the :class:`BlockKind` of each token; that of padding is OTHER.
        """
        before, behind = self._block, self._place + 1
        ended, kinds = torch.zeros_like(self.finished), torch.zeros_like(tokens)
        for number, table in enumerate(self.tables):
            here = before == number
            left = self._left[number] & (table.matches(self._place, tokens) | ~here[:, None])
            ends = here & (left & (table.lengths == behind[:, None])).any(1)
            choice = left.int().argmax(1)
            self._left[number] = left
            self.choices[:, number] = torch.where(here, choice, self.choices[:, number])
            if number + 1 < len(self.tables):
                fitting = self.tables[number + 1].fitting(choice)
                self._left[number + 1] = torch.where(ends[:, None], fitting, self._left[number + 1])
            kinds, ended = kinds.masked_fill(here, table.kind), ended | ends
        self._block, self._place = before + ended.long(), behind.masked_fill(ended, 0)
        return kinds


class _Table:
    """The phrases of a block on a device, for all rows of a batch."""

    def __init__(self, block: Block, rows: int, vocab_size: int, device: torch.device | str | None):
        self.kind, self.end, self.vocab_size = int(block.kind), block.end, vocab_size
        self.tokens = block.tokens.to(device, non_blocking=True).expand(rows, -1, -1)
        self.requires = block.requires.to(device, non_blocking=True)
        self.lengths = (self.tokens != NONE).sum(-1)
        self.present = self.lengths > 0
        self.free = torch.arange(vocab_size, device=device) != block.end  # what ANY stands for

    def fitting(self, choice: Tensor) -> Tensor:
        """Phrases that go with a choice ``[rows]`` in the block before, bool ``[rows, phrases]``."""
        return self.present & ((self.requires == choice[:, None]) | (self.requires == NONE))

    def next_tokens(self, place: Tensor, left: Tensor) -> Tensor:
        """Tokens at a place of the phrases that are left, bool ``[rows, vocab_size]``."""
        tokens = self._at(place)
        counts = torch.zeros(len(tokens), self.vocab_size, dtype=torch.int32, device=tokens.device)
        counts.scatter_add_(1, tokens.clamp(min=0), (left & (tokens >= 0)).int())
        anything = (left & (tokens == ANY)).any(1, keepdim=True)
        return (counts > 0) | (anything & self.free)

    def matches(self, place: Tensor, tokens: Tensor) -> Tensor:
        """Phrases that have the tokens ``[rows]`` at a place, bool ``[rows, phrases]``."""
        here, tokens = self._at(place), tokens[:, None]
        return (here == tokens) | ((here == ANY) & (tokens != self.end))

    def _at(self, place: Tensor) -> Tensor:
        """What the phrases have at a place ``[rows]``, int64 ``[rows, phrases]``."""
        index = place.clamp(max=self.tokens.shape[-1] - 1)[:, None, None]
        return self.tokens.gather(-1, index.expand(-1, self.tokens.shape[1], 1))[..., 0]


def _check_ends(phrases: Tensor, lengths: Tensor, end: int | None) -> None:
    """A row has phrases, and knows where each is over."""
    longest = lengths.amax(1)
    if not bool((longest > 0).all()):
        raise ValueError(f"row {int(longest.argmin())} has no phrase; give every row one at least")
    if end is None and not bool(((lengths == 0) | (lengths == longest[:, None])).all()):
        raise ValueError("a row has phrases of several lengths; give end, the token behind each")
    if end is not None and bool((phrases == end).any()):
        raise ValueError(f"a phrase has end={end} in it, where it would be over")


def _check_block(number: int, block: Block, rows: int, vocab_size: int) -> None:
    if len(block.tokens) not in (1, rows):
        raise ValueError(f"block {number} has phrases for {len(block.tokens)} rows; give {rows}, or 1")
    if int(block.tokens.max()) >= vocab_size or int(block.tokens.min()) < ANY:
        raise ValueError(f"block {number} has tokens outside of [0, {vocab_size})")


def _check_reachable(number: int, block: Block, before: Block | None) -> None:
    """Whatever was chosen in the block before, there is a phrase that goes with it."""
    present = (block.tokens != NONE).any(-1)[:, None]
    if before is None:
        chosen, given = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
        present = present & (block.requires == NONE)[:, None]
    else:
        given = (before.tokens != NONE).any(-1)
        chosen = torch.arange(given.shape[1])[None]
    wanted = block.requires[:, None]
    left = (present & ((wanted == NONE) | (wanted == chosen[..., None]))).any(-1)
    if not bool((left | ~given).all()):
        row = int((~left & given).any(-1).nonzero()[0, 0])
        raise ValueError(f"row {row} of block {number} has no phrase for a choice before it; see requires")
