"""Paged caches: sequences that come, share pages, part and go, and pages of which none is ever lost."""

import copy
import random

import pytest
import torch
from caches import PAGE, stored

from flashlla import lla_attention_with_kvcache
from flashlla.nn import LocalLinearAttention, PagedKVCache, PageTable
from flashlla.testing.numerics import assert_within_budget

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def make_layers(table, number=2):
    """Layers that share a table, and their caches; ridge 0.5."""
    torch.manual_seed(0)
    layers = [LocalLinearAttention(16, 2, kv_heads=1, ridge=0.5, backend="cpu") for _ in range(number)]
    return layers, [layer.make_paged_cache(table) for layer in layers]


@torch.no_grad()
def step(layers, caches, x, lengths=None):
    """One step of all layers, each reading the same rows: ``[layers, batch, rows, dim]``."""
    return torch.stack([layer(x, cache=c, lengths=lengths) for layer, c in zip(layers, caches, strict=True)])


def write(table, cache, sequence, rows):
    table.select([sequence])
    cache.append(*rows)


def new_rows(generator, rows, batch=1):
    return [torch.randn(batch, rows, 2, width, generator=generator) for width in (4, 6)]


def look(cache, generator_seed=1):
    """Attention of one query a selected sequence over all it holds."""
    q = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(generator_seed))
    return lla_attention_with_kvcache(
        q.expand(cache.batch, 1, 4, 4),
        cache.k,
        cache.v,
        cache_seqlens=cache.lengths,
        block_table=cache.block_table,
        ridge=0.5,
    )


def assert_no_page_is_lost(table):
    counted = [0] * table.pages
    for sequence in table.sequences:
        pages = table.pages_of(sequence)
        assert len(set(pages)) == len(pages)
        assert len(pages) * table.page_size >= table.length_of(sequence)
        for page in pages:
            counted[page] += 1
    assert counted == [table.references(page) for page in range(table.pages)]
    assert table.free_pages + sum(n > 0 for n in counted) == table.pages


# ---- sharing ---------------------------------------------------------------------------------------------


LENGTHS = (0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE)


@pytest.mark.parametrize(("length", "kept"), [(n, kept) for n in LENGTHS for kept in LENGTHS if kept <= n])
def test_fork_then_diverge_equals_two_separate_sequences(length, kept, generator):
    prefix, one, two = (new_rows(generator, n) for n in (length, 2 * PAGE + 1, 3))
    table, separate = PageTable(24, PAGE), PageTable(24, PAGE)
    cache, expected = PagedKVCache(table, 2, 4, 6), PagedKVCache(separate, 2, 4, 6)
    a = table.admit()
    write(table, cache, a, prefix)
    b = table.fork(a, kept)
    assert table.free_pages == 24 - -(-length // PAGE)  # nothing is copied before it is written to
    write(table, cache, b, two)
    write(table, cache, a, one)
    c, d = separate.admit(), separate.admit()
    write(separate, expected, c, prefix)
    write(separate, expected, c, one)
    write(separate, expected, d, [t[:, :kept] for t in prefix])
    write(separate, expected, d, two)
    table.select([a, b])
    separate.select([c, d])
    assert cache.lengths.tolist() == expected.lengths.tolist() == [length + 2 * PAGE + 1, kept + 3]
    for row in range(2):
        for ours, theirs in zip(stored(cache, row), stored(expected, row), strict=True):
            assert torch.equal(ours, theirs)
    assert torch.equal(look(cache), look(expected))
    shared = kept // PAGE
    assert table.pages_of(a)[:shared] == table.pages_of(b)[:shared]
    assert not set(table.pages_of(a)[shared:]) & set(table.pages_of(b)[shared:])
    assert_no_page_is_lost(table)


def test_a_shared_last_page_is_copied_once_less_than_it_is_shared(generator):
    prefix, more = new_rows(generator, PAGE + 2), new_rows(generator, 2, batch=3)
    table = PageTable(4, PAGE)  # two for the prefix, two copies: not one to spare
    cache = PagedKVCache(table, 2, 4, 6)
    a = table.admit()
    write(table, cache, a, prefix)
    table.select([a, table.fork(a), table.fork(a)])
    cache.append(*more)
    assert table.free_pages == 0
    assert_no_page_is_lost(table)
    for row in range(3):
        for ours, start, end in zip(stored(cache, row), prefix, more, strict=True):
            assert torch.equal(ours, torch.cat([start[0], end[row]]))


def test_the_order_of_pages_does_not_matter(generator):
    rows = new_rows(generator, 5 * PAGE - 1)
    outs = []
    for seed in range(3):
        table = PageTable(8, PAGE)
        cache = PagedKVCache(table, 2, 4, 6)
        fillers = [table.admit() for _ in range(8)]
        table.select(fillers)
        table.reserve(1)
        for sequence in random.Random(seed).sample(fillers, 8):
            table.release(sequence)
        a = table.admit()
        write(table, cache, a, rows)
        outs.append((table.pages_of(a), look(cache)))
    assert len({pages for pages, _ in outs}) == 3
    assert all(torch.equal(out, outs[0][1]) for _, out in outs)


def test_alone_or_in_a_batch(generator):
    table = PageTable(32, PAGE)
    cache = PagedKVCache(table, 2, 4, 6)
    sequences = [table.admit() for _ in range(5)]
    for sequence, n in zip(sequences, (PAGE, 3, 1, 4 * PAGE + 1, 2 * PAGE), strict=True):
        write(table, cache, sequence, new_rows(generator, n))
    table.select(sequences)
    together = look(cache)
    for row in (3, 0, 4, 1, 2):
        table.select([sequences[row]])
        assert torch.equal(look(cache)[0], together[row])
    table.select([sequences[4], sequences[1]])
    assert torch.equal(look(cache), together[[4, 1]])


def test_sequences_that_wait_take_no_pages(generator):
    table = PageTable(2, PAGE)
    layers, caches = make_layers(table)
    a, b = table.admit(), table.admit()
    table.select([a, b])
    x = torch.randn(2, PAGE, 16, generator=generator)
    step(layers, caches, x, [PAGE, PAGE])
    before = stored(caches[1], 0)[0].clone()
    for _ in range(3):
        with pytest.raises(ValueError, match="cache overflow: 1 more pages"):
            step(layers, caches, x[:, :1], [1, 0])
        step(layers, caches, x[:, :3], [0, 0])
    assert caches[0].lengths.tolist() == [PAGE, PAGE]
    assert torch.equal(stored(caches[1], 0)[0], before)
    table.release(b)
    assert table.selected == (a,) and table.free_pages == 1
    step(layers, caches, x[:1, :1])
    assert caches[1].lengths.tolist() == [PAGE + 1]


def test_padding_is_kept_out_of_pages_of_others(generator):
    table = PageTable(8, PAGE)
    cache = PagedKVCache(table, 2, 4, 6)
    a = table.admit()
    rows = new_rows(generator, PAGE)
    write(table, cache, a, rows)
    b = table.fork(a, 1)  # its next slot is the second row of a
    table.select([b])
    cache.reserve(2, [0])
    at = cache._slots(2)
    cache.k[at] = cache.v[at] = 0.0
    cache.advance(2, [0])
    table.select([a, b])
    assert torch.equal(stored(cache, 0)[0], rows[0][0]) and torch.equal(stored(cache, 1)[0], rows[0][0, :1])


# ---- errors ----------------------------------------------------------------------------------------------


def test_overflow_leaves_everything_as_it_was(generator):
    table = PageTable(3, PAGE)
    layers, caches = make_layers(table)
    a = table.admit()
    table.select([a])
    x = torch.randn(2, 2 * PAGE, 16, generator=generator)
    step(layers, caches, x[:1, : PAGE + 1])
    b = table.fork(a)
    table.select([a, b])
    kept = [[t.clone() for t in stored(c, row)] for c in caches for row in range(2)]
    for rows in (PAGE, 2 * PAGE):  # with a page to copy, or only because of the second sequence
        with pytest.raises(ValueError, match=r"cache overflow: . more pages of 4 rows are needed and 1 of 3"):
            step(layers, caches, x[:, :rows])
    assert table.pages_of(a) == table.pages_of(b) and table.free_pages == 1
    assert caches[0].lengths.tolist() == [PAGE + 1, PAGE + 1]
    again = [stored(c, row) for c in caches for row in range(2)]
    for old, new in zip(kept, again, strict=True):
        assert torch.equal(old[0], new[0]) and torch.equal(old[1], new[1])
    step(layers, caches, x[:, :1])
    assert table.free_pages == 0


def test_a_step_that_fails_on_the_way_changes_no_length(generator):
    table = PageTable(8, PAGE)
    layers, caches = make_layers(table)
    table.select([table.admit()])
    x = torch.randn(1, 3, 16, generator=generator)
    expected = step(layers, caches, x)
    with pytest.raises(ValueError, match="cache has"):
        step([layers[0], LocalLinearAttention(16, 4)], caches, x)
    assert caches[0].lengths.tolist() == [3]
    caches[0].truncate(0)
    assert torch.equal(step(layers, caches, x), expected)
    assert_no_page_is_lost(table)


def test_wrong_calls():
    table = PageTable(4, PAGE)
    a, gone = table.admit(), table.admit()
    table.release(gone)
    assert table.admit() not in (a, gone)
    for error, message, call in (
        (ValueError, "sequence 1 is not there", lambda: table.release(gone)),
        (ValueError, "sequence 1 is not there", lambda: table.fork(gone)),
        (ValueError, "sequence 1 is not there", lambda: table.truncate(gone, 0)),
        (ValueError, "sequence 1 is not there", lambda: table.select([a, gone])),
        (ValueError, "sequence 1 is not there", lambda: table.length_of(gone)),
        (ValueError, "names one twice", lambda: table.select([a, a])),
        (ValueError, r"length=1 must lie in \[0, 0\]", lambda: table.fork(a, 1)),
        (ValueError, "length=-1", lambda: table.truncate(a, -1)),
        (ValueError, "pages=0", lambda: PageTable(0)),
        (TypeError, "page_size must be an int", lambda: PageTable(1, 2.0)),
        (ValueError, "head_dim=0", lambda: PagedKVCache(table, 1, 0)),
    ):
        with pytest.raises(error, match=message):
            call()
    assert table.selected == () and table.sequences == (a, 2)
    cache = PagedKVCache(table, 1, 4)
    table.select([a])
    cache.append(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))
    with pytest.raises(ValueError, match="make all caches before any rows"):
        PagedKVCache(table, 1, 4)


# ---- a long life -----------------------------------------------------------------------------------------


class Life:
    """Random admissions, forks, truncations, evictions and steps, beside what each sequence has read."""

    def __init__(self, seed, pages=40, page_size=PAGE):
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.table = PageTable(pages, page_size)
        self.layers, self.caches = make_layers(self.table)
        self.read: dict[int, torch.Tensor] = {}
        self.overflows = 0

    def act(self):
        names = list(self.read)
        choice = self.random.random()
        if not names or (choice < 0.1 and len(names) < 12):
            self.read[self.table.admit()] = torch.empty(0, 16)
        elif choice < 0.2:
            parent = self.random.choice(names)
            length = self.random.choice((None, self.random.randint(0, len(self.read[parent]))))
            self.read[self.table.fork(parent, length)] = self.read[parent][:length]
        elif choice < 0.28:
            name, length = self.random.choice(names), self.random.randint(0, 40)
            self.table.truncate(name, length)
            self.read[name] = self.read[name][:length]
        elif choice < 0.36:
            self.evict(self.random.choice(names))
        else:
            self.step(self.random.sample(names, min(len(names), self.random.randint(1, 4))))

    def evict(self, name):
        self.table.release(name)
        del self.read[name]

    def step(self, names):
        rows = self.random.choice((1, 1, 1, 1, 2, 5, PAGE, 3 * PAGE + 1))
        counts = self.random.choice((None, [self.random.randint(0, rows) for _ in names]))
        x = torch.randn(len(names), rows, 16, generator=self.generator)
        self.table.select(names)
        before = self.state()
        try:
            step(self.layers, self.caches, x, counts)
        except ValueError as error:
            assert "cache overflow" in str(error)
            assert self.state() == before
            self.overflows += 1
            self.evict(self.random.choice(list(self.read)))
            return
        for row, name in enumerate(names):
            new = x[row] if counts is None else x[row, : counts[row]]
            self.read[name] = torch.cat([self.read[name], new])

    def state(self):
        table = self.table
        return {s: (table.pages_of(s), table.length_of(s)) for s in table.sequences}, table.free_pages

    @torch.no_grad()
    def check(self):
        """Nothing leaked, nothing drifted: each sequence answers as a fresh pass over what it read does."""
        assert_no_page_is_lost(self.table)
        while not self.table.free_pages:  # one is needed to look at a sequence without a change to it
            self.evict(self.random.choice(list(self.read)))
        exact = [copy.deepcopy(layer).double() for layer in self.layers]
        for layer in exact:
            layer.backend = "reference"
        for name, x in self.read.items():
            assert self.table.length_of(name) == len(x)
            if len(x):
                branch = self.table.fork(name, len(x) - 1)
                self.table.select([branch])
                last = step(self.layers, self.caches, x[None, -1:])[:, 0, 0]
                self.table.release(branch)
                for out, layer in zip(last, exact, strict=True):
                    assert_within_budget(out, layer(x[None].double())[0, -1], torch.float32, 0.5)


@pytest.mark.parametrize("steps", (500, pytest.param(10_000, marks=pytest.mark.slow)))
def test_soak(steps):
    life = Life(seed=steps)
    for i in range(1, steps + 1):
        life.act()
        if i % (steps // 10) == 0:
            life.check()
    assert life.overflows > steps // 100
    for name in list(life.read):
        life.evict(name)
    assert life.table.free_pages == life.table.pages and life.table.selected == ()
