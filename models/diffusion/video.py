"""A diffusion transformer over videos, or latents of them: patches of frames as tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from flashlla.nn.checks import check_sizes

from .transformer import DiffusionConfig, DiffusionTransformer, sinusoids

AXES = "b f s d"  # batch, frame, place in the frame, width
OVER = {
    "space": (AXES, "(b f) s d"),
    "time": (AXES, "(b s) f d"),
    "both": (AXES, "b (f s) d"),
}
ATTENTION = ("factorised", "full")


@dataclass(frozen=True, kw_only=True)
class VideoConfig(DiffusionConfig):
    """Sizes and choices of a :class:`VideoTransformer`; see :class:`DiffusionConfig` for the rest.

    Attributes:
        patch_size: side of the square of pixels that a token stands for.
        attention: ``"factorised"``, blocks in turn over the places of a frame and over the frames of a place,
            or ``"full"``, all blocks over both. Mixers that go along a sequence take frame, row, column.

    Raises:
        TypeError, ValueError: as :class:`DiffusionConfig` does; a width that positions in three directions do
            not divide.
    """

    patch_size: int = 2
    attention: str = "factorised"

    PRESETS: ClassVar = {
        "tiny": {"channels": 4, "dim": 96, "depth": 6, "heads": 3},
        "small": {"channels": 4, "dim": 384, "depth": 12, "heads": 6},
        "base": {"channels": 4, "dim": 768, "depth": 12, "heads": 12},
        "large": {"channels": 4, "dim": 1152, "depth": 14, "heads": 18},
    }

    def __post_init__(self):
        super().__post_init__()
        check_sizes(patch_size=self.patch_size)
        if self.attention not in ATTENTION:
            raise ValueError(f"attention={self.attention!r} is unknown; choose one of {', '.join(ATTENTION)}")
        if self.dim % 6:
            raise ValueError(
                f"dim={self.dim} must be a multiple of 6: a cosine and a sine for frame, row and column"
            )


class VideoTransformer(DiffusionTransformer):
    """Noisy frames, their noise levels and a condition to one prediction for every pixel.

    Positions are fixed sines and cosines of frame, row and column, so that the input decides its sizes. What
    is predicted is the caller's choice; it starts at zero. Frames that are known, to be continued, keep level
    0 while the others are denoised.

    Raises:
        TypeError, ValueError: a configuration whose mixer_options its mixer does not take.
    """

    config: VideoConfig

    def __init__(
        self,
        config: VideoConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        factory = {"device": device, "dtype": dtype}
        over = ("space", "time") if config.attention == "factorised" else ("both",)
        patterns = [OVER[over[i % len(over)]] for i in range(config.depth)]
        pixels = config.patch_size**2
        super().__init__(config, patterns, pixels * config.outputs, rotary=False, **factory)
        self.in_proj = nn.Linear(pixels * config.channels, config.dim, **factory)

    def forward(self, x: Tensor, level: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """The prediction.

        Args:
            x: noisy frames, ``[batch, frames, height, width, channels]``, sides multiples of patch_size.
            level: noise level in [0, 1], ``[batch]`` or, one for every frame, ``[batch, frames]``.
            condition: ``[batch, condition_dim]``; needed if and only if the model has that width.

        Returns:
            ``[batch, frames, height, width, out_channels]``.

        Raises:
            TypeError: no tensors, or of no floating-point dtype.
            ValueError: wrong shapes, a condition that is missing or not expected.
        """
        return self.forward_with_hidden(x, level, condition=condition)[0]

    def hidden(self, x: Tensor, level: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """Hidden states behind the last block, ``[batch, frames, patches, dim]``, to put other heads on:
        arguments and errors of :meth:`forward`."""
        return self._run(x, level, condition)[0]

    def forward_with_hidden(
        self, x: Tensor, level: Tensor, *, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` and :meth:`hidden` give, in one pass."""
        tokens, c = self._run(x, level, condition)
        return self.unpatchify(self._project(tokens, c), x.shape[2], x.shape[3]), tokens

    def unpatchify(self, patches: Tensor, height: int, width: int) -> Tensor:
        """Frames ``[batch, frames, height, width, n]`` of ``[batch, frames, patches, patch_size^2 n]``."""
        p = self.config.patch_size
        pattern = "b f (h w) (p q c) -> b f (h p) (w q) c"
        return rearrange(patches, pattern, h=height // p, w=width // p, p=p, q=p)

    def _run(self, x: Tensor, level: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Hidden states of all patches, and the conditions that they stand under."""
        self._check_sample(x, "batch frames height width channels")
        self._check_conditions(x, level, condition, "frame")
        p = self.config.patch_size
        if x.shape[2] % p or x.shape[3] % p:
            raise ValueError(
                f"frames of {x.shape[2]} x {x.shape[3]} are not made of patches of {p} x {p}; pad them"
            )
        patches = rearrange(x, "b f (h p) (w q) c -> b f h w (p q c)", p=p, q=p)
        tokens = self.in_proj(patches)
        tokens = (tokens + self._positions(tokens)).flatten(2, 3)
        c = self._conditioned(level if level.dim() == 2 else level[:, None], condition)[:, :, None]
        for block in self.blocks:
            tokens = block(tokens, c)
        return tokens, c

    def _positions(self, tokens: Tensor) -> Tensor:
        """A third of the width for each of frame, row and column: ``[frames, rows, columns, dim]``."""
        sizes, part = tokens.shape[1:4], self.config.dim // 3
        waves = [sinusoids(torch.arange(n, device=tokens.device), part) for n in sizes]
        frame, row, column = waves[0][:, None, None], waves[1][:, None], waves[2]
        parts = [wave.expand(*sizes, part) for wave in (frame, row, column)]
        return torch.cat(parts, -1).to(tokens.dtype)
