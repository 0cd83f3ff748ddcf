"""One step of vLLM as calls of this library: which rows decode, which belong to prompts, and where keys lie.

A step has the new tokens of many requests, packed behind one another, and a cache of pages. Leading requests
with one new token are decoded over their pages, all in one call. The others are prompts, or pieces of them
behind a prefix that is cached already: their keys are gathered from the pages into packed sequences, all in
one call again. A request of one token that comes later is a prompt as well, which costs time and changes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flashlla.functional import lla_attention_varlen, lla_attention_with_kvcache
from flashlla.integrations.settings import Settings


@dataclass(frozen=True)
class Prompts:
    """The requests that are not decoded.

    Attributes:
        cu_seqlens, cu_seqlens_k: bounds of their queries and keys, int ``[prompts + 1]``.
        pages, rows: where their keys lie, int64 ``[total_k]`` each.
    """

    cu_seqlens: Tensor
    cu_seqlens_k: Tensor
    pages: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Batch:
    """What the layers of a step share.

    Attributes:
        tokens: number of queries; what stands behind them is padding.
        decodes: number of leading requests that are decoded, one query each.
        lengths: keys of each of these, the new one included, int ``[decodes]``.
        block_table: their pages, int ``[decodes, pages]``.
        prompts: the other requests; None if there are none.
    """

    tokens: int
    decodes: int
    lengths: Tensor
    block_table: Tensor
    prompts: Prompts | None


def make_batch(
    query_start: Tensor,
    lengths: Tensor,
    block_table: Tensor,
    *,
    query_start_cpu: Tensor,
    lengths_cpu: Tensor,
    page_size: int,
    window_size: int | None,
) -> Batch:
    """Plan a step, without waiting for the device.

    Args:
        query_start: where the queries of each request start, int ``[requests + 1]``.
        lengths: keys of each request, those of the new tokens included, int ``[requests]``.
        block_table: pages of each request, int ``[requests, max_pages]``; unused entries may be anything.
        query_start_cpu, lengths_cpu: the same on the host.
        window_size: number of keys that a query sees, itself included; None for all. Keys in front of every
            window are left where they are.
    """
    counts = query_start_cpu.diff()
    decodes, tokens = int((counts == 1).cumprod(0).sum()), int(query_start_cpu[-1])
    longest = int(lengths_cpu[:decodes].max()) if decodes else 0
    prompts = None
    if tokens > decodes:
        last = torch.where(counts > 0, lengths_cpu, 0)[decodes:].long()
        first = torch.zeros_like(last)
        if window_size is not None:
            first = (last - counts[decodes:] - (window_size - 1)).clamp(min=0)
        prompts = _prompts(query_start[decodes:] - decodes, block_table[decodes:], first, last, page_size)
    pages = -(-longest // page_size)
    return Batch(tokens, decodes, lengths[:decodes], block_table[:decodes, :pages], prompts)


def _prompts(cu_seqlens: Tensor, block_table: Tensor, first: Tensor, last: Tensor, page_size: int) -> Prompts:
    """Keys ``first`` to ``last`` of each request, int64 ``[requests]`` on the host."""
    sizes = last - first
    bounds = F.pad(sizes.cumsum(0), (1, 0))
    total, device = int(bounds[-1]), block_table.device
    sizes, first, bounds = (t.to(device, non_blocking=True) for t in (sizes, first, bounds))
    request = torch.arange(sizes.shape[0], device=device)
    request = torch.repeat_interleave(request, sizes, output_size=total)
    position = torch.arange(total, device=device) + (first - bounds[:-1])[request]
    pages = block_table[request, position // page_size].long()
    return Prompts(cu_seqlens, bounds, pages, position % page_size)


def write(k_pages: Tensor, v_pages: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """Put new keys and values into their pages, in place.

    Args:
        k_pages, v_pages: ``[pages, page_size, kv_heads, ...]``. Page 0 belongs to no request, as in vLLM.
        k, v: ``[tokens, kv_heads, ...]``; rows behind those of slots are padding.
        slots: int ``[tokens]``, ``page * page_size + row`` for each token; negative for padding.
    """
    page_size = k_pages.shape[1]
    real = (slots >= 0)[:, None, None]
    slots = slots.long().clamp(min=0)
    where = slots // page_size, slots % page_size
    for pages, new in ((k_pages, k), (v_pages, v)):
        pages[where] = torch.where(real, new[: slots.shape[0]], pages[where])


def attend(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    batch: Batch,
    out: Tensor,
    *,
    scale: float,
    window_size: int | None,
    settings: Settings,
) -> Tensor:
    """Local linear attention of all queries of a step over keys that are in their pages.

    Args:
        q: ``[tokens, heads, head_dim]``; out: ``[tokens, heads, value_dim]``, written. Rows that are padding
            are left alone.
        k_pages, v_pages: ``[pages, page_size, kv_heads, ...]``, any strides with the last one 1.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`flashlla.lla_attention_with_kvcache`.
    """
    options = {"scale": scale, "window_size": window_size, **settings._asdict()}
    decodes, prompts = batch.decodes, batch.prompts
    if decodes:
        new = lla_attention_with_kvcache(
            q[:decodes, None],
            k_pages,
            v_pages,
            cache_seqlens=batch.lengths,
            block_table=batch.block_table,
            **options,
        )
        out[:decodes] = new[:, 0]
    if prompts is not None:
        out[decodes : batch.tokens] = lla_attention_varlen(
            q[decodes : batch.tokens],
            k_pages[prompts.pages, prompts.rows],
            v_pages[prompts.pages, prompts.rows],
            prompts.cu_seqlens,
            cu_seqlens_k=prompts.cu_seqlens_k,
            **options,
        )
    return out
