"""Key/value caches: one interface (:class:`Cache`), and the ways to hold the rows behind it."""

from flashlla.nn.cache.base import Cache
from flashlla.nn.cache.growing import GrowingKVCache
from flashlla.nn.cache.paged import PagedKVCache
from flashlla.nn.cache.sliding import SlidingKVCache
from flashlla.nn.cache.static import KVCache
from flashlla.nn.cache.table import PageTable

KINDS = ("static", "growing", "sliding", "paged")

__all__ = ["KINDS", "Cache", "GrowingKVCache", "KVCache", "PageTable", "PagedKVCache", "SlidingKVCache"]
