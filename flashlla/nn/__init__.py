"""Modules: attention layers of the family, their key/value cache, and a drop-in for torch's own module."""

from flashlla.nn.attention import LocalLinearAttention, ParallaxAttention, SoftmaxAttention
from flashlla.nn.cache import KVCache
from flashlla.nn.multihead import MultiheadAttention

__all__ = ["KVCache", "LocalLinearAttention", "MultiheadAttention", "ParallaxAttention", "SoftmaxAttention"]
