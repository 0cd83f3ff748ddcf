"""Sequences in chunks, and decays between the positions of a chunk.

A decay from position j to i is the exponential of a sum of logarithms over the positions in between. That sum
is taken itself, not as the difference of two sums from the start of the chunk: differences lose the digits of
small decays behind a large one, and are no number behind a decay to zero.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def to_chunks(x: Tensor, size: int) -> Tensor:
    """``[..., seq, n]`` to ``[..., chunks, size, n]``, zeros behind the end."""
    missing = -x.shape[-2] % size
    return F.pad(x, (0, 0, 0, missing)).unflatten(-2, (-1, size))


def from_chunks(x: Tensor, seq: int) -> Tensor:
    """The inverse of :func:`to_chunks`."""
    return x.flatten(-3, -2)[..., :seq, :]


def decays_between(log_decay: Tensor) -> Tensor:
    """``[..., size, n]`` to ``[..., size, size, n]``: what is left at row i of what column j wrote.

    The product of the decays of ``j + 1 .. i``; 0 where i comes before j.
    """
    size = log_decay.shape[-2]
    shape = (*log_decay.shape[:-1], size, log_decay.shape[-1])
    rows = log_decay[..., :, None, :].expand(shape)
    after = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).tril(-1)[..., None]
    sums = rows.masked_fill(~after, 0).cumsum(-3)
    return sums.masked_fill(after.transpose(0, 1), -torch.inf).exp()


def decays_from_start(log_decay: Tensor) -> Tensor:
    """``[..., size, n]``: what is left at each row of the state in front of the chunk."""
    return log_decay.cumsum(-2).exp()


def decays_to_end(log_decay: Tensor) -> Tensor:
    """``[..., size, n]``: what is left at the end of the chunk of what each row wrote."""
    return F.pad(log_decay[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2).exp()


def states_before(added: Tensor, decays: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The state in front of every chunk, ``[..., chunks, n, m]``, and the one behind the last.

    Args:
        added: what each chunk adds to the state, ``[..., chunks, n, m]``.
        decays: what each chunk leaves of it, ``[..., chunks, n or 1, 1]``.
        state: the state in front of the first, ``[..., n, m]``.
    """
    before = []
    for chunk in range(added.shape[-3]):
        before.append(state)
        state = decays[..., chunk, :, :] * state + added[..., chunk, :, :]
    return torch.stack(before, -3), state
