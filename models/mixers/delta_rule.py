"""The delta rule with decay, which DeltaNet (a decay of 1) and Gated DeltaNet share, in two forms.

    S_t = a_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,    o_t = S_t^T q_t

The write is that of linear attention with ``u_t = beta_t (v_t - a_t S_{t-1}^T k_t)`` in place of ``v_t``.
With ``S`` the state in front of a chunk, ``d_i`` what is left of it at i, and ``d_ij`` the decay from j to i,

    u_i + beta_i sum_{j<i} d_ij (k_i . k_j) u_j = beta_i (v_i - d_i S^T k_i),

a unit lower triangular system: its solutions for the two right-hand sides are the WY representation of
arXiv 2406.06484 (section 3), and with decays that of arXiv 2412.06464 (section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .chunking import decays_between, decays_from_start, decays_to_end, from_chunks, to_chunks


def recurrent(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One position after the other.

    Args:
        q, k, v: ``[..., seq, key_dim]`` twice, and ``[..., seq, value_dim]``.
        beta, log_decay: strength of each write, and what decays before it, ``[..., seq, 1]``.
        state: ``[..., key_dim, value_dim]``. All leading sizes broadcast.

    Returns:
        ``[..., seq, value_dim]`` and the state behind the last position.
    """
    outs = []
    for t in range(q.shape[-2]):
        q_t, k_t, v_t, beta_t = (x[..., t : t + 1, :] for x in (q, k, v, beta))
        state = log_decay[..., t, :, None].exp() * state
        state = state + k_t.mT * (beta_t * (v_t - k_t @ state))
        outs.append(q_t @ state)
    return torch.cat(outs, -2), state


def chunked(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor, *, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """The same with matrix products inside each chunk, and one step from chunk to chunk."""
    seq = q.shape[-2]
    q, k, v, beta, log_decay = (to_chunks(t, chunk_size) for t in (q, k, v, beta, log_decay))
    within, start = decays_between(log_decay), decays_from_start(log_decay)
    written, erased = _wy(k, v, beta, within[..., 0], start)
    scores, q_start, kept = (q @ k.mT) * within[..., 0], q * start, k * decays_to_end(log_decay)
    outs = []
    for chunk in range(q.shape[-3]):
        u = written[..., chunk, :, :] - erased[..., chunk, :, :] @ state
        outs.append(scores[..., chunk, :, :] @ u + q_start[..., chunk, :, :] @ state)
        state = start[..., chunk, -1:, :] * state + kept[..., chunk, :, :].mT @ u
    return from_chunks(torch.stack(outs, -3), seq), state


def _wy(k: Tensor, v: Tensor, beta: Tensor, within: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """``u = written - erased @ state`` for every chunk: the system of the module, solved twice."""
    system = (beta * (k @ k.mT) * within).tril(-1)
    sides = torch.cat([beta * v, beta * start * k], -1)
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    return solved.split([v.shape[-1], k.shape[-1]], -1)
