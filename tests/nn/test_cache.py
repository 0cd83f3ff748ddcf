"""The caches of all kinds, through their one interface: rows go behind rows, and never around."""

import pytest
import torch
from caches import PAGE, make_cache, stored

from flashlla import (
    lla_attention_with_kvcache,
    parallax_attention_with_kvcache,
    softmax_attention_with_kvcache,
)
from flashlla.nn import KVCache, LocalLinearAttention, SlidingKVCache
from flashlla.nn.cache import KINDS
from flashlla.testing.numerics import assert_within_budget

MEMBERS = {
    "lla": (lla_attention_with_kvcache, {"ridge": 0.5}),
    "parallax": (parallax_attention_with_kvcache, {}),
    "softmax": (softmax_attention_with_kvcache, {}),
}
FULL = ("static", "growing", "paged")  # the kinds that keep every row
every_kind = pytest.mark.parametrize("kind", KINDS)
every_full_kind = pytest.mark.parametrize("kind", FULL)
every_backend = pytest.mark.parametrize("backend", ("blockwise", "cpu"))
every_member = pytest.mark.parametrize("member", MEMBERS)


@pytest.fixture
def rows(generator):
    return torch.randn(2, 5, 3, 4, generator=generator), torch.randn(2, 5, 3, 6, generator=generator)


def operands(member, batch, rows, generator, dtype=torch.float32):
    """Queries (with Parallax's probes), keys and values of ``rows`` new rows."""
    widths = ((6, 4), (6, 4)) if member == "parallax" else ((6, 4),)
    sizes = [(batch, rows, *w) for w in (*widths, (3, 4), (3, 6))]
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def attend(member, cache, new, **options):
    """One step over a cache, as the layers take it; pieces where the cache wants them."""
    function, fixed = MEMBERS[member]
    outs = []
    for *queries, k, v in zip(*(t.split(cache.most_rows or t.shape[1], 1) for t in new), strict=True):
        cache.reserve(k.shape[1])
        where = {"cache_seqlens": cache.lengths, "block_table": cache.block_table}
        outs.append(function(*queries, cache.k, cache.v, k, v, **where, **fixed, **options))
        cache.advance(k.shape[1])
    return torch.cat(outs, 1)


@every_kind
def test_append_writes_behind_the_stored_rows(kind, rows):
    k, v = rows
    cache = make_cache(kind)
    cache.append(k[:, :2], v[:, :2])
    cache.append(k[:, 2:], v[:, 2:])
    for row in range(2):
        assert torch.equal(stored(cache, row)[0], k[row]) and torch.equal(stored(cache, row)[1], v[row])
    assert cache.lengths.tolist() == cache.positions.tolist() == [5, 5]


@every_kind
def test_append_follows_the_length_of_each_row(kind, rows):
    k, v = rows
    cache = make_cache(kind)
    cache.append(k, v)
    cache.truncate(torch.tensor([1, 4]))
    cache.append(k[:, :2], v[:, :2])
    for row, kept in enumerate((1, 4)):
        expected = torch.cat([k[row, :kept], k[row, :2]])[-6:]
        assert torch.equal(stored(cache, row)[0], expected)
    assert cache.lengths.tolist() == cache.positions.tolist() == [3, 6]
    cache.reset()
    assert cache.lengths.tolist() == [0, 0]
    cache.append(k, v)
    assert torch.equal(stored(cache, 1)[1], v[1])


@every_kind
def test_padding_leaves_no_trace(kind, rows):
    k, v = rows
    cache, alone = make_cache(kind), [make_cache(kind, 1), make_cache(kind, 1)]
    for counts in ((3, 0), (1, 3), (0, 2), (3, 3)):
        cache.reserve(3, counts)
        at = cache._slots(3)
        cache.k[at], cache.v[at] = k[:, :3], v[:, :3]
        cache.advance(3, counts)
        for row, n in enumerate(counts):
            alone[row].append(k[row : row + 1, :n], v[row : row + 1, :n])
    assert cache.positions.tolist() == [7, 8]
    for row, one in enumerate(alone):
        n = min(len(stored(cache, row)[0]), len(stored(one, 0)[0]))  # sliding ones move at different times
        assert n >= 4
        for a, b in zip(stored(cache, row), stored(one, 0), strict=True):
            assert torch.equal(a[-n:], b[-n:])


@every_backend
@every_full_kind
@every_member
@pytest.mark.parametrize("length", (0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE - 1))
def test_every_kind_gives_the_bits_of_the_static_cache(
    kind, member, length, generator, backend, poisoned_memory
):
    """What lies in slots that are not used is NaN."""
    expected, cache = make_cache("static", 2, 3 * PAGE), make_cache(kind, 2, 3 * PAGE)
    pieces = [operands(member, 2, n, generator) for n in (length, 1) if n]
    for new in pieces:
        out = attend(member, cache, new, backend=backend)
        assert torch.equal(out, attend(member, expected, new, backend=backend))
        assert out.isfinite().all()


@every_member
@pytest.mark.parametrize("window_size", (1, 2, 5))
@pytest.mark.parametrize("chunks", ([1] * 30, [17, 1, 1, 5, 1, 1, 4], [30]), ids=("steps", "mixed", "once"))
def test_sliding_equals_the_full_cache_under_the_window(
    member, window_size, chunks, generator, poisoned_memory
):
    cache = make_cache("sliding", 2, window_size=window_size)
    expected = make_cache("static", 2, 30, dtype=torch.float64)
    for n in chunks:
        new = operands(member, 2, n, generator)
        exact = attend(
            member, expected, [t.double() for t in new], window_size=window_size, backend="reference"
        )
        out = attend(member, cache, new, window_size=window_size)
        assert_within_budget(out, exact, torch.float32, 0.5)
    assert cache.positions.tolist() == [30, 30]
    assert cache.capacity == window_size + 2


@every_member
def test_steps_over_a_sliding_cache_have_the_bits_of_the_full_one(member, generator):
    cache, expected = make_cache("sliding", 2, window_size=5), make_cache("static", 2, 40)
    for _ in range(40):
        new = operands(member, 2, 1, generator)
        out, full = (attend(member, c, new, window_size=5, backend="cpu") for c in (cache, expected))
        assert torch.equal(out, full)


def test_sliding_truncates_what_it_still_has(rows):
    k, v = rows
    cache = make_cache("sliding", window_size=3)
    for _ in range(2):
        cache.append(k, v)
    assert cache.positions.tolist() == [10, 10]
    before = [t.clone() for t in (cache.lengths, cache.positions)]
    with pytest.raises(ValueError, match=r"lengths\[1\]=4 needs rows before row \d, which are forgotten"):
        cache.truncate([9, 4])
    assert torch.equal(cache.lengths, before[0]) and torch.equal(cache.positions, before[1])
    cache.truncate([9, 20])
    assert cache.positions.tolist() == [9, 10]
    cache.append(k[:, :1], v[:, :1])
    assert torch.equal(stored(cache, 0)[0][-3:], torch.stack([k[0, 2], k[0, 3], k[0, 0]]))
    cache.truncate(9)
    assert torch.equal(stored(cache, 1)[0][-2:], k[1, 2:4])


def test_sliding_truncates_to_the_last_row_that_it_can_and_to_nothing(rows):
    k, v = rows
    cache = make_cache("sliding", window_size=3)
    cache.append(k, v)
    cache.append(k[:, :1], v[:, :1])  # rows 3, 4 and 5 are left
    assert cache.lengths.tolist() == [3, 3]
    with pytest.raises(ValueError, match=r"lengths\[0\]=4 needs rows before row 3"):
        cache.truncate(4)
    cache.truncate([5, 0])
    assert cache.lengths.tolist() == [2, 0] and cache.positions.tolist() == [5, 0]
    cache.append(k, v)
    assert torch.equal(stored(cache, 0)[0][-3:], k[0, 2:]) and cache.positions.tolist() == [10, 5]
    single = make_cache("sliding", window_size=1)  # a query sees itself alone: nothing earlier is needed
    single.append(k, v)
    single.truncate(1)
    assert single.positions.tolist() == [1, 1] and single.lengths.max() <= 1


@pytest.mark.parametrize("kind", ("static", "paged"))
def test_overflow_is_an_error_and_changes_nothing(kind, rows):
    k, v = rows
    cache = make_cache(kind, 2, 8)
    cache.append(k, v)
    before = [t.clone() for t in (cache.k, cache.v, cache.lengths)]
    for overflow in (
        lambda: cache.append(k[:, :4], v[:, :4]),
        lambda: cache.reserve(4),
        lambda: cache.check_room(4),
        lambda: cache.advance(4),
    ):
        with pytest.raises(ValueError, match=r"cache overflow|no pages for 4 more rows"):
            overflow()
    for row in range(2):
        assert torch.equal(stored(cache, row)[0], k[row])
    assert torch.equal(cache.lengths, before[2])
    cache.append(k[:, :3], v[:, :3])
    assert cache.lengths.tolist() == [8, 8]


def test_growing_doubles_and_sliding_stays(rows):
    k, v = rows
    growing, sliding = make_cache("growing"), make_cache("sliding")
    capacities = []
    for _ in range(9):
        growing.append(k[:, :1], v[:, :1])
        sliding.append(k[:, :1], v[:, :1])
        capacities.append(growing.capacity)
    assert capacities == [1, 2, 4, 4, 8, 8, 8, 8, 16]
    assert sliding.capacity == 7
    with pytest.raises(ValueError, match="exceed capacity=16"):
        growing.advance(8)  # without reserve(8)


@every_kind
def test_a_step_never_asks_the_device(kind):
    """Tensors without data cannot be asked for any."""
    cache = make_cache(kind, 2, 60, device="meta")
    for counts in [None, [0, 1]] * 15:
        cache.check_room(2, counts)
        cache.reserve(2, counts)
        assert cache._slots(2)[1].device.type == cache.positions.device.type == "meta"
        cache.advance(2, counts)
    if kind == "paged":
        table = cache.table
        table.select([table.fork(table.selected[0]), *table.selected])
        cache.reserve(1)
        cache.advance(1)
        table.release(table.selected[0])


@every_kind
def test_layers_make_caches_of_their_own_sizes(kind, generator):
    layer = LocalLinearAttention(32, 4, kv_heads=2, value_dim=6, window_size=4)
    x = torch.randn(2, 300, 32, generator=generator)
    with torch.no_grad():
        expected = layer(x)
        cache = layer.make_cache(2, 300, kind=kind, dtype=torch.float32)
        out = torch.cat([layer(piece, cache=cache) for piece in x.split([257, 1, 1, 41], 1)], 1)
    assert_within_budget(out, expected.double(), torch.float32, 0.1)
    assert cache.positions.tolist() == [300, 300]
    if kind == "sliding":
        assert cache.capacity < 150


@every_kind
def test_layers_leave_padding_out(kind, generator):
    layer = LocalLinearAttention(32, 4, kv_heads=2, window_size=6)
    x = torch.randn(3, 40, 32, generator=generator)
    lengths = [40, 0, 7]
    with torch.no_grad():
        cache = layer.make_cache(3, 42, kind=kind)
        out = layer(x, cache=cache, lengths=lengths)
        assert cache.positions.tolist() == lengths
        step = layer(x[:, :2], cache=cache)
        for row, n in enumerate(lengths):
            expected = layer(torch.cat([x[row : row + 1, :n], x[row : row + 1, :2]], 1))[0]
            torch.testing.assert_close(out[row, :n], expected[:n], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(step[row], expected[n:], rtol=1e-4, atol=1e-5)


@every_kind
def test_wrong_rows(kind, rows):
    k, v = rows
    cache = make_cache(kind)
    with pytest.raises(ValueError, match=r"v has shape \(2, 4, 3, 6\); this cache takes \(2, 5, 3, 6\)"):
        cache.append(k, v[:, :4])
    with pytest.raises(ValueError, match="k has shape"):
        cache.append(k[0], v[0])
    with pytest.raises(TypeError, match=r"k has dtype torch.float64 and the cache has torch.float32"):
        cache.append(k.double(), v)
    for error, message, call in (
        (ValueError, "rows=-1", lambda: cache.advance(-1)),
        (ValueError, "rows=-1", lambda: cache.reserve(-1)),
        (ValueError, "counts has 1 entries for a batch of 2", lambda: cache.reserve(2, [1])),
        (ValueError, "counts has the entry 3; of 2 new rows", lambda: cache.reserve(2, [1, 3])),
        (ValueError, "counts has the entry -1", lambda: cache.advance(2, [1, -1])),
        (ValueError, "lengths has 1 entries", lambda: cache.truncate(torch.tensor([1]))),
        (ValueError, "lengths has the entry -1", lambda: cache.truncate(-1)),
    ):
        with pytest.raises(error, match=message):
            call()
    assert cache.lengths.tolist() == [0, 0]


def test_wrong_sizes_and_wrong_layers(generator):
    with pytest.raises(ValueError, match="capacity=0 must be at least 1"):
        KVCache(2, 0, 3, 4)
    with pytest.raises(TypeError, match="batch must be an int"):
        KVCache(2.0, 1, 3, 4)
    with pytest.raises(ValueError, match="capacity=3 is below window_size=4"):
        SlidingKVCache(2, 3, 3, 4, window_size=4)
    with pytest.raises(ValueError, match="rows=4 at once exceed the limit of 3"):
        make_cache("sliding").reserve(4)
    wide, narrow = (LocalLinearAttention(32, 4, window_size=w) for w in (None, 4))
    with pytest.raises(ValueError, match="kind='sliding' needs a layer with a window_size"):
        wide.make_cache(2, 8, kind="sliding")
    with pytest.raises(ValueError, match="kind='rolling' is unknown; choose one of static"):
        wide.make_cache(2, 8, kind="rolling")
    x = torch.randn(2, 3, 32, generator=generator)
    with pytest.raises(ValueError, match="cache keeps a window of 4 and the layer has window_size=None"):
        wide(x, cache=narrow.make_cache(2, 8, kind="sliding"))
    with pytest.raises(ValueError, match="lengths is for new rows of a cache"):
        wide(x, lengths=[1, 2])
    with pytest.raises(TypeError, match="lengths must be a list of ints"):
        wide(x, cache=wide.make_cache(2, 8), lengths=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="lengths has 1 entries"):
        wide(x, cache=wide.make_cache(2, 8), lengths=[1])
