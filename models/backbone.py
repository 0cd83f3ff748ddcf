"""What the models are built from: SwiGLU, pre-norm block, and the stack between tokens and logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flashlla.nn.checks import check_sizes

from .config import StackConfig

NORM_EPS = 1e-6
EMBEDDING_STD = 0.02


class Model(nn.Module):
    """A model that is built from a configuration, ``config``, and nothing else."""

    def __init__(self, config: StackConfig):
        super().__init__()
        self.config = config

    def num_parameters(self) -> int:
        """Number of learned numbers."""
        return sum(p.numel() for p in self.parameters())


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))`` (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int, device=None, dtype=None):
        super().__init__()
        check_sizes(dim=dim, hidden=hidden)
        factory = {"bias": False, "device": device, "dtype": dtype}
        self.gate = nn.Linear(dim, hidden, **factory)
        self.up = nn.Linear(dim, hidden, **factory)
        self.down = nn.Linear(hidden, dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """``x + mixer(norm(x), *more)``, then ``x + mlp(norm(x))``, which a ``hidden`` of 0 leaves out.

    ``more`` is what the mixer takes behind x.
    """

    def __init__(self, mixer: nn.Module, dim: int, hidden: int, device=None, dtype=None):
        super().__init__()
        self.mixer_norm = nn.RMSNorm(dim, eps=NORM_EPS, device=device, dtype=dtype)
        self.mixer = mixer
        self.mlp = None
        if hidden:
            self.mlp_norm = nn.RMSNorm(dim, eps=NORM_EPS, device=device, dtype=dtype)
            self.mlp = SwiGLU(dim, hidden, device=device, dtype=dtype)

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        x = x + self.mixer(self.mixer_norm(x), *more)
        return x if self.mlp is None else x + self.mlp(self.mlp_norm(x))

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        """Rescale what the parts add to the residual stream."""
        self.mixer.scale_output(factor)
        if self.mlp is not None:
            self.mlp.down.weight.mul_(factor)


def build_blocks(
    config: StackConfig,
    build: Callable[..., nn.Module],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.ModuleList:
    """The blocks of a configuration.

    The weights that write into the residual stream start ``writes ** -0.5`` smaller, where ``writes`` counts
    the mixers and the SwiGLUs, so that its variance does not grow with depth.

    Args:
        build: makes a mixer from its name, the width and its options.

    Raises:
        TypeError, ValueError: mixer_options that the mixer does not take.
    """
    factory = {"device": device, "dtype": dtype}
    blocks = nn.ModuleList(
        Block(build(name, config.dim, **options, **factory), config.dim, config.hidden, **factory)
        for name, options in config.mixers
    )
    writes = config.depth * (2 if config.hidden else 1)
    for block in blocks:
        block.scale_output(writes**-0.5)
    return blocks


class TokenModel(Model):
    """Embedding, ``depth`` pre-norm blocks, norm, logits.

    Args:
        build: makes a mixer from its name, the width and its options.
        vocab_size: number of tokens.
        outputs: number of logits at every position; None means one a token, from the embedding's own matrix.
    """

    def __init__(
        self,
        config: StackConfig,
        build: Callable[..., nn.Module],
        *,
        vocab_size: int,
        outputs: int | None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(config)
        factory = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(vocab_size, config.dim, **factory)
        self.blocks = build_blocks(config, build, **factory)
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS, **factory)
        # A tied head is no parameter of its own: the state dict holds every tensor once.
        head = None if outputs is None else nn.Parameter(torch.empty(outputs, config.dim, **factory))
        self.register_parameter("head", head)
        for table in (self.embedding.weight, self.head):
            if table is not None:
                nn.init.normal_(table, std=EMBEDDING_STD)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., outputs]`` of hidden states ``[..., dim]``."""
        return F.linear(hidden, self.output_weight)

    @property
    def output_weight(self) -> nn.Parameter:
        """The weights of the logits, ``[outputs, dim]``: those of the embedding where there is no head."""
        return self.embedding.weight if self.head is None else self.head

    @staticmethod
    def check_tokens(tokens: Tensor) -> None:
        """Tokens are int64 ``[batch, seq]``.

        Raises:
            TypeError, ValueError: they are not.
        """
        if not isinstance(tokens, Tensor):
            raise TypeError(f"tokens must be a torch.Tensor, got {type(tokens).__name__}")
        if tokens.dtype != torch.int64:
            raise TypeError(f"tokens has dtype {tokens.dtype}; use int64")
        if tokens.dim() != 2:
            raise ValueError(f"tokens has shape {tuple(tokens.shape)}; expected [batch, seq]")
