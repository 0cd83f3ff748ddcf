"""Rewards and discriminators as transformers, and the two losses that a reward transformer trains with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flashlla.models import Encoder, EncoderConfig

from .moments import RIDGE
from .sequences import ACTIONS, CELLS, CONTEXTS, Forms

FEATURES = 6  # of a reward transformer, one of them constant
INSTRUMENTS = 32  # features of the discriminators
# Sooner on sequences this short.
OPTIONS = {"mesanet": {"chunk_size": 8, "rtol": 1e-3}, "gated_deltanet": {"chunk_size": 8}}


def encoder_config(mixer: str, vocab: int, outputs: int, dim: int, depth: int, heads: int) -> EncoderConfig:
    """As many parameters as softmax attention has, whatever the mixer: the SwiGLUs give way.

    Raises:
        ValueError: sizes that do not fit.
    """
    sizes = {"vocab_size": vocab, "outputs": outputs, "dim": dim, "depth": depth, "heads": heads}
    return EncoderConfig(**sizes, mixer=mixer, mixer_options=OPTIONS.get(mixer, {})).matched()


class RewardTransformer(nn.Module):
    """``R(e) = w . (1, phi(e))``, with features phi that are read at the track of a form.

    It sees the form alone: a reward that is free in (s, a) as well would have more unknowns than there are
    moments, and no data could identify it.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.encoder = Encoder(config)
        self.encoder.embedding.reset_parameters()  # variance 1, as in associative recall
        self.weights = nn.Parameter(torch.randn(FEATURES) / FEATURES**0.5)

    def features(self, forms: Tensor) -> Tensor:
        """``[forms, FEATURES]``; forms are ``[forms, tokens]``."""
        read = self.encoder(forms)[:, 0]
        return torch.cat([torch.ones_like(read[:, :1]), read], 1)

    def forward(self, forms: Tensor) -> Tensor:
        return self.features(forms) @ self.weights


@torch.no_grad()
def discriminator_features(config: EncoderConfig) -> Tensor:
    """Features of (s, a) from a transformer that stays as it is drawn, ``[CELLS, INSTRUMENTS]``.

    Discriminators are linear in them, so that the best one has a closed form.
    """
    encoder = Encoder(config).eval()
    for table in (encoder.embedding.weight, encoder.head):
        nn.init.normal_(table)
    cells = torch.arange(CELLS)
    read = encoder(torch.stack([cells // ACTIONS, CONTEXTS + cells % ACTIONS], 1))[:, 0]
    return read / read.square().mean().sqrt()


def regression_loss(model: RewardTransformer, batch: Forms, instruments: Tensor) -> Tensor:
    """Half the mean squared error, which confounding misleads; 0-dim."""
    return (model(batch.forms) - batch.rewards).square().mean() / 2


def minimax_loss(model: RewardTransformer, batch: Forms, instruments: Tensor) -> Tensor:
    """``mean f(s, a) (R(e) - r)`` for the best discriminator f, 0-dim.

    Its gradient is that of the minimax risk, by the envelope theorem. Each half of the batch is met by the
    discriminator that is best on the other one, as residuals that had a part in f would favour small
    variance, which is what regression does.

    Args:
        instruments: ``[CELLS, INSTRUMENTS]``.
    """
    residuals, features = model(batch.forms) - batch.rewards, instruments[batch.cells]
    halves = zip(residuals.tensor_split(2), features.tensor_split(2), strict=True)
    (first, of_first), (second, of_second) = halves
    found = of_second @ _best(first, of_first), of_first @ _best(second, of_second)
    return (found[0] @ second + found[1] @ first) / len(residuals)


def _best(residuals: Tensor, features: Tensor) -> Tensor:
    """The head of the best discriminator on some episodes."""
    gram = features.T @ features + RIDGE * torch.eye(features.shape[1], device=features.device)
    return torch.linalg.solve(gram, features.T @ residuals.detach())
