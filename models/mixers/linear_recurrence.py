"""The recurrence that linear attention, GLA, Mamba-2 and MesaNet share, in two forms.

    S_t = Diag(a_t) S_{t-1} + k_t v_t^T,    o_t = S_t^T q_t

with a decay for each entry of the keys, or one for all of them (``log_decay`` of size 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .chunking import decays_between, decays_from_start, decays_to_end, from_chunks, states_before, to_chunks

SMALLEST = 4  # block in which decays of each entry are multiplied in one by one


def recurrent(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One position after the other.

    Args:
        q, k, v: ``[..., seq, key_dim]`` twice, and ``[..., seq, value_dim]``.
        log_decay: ``[..., seq, key_dim or 1]``, at most 0.
        state: ``[..., key_dim, value_dim]``. All leading sizes broadcast.

    Returns:
        ``[..., seq, value_dim]`` and the state behind the last position.
    """
    outs = []
    for t in range(q.shape[-2]):
        decay = log_decay[..., t, :, None].exp()
        state = decay * state + k[..., t, :, None] * v[..., t, None, :]
        outs.append(q[..., t, None, :] @ state)
    return torch.cat(outs, -2), state


def chunked(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, *, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """The same with matrix products inside each chunk, and one step from chunk to chunk.

    With a decay for each entry of the keys chunk_size is a power of 2.
    """
    seq = q.shape[-2]
    q, k, v, log_decay = (to_chunks(t, chunk_size) for t in (q, k, v, log_decay))
    start = decays_from_start(log_decay)
    before, state = write(k, v, start, decays_to_end(log_decay), state)
    if log_decay.shape[-1] == 1:
        out = read(q, k, v, decays_between(log_decay), start, before)
    else:
        out = decayed_scores(q, k, log_decay) @ v + (q * start) @ before
    return from_chunks(out, seq), state


def write(k: Tensor, v: Tensor, start: Tensor, end: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """States in front of every chunk and behind the last; operands in chunks, decays as of chunking."""
    return states_before((k * end).mT @ v, start[..., -1, :, None], state)


def read(q: Tensor, k: Tensor, v: Tensor, within: Tensor, start: Tensor, before: Tensor) -> Tensor:
    """``S_t^T q_t`` for every position of every chunk, with one decay for all entries of the keys."""
    return ((q @ k.mT) * within[..., 0]) @ v + (q * start) @ before


def decayed_scores(q: Tensor, k: Tensor, log_decay: Tensor) -> Tensor:
    """``sum_d q_id k_jd decay_ijd`` for ``j <= i``, ``[..., size, size]``, with size a power of 2.

    A decay of each entry does not stand in front of the product of a query and a key. Split in two at a point
    between j and i it goes into both of them, each part at most 1: so every block of queries meets the block
    of keys on its left in one product, with the boundary as that point, for blocks of growing size. Only
    within the smallest are the decays multiplied in one by one.
    """
    size, block = q.shape[-2], min(SMALLEST, q.shape[-2])
    q, k, log_decay = (t.unflatten(-2, (-1, block)) for t in (q, k, log_decay))
    scores = (q[..., :, None, :] * k[..., None, :, :] * decays_between(log_decay)).sum(-1)
    while block < size:
        q, k, log_decay = (t.unflatten(-3, (-1, 2)) for t in (q, k, log_decay))
        right = q[..., 1, :, :] * decays_from_start(log_decay[..., 1, :, :])
        left = k[..., 0, :, :] * decays_to_end(log_decay[..., 0, :, :])
        scores = _join(scores.unflatten(-3, (-1, 2)), right @ left.mT)
        q, k, log_decay = (t.flatten(-3, -2) for t in (q, k, log_decay))
        block *= 2
    return scores[..., 0, :, :]


def _join(pairs: Tensor, across: Tensor) -> Tensor:
    """Lower triangular blocks ``[..., 2, n, n]`` and what lies below the first, as ``[..., 2 n, 2 n]``."""
    first, second = pairs.unbind(-3)
    upper = torch.cat([first, torch.zeros_like(first)], -1)
    return torch.cat([upper, torch.cat([across, second], -1)], -2)
