"""The language model of the study, whose ridge and bandwidth are fixed or learned in one way."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from flashlla import lla_attention
from flashlla.models import LanguageModel, LanguageModelConfig
from flashlla.nn import LocalLinearAttention

VOCABULARY = 256  # bytes
SPEED = 5.0


class Operands(NamedTuple):
    """What a layer called LLA with: q, k, v ``[batch, seq, heads, head_dim]`` and ridge ``[heads]``."""

    q: Tensor
    k: Tensor
    v: Tensor
    ridge: Tensor


class Positive(nn.Module):
    """A positive number for every head, ``start * exp(SPEED * raw)``: ``[heads]``, float32."""

    def __init__(self, start: float, heads: int, learned: bool):
        super().__init__()
        self.start = start
        self.raw = nn.Parameter(torch.zeros(heads), requires_grad=learned)

    def forward(self) -> Tensor:
        return self.start * (SPEED * self.raw).exp()


class StudiedAttention(LocalLinearAttention):
    """LLA with softmax weights ``exp(q . k / (bandwidth * sqrt(head_dim)))``, which keeps its last operands.

    To multiply q and k by ``bandwidth^(-1/2)`` and the ridge by ``1 / bandwidth`` changes these weights and
    nothing else of the regression. The norms of queries and keys have no weights of their own: they would be
    a bandwidth too, and a learned one.

    Args:
        ridge, bandwidth: where a learned one starts, and where a fixed one stays.
        learned: ``"ridge"``, ``"bandwidth"``, or neither of them.
    """

    def __init__(self, dim: int, heads: int, ridge: float, bandwidth: float, learned: str):
        super().__init__(dim, heads)
        self.ridge = Positive(ridge, heads, learned == "ridge")
        self.bandwidth = Positive(bandwidth, heads, learned == "bandwidth")
        for norm in (self.q_norm, self.k_norm):
            norm.weight.requires_grad_(False)
        self.operands: Operands | None = None

    def _heads(self, projected: Tensor, norm: nn.Module) -> Tensor:
        return super()._heads(projected, norm) * self.bandwidth()[:, None] ** -0.5

    def _options(self) -> dict:
        return {**super()._options(), "ridge": self.ridge() / self.bandwidth()}

    def _dense(self, q: Tensor, k: Tensor, v: Tensor, *, ridge: Tensor, **options) -> Tensor:
        self.operands = Operands(*(t.detach() for t in (q, k, v, ridge)))
        return lla_attention(q, k, v, ridge=ridge, **options)


def build(
    dim: int, depth: int, heads: int, ridge: float = 1.0, bandwidth: float = 1.0, learned: str = "nothing"
) -> LanguageModel:
    """A model over bytes; with equal random state, the same weights for all that the last three may be.

    Raises:
        ValueError: sizes that do not fit.
    """
    model = LanguageModel(LanguageModelConfig(vocab_size=VOCABULARY, dim=dim, depth=depth, heads=heads))
    for block in model.blocks:
        studied = StudiedAttention(dim, heads, ridge, bandwidth, learned)
        initial = {n: t for n, t in block.mixer.attention.state_dict().items() if n != "ridge.raw"}
        studied.load_state_dict(initial, strict=False)
        block.mixer.attention = studied
    return model


def attention_layers(model: LanguageModel) -> list[StudiedAttention]:
    """The attention of every block."""
    return [block.mixer.attention for block in model.blocks]
