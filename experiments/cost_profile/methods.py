"""What is measured: functions of queries, keys and values, without projections, in layouts of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from flashlla import lla_attention, lla_attention_with_kvcache
from flashlla.models.mixers import mesanet
from flashlla.models.mixers.base import unit

RIDGE = 1.0  # where a learned ridge of our layers starts; keys have mean square 1, as behind a norm
DECAY = 0.99  # of MesaNet: it remembers for about 100 positions, as its layers do when they start
CHUNK = 64
COMPILED = {"cpu": "cpu", "cuda": "triton"}  # backends by the type of the device

FORWARD, BOTH, DECODE = "forward", "forward and backward", "decode"
PHASES = (FORWARD, BOTH, DECODE)


@dataclass(frozen=True)
class Method:
    """A way from operands ``[1, length, heads, head_dim]`` to their causal attention.

    Attributes:
        arrange: operands, each by itself, in the layout of the method; not measured.
        attend: ``attend(q, k, v)`` on arranged operands.
        remember: ``remember(k, v)``, what a step of decoding needs of arranged keys and values; not measured.
        step: ``step(q, *remembered)`` for one arranged query at the last position.
    """

    arrange: Callable[[Tensor], Tensor]
    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    remember: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    step: Callable[..., Tensor]


def prepare(
    phase: str, *, method: str, length: int, heads: int, head_dim: int, dtype: str, device: str, seed: int
) -> Callable[[], object]:
    """A call without arguments that does one phase of a method on operands that are there already.

    Queries, keys and values are standard normal. ``forward and backward`` gives the gradients of all three.
    """
    chosen = methods(torch.device(device).type)[method]
    generator = torch.Generator().manual_seed(seed)
    q, k, v, do = (
        chosen.arrange(
            torch.randn(1, length, heads, head_dim, generator=generator).to(device, getattr(torch, dtype))
        )
        for _ in range(4)
    )
    if phase == FORWARD:
        return partial(chosen.attend, q, k, v)
    if phase == DECODE:
        last = chosen.arrange(torch.randn(1, 1, heads, head_dim, generator=generator).to(q))
        return partial(chosen.step, last, *chosen.remember(k, v))
    leaves = [t.requires_grad_() for t in (q, k, v)]
    return lambda: torch.autograd.grad(chosen.attend(*leaves), leaves, do)


def methods(device_type: str) -> dict[str, Method]:
    """By name; every name begins with that of its mixer."""
    return {
        "lla, naive": _lla("reference"),
        "lla, blockwise": _lla("blockwise"),
        "lla": _lla(COMPILED[device_type]),
        "softmax": Method(
            _heads_first,
            partial(F.scaled_dot_product_attention, is_causal=True),
            lambda k, v: (k, v),
            F.scaled_dot_product_attention,
        ),
        "mesanet": Method(lambda t: _heads_first(t).float(), _mesa, _mesa_state, _mesa_step),
    }


def _lla(backend: str) -> Method:
    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return lla_attention_with_kvcache(q, k, v, cache_seqlens=k.shape[1], ridge=RIDGE, backend=backend)

    attend = partial(lla_attention, ridge=RIDGE, backend=backend)
    return Method(lambda t: t, attend, lambda k, v: (k, v), step)


def _heads_first(t: Tensor) -> Tensor:
    return t.transpose(1, 2).contiguous()


def _mesa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _mesa_chunks(q, k, v)[0]


def _mesa_state(k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """The last key and value, and the state in front of them: a step of the recurrence takes them in."""
    _, gram, memory = _mesa_chunks(k[:, :, :-1], k[:, :, :-1], v[:, :, :-1])
    return k[:, :, -1:], v[:, :, -1:], gram, memory


def _mesa_step(q: Tensor, k: Tensor, v: Tensor, gram: Tensor, memory: Tensor) -> Tensor:
    return mesanet.recurrent(unit(q), unit(k), v, *_constants(k), gram, memory)[0]


def _mesa_chunks(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gram = k.new_zeros(*k.shape[:2], k.shape[-1], k.shape[-1])
    operands = (unit(q), unit(k), v, *_constants(k), gram, torch.zeros_like(gram))
    return mesanet.chunked(*operands, chunk_size=CHUNK, rtol=1e-6, max_iters=100)


def _constants(k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Strength 1 and a constant decay of every position, and the ridge."""
    ones = torch.ones_like(k[..., :1])
    return ones, ones * math.log(DECAY), torch.full_like(k[:1, :, :1], RIDGE)
