"""Attention as an estimator: no projections, keys and values as they are, a few constants chosen by
validation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flashlla import lla_attention, softmax_attention
from flashlla.models.mixers import delta_rule, linear_recurrence, mesanet
from flashlla.models.mixers.base import unit

from ..common.methods import Method
from .data import Stream

CHUNK = 64
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the logits, in units of 1 / sqrt(dim)
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
FORGETTING = (0.995, 0.98, 0.95, 0.9)


def softmax(s: Stream, scale: float) -> Tensor:
    return softmax_attention(*_heads(s), scale=scale / math.sqrt(s.keys.shape[-1]))[:, :, 0]


def lla(s: Stream, scale: float, ridge: float) -> Tensor:
    return lla_attention(*_heads(s), scale=scale / math.sqrt(s.keys.shape[-1]), ridge=ridge)[:, :, 0]


def linear_attention(s: Stream, decay: float, strength: float) -> Tensor:
    """``strength / (1 + sum of decays) sum_j decay^(i - j) v_j (k_j . q_i)``: a mean, where decays are 1."""
    log_decay = _constant(s, math.log(decay))
    out = linear_recurrence.chunked(s.queries, s.keys, s.values, log_decay, _state(s), chunk_size=CHUNK)[0]
    steps = torch.arange(1, s.keys.shape[1] + 1, dtype=out.dtype, device=out.device)
    weight = steps if decay == 1 else (1 - decay**steps) / (1 - decay)
    return strength * out / weight[:, None]


def gated_deltanet(s: Stream, decay: float, strength: float) -> Tensor:
    """Keys of length 1, queries divided by the length of their own: one step of descent a position."""
    length = s.keys.norm(dim=-1, keepdim=True)
    operands = (
        s.queries,
        unit(s.keys),
        s.values / length,
        _constant(s, strength),
        _constant(s, math.log(decay)),
    )
    return delta_rule.chunked(*operands, _state(s), chunk_size=CHUNK)[0]


def mesa(s: Stream, decay: float, ridge: float) -> Tensor:
    """The ridge regression over everything so far, forgetting at a constant rate."""
    dim = s.keys.shape[-1]
    operands = (s.queries, s.keys, s.values, _constant(s, 1.0), _constant(s, math.log(decay)))
    penalty = s.keys.new_full((1, dim), ridge)
    gram = s.keys.new_zeros(len(s.keys), dim, dim)
    solver = {"rtol": 1e-4, "max_iters": 4 * dim + 20}
    return mesanet.chunked(*operands, penalty, gram, _state(s), chunk_size=CHUNK, **solver)[0]


def _heads(s: Stream) -> tuple[Tensor, ...]:
    return tuple(t[:, :, None] for t in (s.queries, s.keys, s.values))


def _constant(s: Stream, value: float) -> Tensor:
    return s.keys.new_full((*s.keys.shape[:2], 1), value)


def _state(s: Stream) -> Tensor:
    return s.keys.new_zeros(len(s.keys), s.keys.shape[-1], s.values.shape[-1])


# By mixer. Where a mixer may forget, it does so at a constant rate here; the plain ones, as in the paper, do
# not.
METHODS: dict[str, dict[str, Method]] = {
    "softmax": {"softmax": Method(softmax, {"scale": SCALES})},
    "lla": {"lla": Method(lla, {"scale": SCALES, "ridge": RIDGES})},
    "linear_attention": {
        "linear_attention": Method(
            linear_attention, {"decay": (1.0,), "strength": (0.01, 0.03, 0.1, 0.3, 1.0)}
        )
    },
    "gated_deltanet": {
        "deltanet": Method(gated_deltanet, {"decay": (1.0,), "strength": (0.1, 0.3, 1.0)}),
        "gated_deltanet": Method(gated_deltanet, {"decay": FORGETTING, "strength": (0.1, 0.3, 1.0)}),
    },
    "mesanet": {
        "mesanet": Method(mesa, {"decay": (1.0,), "ridge": RIDGES}),
        "mesanet, forgetting": Method(mesa, {"decay": FORGETTING, "ridge": (0.1, 1.0, 10.0)}),
    },
}
