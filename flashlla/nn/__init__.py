"""Modules: attention layers of the family, their key/value caches, and a drop-in for torch's own module."""

from flashlla.nn.attention import LocalLinearAttention, ParallaxAttention, SoftmaxAttention
from flashlla.nn.cache import Cache, GrowingKVCache, KVCache, PagedKVCache, PageTable, SlidingKVCache
from flashlla.nn.multihead import MultiheadAttention, ParallaxMultiheadAttention

__all__ = [
    "Cache",
    "GrowingKVCache",
    "KVCache",
    "LocalLinearAttention",
    "MultiheadAttention",
    "PageTable",
    "PagedKVCache",
    "ParallaxAttention",
    "ParallaxMultiheadAttention",
    "SlidingKVCache",
    "SoftmaxAttention",
]
