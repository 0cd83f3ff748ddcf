"""Caches of every kind, and what they store, for the tests of this folder."""

from flashlla.nn import GrowingKVCache, KVCache, PagedKVCache, PageTable, SlidingKVCache

PAGE = 4


def make_cache(kind, batch=2, capacity=12, *, window_size=5, dtype=None, device=None):
    """A cache for tests: small pages; a growing one starts small; a sliding one has little slack."""
    sizes = {"kv_heads": 3, "head_dim": 4, "value_dim": 6, "dtype": dtype}
    if kind == "paged":
        return PagedKVCache(PageTable.for_batch(batch, capacity, PAGE, device=device), **sizes)
    sizes["device"] = device
    if kind == "sliding":
        return SlidingKVCache(batch, window_size + 2, **sizes, window_size=window_size)
    return GrowingKVCache(batch, 1, **sizes) if kind == "growing" else KVCache(batch, capacity, **sizes)


def stored(cache, row):
    """The keys and values that a cache holds for one row of the batch."""
    length = int(cache.lengths[row])
    if cache.block_table is None:
        return cache.k[row, :length], cache.v[row, :length]
    pages = cache.block_table[row]
    return cache.k[pages].flatten(0, 1)[:length], cache.v[pages].flatten(0, 1)[:length]
