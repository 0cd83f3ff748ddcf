"""Which pages hold which sequence: the bookkeeping that the paged caches of all layers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from flashlla.nn.cache.base import check_counts, on_device
from flashlla.nn.checks import check_sizes

if TYPE_CHECKING:
    from flashlla.nn.cache.paged import PagedKVCache


@dataclass
class _Sequence:
    """The pages of one sequence in order, and its rows; there may be more pages than the rows need."""

    pages: list[int] = field(default_factory=list)
    length: int = 0


class _Claim(NamedTuple):
    """What a step needs of the pages of one sequence."""

    sequence: _Sequence
    copied: int | None  # index of a page that others share and that will be written into
    new: int


class PageTable:
    """Sequences of rows in pages of ``page_size``, the same in every layer, with counts of who uses a page.

    Sequences come (:meth:`admit`, :meth:`fork`) and go (:meth:`release`) at any time; :meth:`select` says
    which of them are the rows of the batch from then on. Pages are taken one by one as rows are written, are
    shared by forks, and are copied when one of those who share a page writes into it. All of it is plain
    Python on the host; a GPU is sent lengths and block table when they change, and is never waited for.

    The caches of a model's layers register here in the order in which they run. The first of them makes
    room in a step and the last counts the rows in, so that a step that fails on the way changes no length.

    Args:
        pages: number of pages, in each layer.
        page_size: rows of a page.
        device: where the caches are.

    Attributes:
        lengths: rows of the selected sequences, int64 ``[batch]``.

    Raises:
        TypeError, ValueError: a size that is no int of at least 1.
    """

    def __init__(self, pages: int, page_size: int = 16, *, device: torch.device | str | None = None):
        check_sizes(pages=pages, page_size=page_size)
        self.pages, self.page_size, self.device = pages, page_size, device
        self.lengths = torch.zeros(0, dtype=torch.int64, device=device)
        self._free = list(range(pages - 1, -1, -1))
        self._references = [0] * pages
        self._sequences: dict[int, _Sequence] = {}
        self._selected: tuple[int, ...] = ()
        self._next = 0
        self._block_table: Tensor | None = None  # made when it is asked for
        self._width = 0
        self._caches: list[PagedKVCache] = []

    @classmethod
    def for_batch(
        cls, batch: int, capacity: int, page_size: int = 16, *, device: torch.device | str | None = None
    ) -> PageTable:
        """A table that holds ``batch`` sequences of ``capacity`` rows, with these admitted and selected."""
        check_sizes(batch=batch, capacity=capacity, page_size=page_size)
        table = cls(batch * -(-capacity // page_size), page_size, device=device)
        table.select([table.admit() for _ in range(batch)])
        return table

    # ---- sequences -----------------------------------------------------------------------------------

    @property
    def sequences(self) -> tuple[int, ...]:
        """Names of all sequences, in the order of their admission."""
        return tuple(self._sequences)

    @property
    def selected(self) -> tuple[int, ...]:
        """Names of the sequences that are the batch."""
        return self._selected

    @property
    def free_pages(self) -> int:
        """Number of pages that no sequence uses."""
        return len(self._free)

    def references(self, page: int) -> int:
        """Number of sequences that use a page."""
        return self._references[page]

    def pages_of(self, sequence: int) -> tuple[int, ...]:
        """The pages of a sequence, in order.

        Raises:
            ValueError: there is no such sequence.
        """
        return tuple(self._find(sequence).pages)

    def length_of(self, sequence: int) -> int:
        """Rows of a sequence. Raises as :meth:`pages_of`."""
        return self._find(sequence).length

    def admit(self) -> int:
        """A new sequence without rows; returns its name, which is never used again."""
        name = self._next
        self._next += 1
        self._sequences[name] = _Sequence()
        return name

    def fork(self, sequence: int, length: int | None = None) -> int:
        """A new sequence that starts with the rows of another, or the first ``length`` of them; shares pages.

        Raises:
            ValueError: no such sequence, or length out of range.
        """
        parent = self._find(sequence)
        length = parent.length if length is None else length
        if not 0 <= length <= parent.length:
            raise ValueError(f"length={length} must lie in [0, {parent.length}], the rows of the sequence")
        name = self.admit()
        child = self._sequences[name]
        child.length, child.pages = length, parent.pages[: self._pages_for(length)]
        for page in child.pages:
            self._references[page] += 1
        return name

    def release(self, sequence: int) -> None:
        """Forget a sequence and return the pages that no other uses; it leaves the batch if it is there.

        Raises:
            ValueError: there is no such sequence.
        """
        self._cut(self._find(sequence), 0)
        del self._sequences[sequence]
        if sequence in self._selected:
            self.select([s for s in self._selected if s != sequence])

    def select(self, sequences: Sequence[int]) -> None:
        """Make ``sequences`` the rows of the batch, in this order.

        Raises:
            ValueError: one that does not exist, or twice the same.
        """
        for s in sequences:
            self._find(s)
        if len(set(sequences)) != len(sequences):
            raise ValueError(f"sequences={list(sequences)} names one twice; fork() it to go on in two ways")
        self._selected = tuple(sequences)
        self._mirror()

    def truncate(self, sequence: int, length: int) -> None:
        """Keep at most the first ``length`` rows of a sequence, and no more pages than these need.

        Raises:
            ValueError: no such sequence, or a length below 0.
        """
        found = self._find(sequence)
        if length < 0:
            raise ValueError(f"length={length} must be at least 0")
        self._cut(found, min(length, found.length))
        if sequence in self._selected:
            self._mirror()

    # ---- steps of the selected sequences ---------------------------------------------------------------

    @property
    def block_table(self) -> Tensor:
        """Pages of the selected sequences, int64 ``[batch, max_pages]``.

        Entries behind the pages of a sequence name page ``pages``, into which padding is written.
        """
        if self._block_table is None:
            rows = [self._sequences[s].pages for s in self._selected]
            width = max(self._width, 1)
            padded = [[*pages, *[self.pages] * (width - len(pages))] for pages in rows]
            self._block_table = on_device(padded, self.device).reshape(len(rows), width)
        return self._block_table

    def check_room(self, rows: int, counts: Sequence[int] | None = None) -> None:
        """Raise ValueError if the free pages do not hold ``rows`` more rows of each selected sequence."""
        self._plan(rows, counts)

    def reserve(self, rows: int, counts: Sequence[int] | None = None) -> None:
        """Take the pages for ``rows`` more rows, of which ``counts`` are real, and copy those to write into.

        Raises:
            ValueError: too few free pages; nothing has changed.
        """
        copies = []
        for sequence, copied, new in self._plan(rows, counts):
            if copied is not None:
                shared, own = sequence.pages[copied], self._take()
                sequence.pages[copied] = own
                self._references[shared] -= 1
                copies.append((shared, own))
            sequence.pages.extend(self._take() for _ in range(new))
            if copied is not None or new:
                self._block_table = None
        if copies:
            source, target = on_device(copies, self.device).unbind(1)
            for cache in self._caches:
                cache.copy_pages(source, target)
        width = max((self._pages_for(self._sequences[s].length + rows) for s in self._selected), default=0)
        if width > self._width:
            self._width, self._block_table = width, None

    def advance(self, rows: int, counts: Sequence[int] | None = None) -> None:
        """Count rows in.

        Raises:
            ValueError: their pages have not been reserved.
        """
        check_counts(rows, counts, len(self._selected))
        counts = [rows] * len(self._selected) if counts is None else counts
        found = [self._sequences[s] for s in self._selected]
        for name, sequence, count in zip(self._selected, found, counts, strict=True):
            if self._pages_for(sequence.length + count) > len(sequence.pages):
                raise ValueError(f"sequence {name} has no pages for {count} more rows; reserve() them first")
        for sequence, count in zip(found, counts, strict=True):
            sequence.length += count
        same = len(set(counts)) == 1
        self.lengths += counts[0] if same else on_device(counts, self.device)

    def register(self, cache: PagedKVCache) -> int:
        """Add a layer's cache, which copies pages when told to; returns its place among the layers.

        Raises:
            ValueError: there are rows already, which this cache would not have.
        """
        if any(sequence.length for sequence in self._sequences.values()):
            raise ValueError(
                "the table has rows that a new cache would lack; make all caches before any rows"
            )
        self._caches.append(cache)
        return len(self._caches) - 1

    @property
    def layers(self) -> int:
        """Number of registered caches."""
        return len(self._caches)

    def _plan(self, rows: int, counts: Sequence[int] | None) -> list[_Claim]:
        """What the selected sequences need, or ValueError if the free pages are too few."""
        check_counts(rows, counts, len(self._selected))
        sharers: dict[int, int] = {}  # of a page, once the copies before are made
        plan = []
        for i, name in enumerate(self._selected):
            sequence = self._sequences[name]
            count = rows if counts is None else counts[i]
            copied = None
            if rows and sequence.length % self.page_size:
                page = sequence.pages[sequence.length // self.page_size]
                if sharers.setdefault(page, self._references[page]) > 1:
                    sharers[page] -= 1
                    copied = sequence.length // self.page_size
            new = max(self._pages_for(sequence.length + count) - len(sequence.pages), 0)
            plan.append(_Claim(sequence, copied, new))
        needed = sum(claim.new + (claim.copied is not None) for claim in plan)
        if needed > len(self._free):
            raise ValueError(
                f"cache overflow: {needed} more pages of {self.page_size} rows are needed and "
                f"{len(self._free)} of {self.pages} are free; release() or truncate() sequences, "
                "or make a larger table"
            )
        return plan

    def _mirror(self) -> None:
        """Lengths and block table of the selected sequences, anew."""
        found = [self._sequences[s] for s in self._selected]
        self.lengths = on_device([s.length for s in found], self.device)
        self._width = max((len(s.pages) for s in found), default=0)
        self._block_table = None

    def _pages_for(self, rows: int) -> int:
        return -(-rows // self.page_size)

    def _take(self) -> int:
        page = self._free.pop()
        self._references[page] = 1
        return page

    def _cut(self, sequence: _Sequence, length: int) -> None:
        kept = self._pages_for(length)
        for page in reversed(sequence.pages[kept:]):
            self._references[page] -= 1
            if not self._references[page]:
                self._free.append(page)
        sequence.pages, sequence.length = sequence.pages[:kept], length

    def _find(self, name: int) -> _Sequence:
        if name not in self._sequences:
            raise ValueError(f"sequence {name!r} is not there: never admitted, or released; see sequences")
        return self._sequences[name]
