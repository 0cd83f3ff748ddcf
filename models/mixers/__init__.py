"""Token mixers by name.

A mixer is a module that moves information along the sequence. The models use nothing but::

    mixer(x, state=None, lengths=None)                  [batch, seq, dim] -> [batch, seq, dim]
    mixer.make_state(batch, capacity, *, kind, dtype)   what it must remember to go on decoding
    mixer.make_paged_state(table, *, dtype)             the same in pages that sequences share
    mixer.scale_output(factor)                          rescale the weights that write its output

With a state, x continues the sequences that the state has seen, the state is updated in place, and no
gradient flows. ``lengths`` are the real rows of each sequence of x, ints; padding behind them must leave no
trace in the state. ``capacity`` is the length that a sequence may reach and ``kind`` one of
``flashlla.nn.cache.KINDS``, which a mixer with a state of fixed size ignores; ``table`` is a
:class:`flashlla.nn.PageTable`, and a mixer that keeps no rows raises NotImplementedError for it. To add a
mixer, write its class and name it in ``MIXERS``; those with a state of their own start from
:class:`flashlla.models.mixers.base.RecurrentMixer`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from flashlla.nn import LocalLinearAttention, ParallaxAttention, SoftmaxAttention

from .attention import AttentionMixer
from .deltanet import DeltaNet
from .gated_deltanet import GatedDeltaNet
from .gla import GatedLinearAttention
from .hyena import Hyena
from .linear_attention import LinearAttention
from .mamba2 import Mamba2
from .mesanet import MesaNet

ATTENTION_LAYERS: dict[str, type[nn.Module]] = {
    "lla": LocalLinearAttention,
    "parallax": ParallaxAttention,
    "softmax": SoftmaxAttention,
}
ATTENTION_MIXERS: dict[str, Callable[..., nn.Module]] = {  # their state is a key/value cache of any kind
    name: partial(AttentionMixer, layer) for name, layer in ATTENTION_LAYERS.items()
}
MIXERS: dict[str, Callable[..., nn.Module]] = {
    **ATTENTION_MIXERS,
    "linear_attention": LinearAttention,
    "gla": GatedLinearAttention,
    "deltanet": DeltaNet,
    "gated_deltanet": GatedDeltaNet,
    "mesanet": MesaNet,
    "mamba2": Mamba2,
    "hyena": Hyena,
}


def build_mixer(name: str, dim: int, heads: int, kv_heads: int | None = None, **options) -> nn.Module:
    """The mixer called ``name``; options are its own keyword arguments.

    Raises:
        ValueError: the name is unknown, or options of a wrong value.
        TypeError: options that the mixer does not have.
    """
    if name not in MIXERS:
        raise ValueError(f"mixer={name!r} is unknown; choose one of {', '.join(MIXERS)}")
    return MIXERS[name](dim, heads, kv_heads, **options)


__all__ = [
    "ATTENTION_LAYERS",
    "ATTENTION_MIXERS",
    "MIXERS",
    "AttentionMixer",
    "DeltaNet",
    "GatedDeltaNet",
    "GatedLinearAttention",
    "Hyena",
    "LinearAttention",
    "Mamba2",
    "MesaNet",
    "build_mixer",
]
