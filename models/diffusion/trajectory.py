"""A diffusion transformer over sequences of vectors: actions, states, points of a path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..config import check_given_sizes
from .transformer import DiffusionConfig, DiffusionTransformer


@dataclass(frozen=True, kw_only=True)
class TrajectoryConfig(DiffusionConfig):
    """Sizes and choices of a :class:`TrajectoryTransformer`; see :class:`DiffusionConfig` for the rest.

    Attributes:
        context_dim: width of clean vectors that stand in front of the trajectory, states, say; None: none.

    Raises:
        TypeError, ValueError: as :class:`DiffusionConfig` does.
    """

    context_dim: int | None = None

    PRESETS: ClassVar = {
        "tiny": {"channels": 4, "dim": 128, "depth": 3, "heads": 4},
        "small": {"channels": 4, "dim": 384, "depth": 11, "heads": 6},
        "base": {"channels": 4, "dim": 768, "depth": 12, "heads": 12},
        "large": {"channels": 4, "dim": 1024, "depth": 18, "heads": 16},
    }

    def __post_init__(self):
        super().__post_init__()
        check_given_sizes(context_dim=self.context_dim)


class TrajectoryTransformer(DiffusionTransformer):
    """Noisy vectors, their noise level and conditions to one prediction for every vector.

    What is predicted, noise, score or velocity, is the caller's choice. It starts at zero.

    Raises:
        TypeError, ValueError: a configuration whose mixer_options its mixer does not take.
    """

    config: TrajectoryConfig

    def __init__(
        self,
        config: TrajectoryConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        factory = {"device": device, "dtype": dtype}
        patterns = [("b n d", "b n d")] * config.depth
        super().__init__(config, patterns, config.outputs, rotary=True, **factory)
        self.in_proj = nn.Linear(config.channels, config.dim, **factory)
        self.context_proj = None
        if config.context_dim is not None:
            self.context_proj = nn.Linear(config.context_dim, config.dim, **factory)

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        *,
        condition: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """The prediction.

        Args:
            x: noisy vectors, ``[batch, seq, channels]``.
            level: noise level in [0, 1], ``[batch]`` or, one for every vector, ``[batch, seq]``.
            condition: ``[batch, condition_dim]``; needed if and only if the model has that width.
            context: clean vectors in front, ``[batch, context_len, context_dim]``, likewise; at level 0.

        Returns:
            ``[batch, seq, out_channels]``.

        Raises:
            TypeError: no tensors, or of no floating-point dtype.
            ValueError: wrong shapes, a condition or context that is missing or not expected.
        """
        return self._project(*self._run(x, level, condition, context))

    def hidden(
        self,
        x: Tensor,
        level: Tensor,
        *,
        condition: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Hidden states behind the last block, ``[batch, seq, dim]``; arguments and errors as there."""
        return self._run(x, level, condition, context)[0]

    def _run(self, x, level, condition, context) -> tuple[Tensor, Tensor]:
        """Hidden states of the trajectory, and the conditions that they stand under."""
        self._check_sample(x, "batch seq channels")
        self._check_conditions(x, level, condition, "vector")
        self._check_context(x, context)
        tokens = self.in_proj(x)
        if context is not None:
            tokens = torch.cat([self.context_proj(context), tokens], 1)
            level = level[:, None].expand(-1, x.shape[1]) if level.dim() == 1 else level
            level = torch.cat([level.new_zeros(context.shape[:2]), level], 1)
        c = self._conditioned(level, condition)
        c = c[:, None] if c.dim() == 2 else c
        for block in self.blocks:
            tokens = block(tokens, c)
        return tokens[:, -x.shape[1] :], c[:, -x.shape[1] :]

    def _check_context(self, x: Tensor, context: Tensor | None) -> None:
        width = self.config.context_dim
        if (context is None) != (width is None):
            given, wanted = ("no context", width) if context is None else ("a context", None)
            raise ValueError(f"{given} is given and the model has context_dim={wanted}; these go together")
        if context is not None and (context.dim() != 3 or context.shape[::2] != (len(x), width)):
            raise ValueError(
                f"context has shape {tuple(context.shape)}; expected [{len(x)}, context_len, {width}]"
            )
