"""flashlla: local linear attention for PyTorch.

Softmax attention answers a query with a weighted average of the values. Local linear
attention (LLA) answers it with a weighted ridge regression of the values on the keys,
evaluated at the query. The public functions live in :mod:`flashlla.functional`, the
modules in :mod:`flashlla.nn`.
"""

from flashlla.functional import (
    AttentionWithStats,
    lla_attention,
    lla_attention_varlen,
    lla_attention_varlen_with_stats,
    lla_attention_with_kvcache,
    lla_attention_with_stats,
    parallax_attention,
    parallax_attention_varlen,
    parallax_attention_with_kvcache,
    parallax_attention_with_stats,
    softmax_attention,
    softmax_attention_varlen,
    softmax_attention_with_kvcache,
)

__version__ = "0.1.0"

__all__ = [
    "AttentionWithStats",
    "__version__",
    "lla_attention",
    "lla_attention_varlen",
    "lla_attention_varlen_with_stats",
    "lla_attention_with_kvcache",
    "lla_attention_with_stats",
    "parallax_attention",
    "parallax_attention_varlen",
    "parallax_attention_with_kvcache",
    "parallax_attention_with_stats",
    "softmax_attention",
    "softmax_attention_varlen",
    "softmax_attention_with_kvcache",
]
