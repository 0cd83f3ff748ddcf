"""Drawings of masks, by the public functions themselves.

Softmax attention over values that are the rows of an identity matrix returns its weights, and a key is
visible where its weight is not 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashlla import softmax_attention, softmax_attention_varlen, softmax_attention_with_kvcache

SEEN, HIDDEN, UNREAD = "■", "·", "░"


def drawings() -> dict[str, str]:
    """Fenced text by its marker in docs/semantics.md."""
    found = {
        "mask-causal": dense(5, 5),
        "mask-few-queries": dense(3, 5),
        "mask-few-keys": dense(5, 3),
        "mask-window": dense(6, 6, window_size=3),
        "mask-full": dense(3, 5, causal=False),
        "mask-packed": packed([0, 3, 7]),
        "mask-cache": cached([5, 2], new=2, capacity=8),
        "mask-cache-window": cached([5, 2], new=2, capacity=8, window_size=3),
    }
    return {marker: f"```text\n{text}\n```" for marker, text in found.items()}


def dense(q_len: int, kv_len: int, **options) -> str:
    """One sequence."""
    values = torch.eye(kv_len).view(1, kv_len, 1, kv_len)
    weights = softmax_attention(torch.zeros(1, q_len, 1, 4), torch.zeros(1, kv_len, 1, 4), values, **options)
    return "\n".join([header(kv_len), *rows(weights[0, :, 0])])


def packed(bounds: list[int]) -> str:
    """Sequences behind one another."""
    total = bounds[-1]
    x, values = torch.zeros(total, 1, 4), torch.eye(total).view(total, 1, total)
    weights = softmax_attention_varlen(x, x, values, torch.tensor(bounds))
    return "\n".join([header(total), *rows(weights[:, 0])])


def cached(used: list[int], new: int, capacity: int, **options) -> str:
    """New rows of several sequences over a cache that has more room than they use."""
    batch = len(used)
    places = torch.tensor(used)[:, None] + torch.arange(new)
    values = torch.eye(capacity)
    weights = softmax_attention_with_kvcache(
        torch.zeros(batch, new, 1, 4),
        torch.zeros(batch, capacity, 1, 4),
        values.expand(batch, 1, capacity, capacity).transpose(1, 2).contiguous(),
        torch.zeros(batch, new, 1, 4),
        values[places][:, :, None],
        cache_seqlens=torch.tensor(used),
        **options,
    )
    lines = []
    for b, length in enumerate(used):
        lines += [f"sequence {b}, {length} used", header(capacity), *rows(weights[b, :, 0], length + new), ""]
    return "\n".join(lines[:-1])


def header(keys: int) -> str:
    return f"{'key':>7}  {' '.join(map(str, range(keys)))}"


def rows(weights: Tensor, read: int | None = None) -> list[str]:
    """A line a query: what it sees, what the mask hides, and from ``read`` on what is never read."""
    lines = []
    for i, row in enumerate((weights > 0).tolist()):
        cells = [SEEN if seen else HIDDEN for seen in row[:read]] + [UNREAD] * len(row[read:] if read else [])
        lines.append(f"query {i}  {' '.join(cells)}   sees {sum(row)}")
    return lines
