"""What the diffusion transformers share: the condition, blocks that it modulates, the way out (adaLN-zero).

Arrangement of arXiv 2212.09748 (DiT), with RMS norms and SwiGLUs as in the other models here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from flashlla.nn.checks import check_sizes

from ..backbone import NORM_EPS, Model, SwiGLU
from ..config import StackConfig, check_given_sizes
from ..mixers.bidirectional import build_bidirectional_mixer

LEVEL_FREQUENCIES = 256
LEVEL_SCALE = 1000.0  # levels of [0, 1] become the thousand steps that the frequencies are made for
LONGEST_PERIOD = 10000.0


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(StackConfig):
    """Sizes and choices of a diffusion transformer; those of the stack are in :class:`StackConfig`.

    Attributes:
        channels: numbers at every place of the input.
        out_channels: the same of the output; None means channels.
        condition_dim: width of a vector that the whole sample is conditioned on; None means there is none.

    Raises:
        TypeError, ValueError: as :class:`StackConfig` does.
    """

    channels: int
    out_channels: int | None = None
    condition_dim: int | None = None

    def __post_init__(self):
        check_sizes(channels=self.channels)
        check_given_sizes(out_channels=self.out_channels, condition_dim=self.condition_dim)
        super().__post_init__()

    @property
    def outputs(self) -> int:
        """Channels of the output, the default resolved."""
        return self.channels if self.out_channels is None else self.out_channels


class DiffusionTransformer(Model):
    """The condition, the blocks and the way out; a subclass brings its input to tokens and back.

    Args:
        config: sizes.
        patterns: for every block, which axes of the tokens its mixer runs along (:class:`ModulatedBlock`).
        features: numbers that a token becomes in the end.
        rotary: rotary positions in the attention layers.
    """

    def __init__(
        self,
        config: DiffusionConfig,
        patterns: list[tuple[str, str]],
        features: int,
        *,
        rotary: bool,
        **factory,
    ):
        super().__init__(config)
        self.level = LevelEmbedding(config.dim, **factory)
        self.condition = None
        if config.condition_dim is not None:
            self.condition = nn.Linear(config.condition_dim, config.dim, **factory)
        self.blocks = nn.ModuleList()
        for (name, options), pattern in zip(config.mixers, patterns, strict=True):
            mixer = build_bidirectional_mixer(name, config.dim, rotary=rotary, **options, **factory)
            self.blocks.append(ModulatedBlock(mixer, pattern, config.dim, config.hidden, **factory))
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS, elementwise_affine=False)
        self.modulation = _zeroed(nn.Linear(config.dim, 2 * config.dim, **factory))
        self.out_proj = _zeroed(nn.Linear(config.dim, features, **factory))

    def _conditioned(self, level: Tensor, condition: Tensor | None) -> Tensor:
        """What modulates the blocks: ``[..., dim]`` for levels ``[...]``, the first axis the batch."""
        c = self.level(level)
        if self.condition is not None:
            vector = self.condition(condition)
            c = c + vector.view(len(vector), *[1] * (c.dim() - 2), -1)
        return F.silu(c)

    def _project(self, x: Tensor, c: Tensor) -> Tensor:
        """From hidden states to the numbers of every token."""
        shift, scale = self.modulation(c).chunk(2, -1)
        return self.out_proj(modulate(self.norm(x), shift, scale))

    def _check_sample(self, x: Tensor, axes: str) -> None:
        """``x`` is floating point, and has the axes named in words, the last one of them channels."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(f"x has dtype {x.dtype}; use a floating-point dtype")
        if x.dim() != len(axes.split()) or x.shape[-1] != self.config.channels:
            expected = axes.replace("channels", str(self.config.channels)).replace(" ", ", ")
            raise ValueError(f"x has shape {tuple(x.shape)}; expected [{expected}]")

    def _check_conditions(self, x: Tensor, level: Tensor, condition: Tensor | None, axis: str) -> None:
        """Shapes of the level, one a sample or one a place of its second axis, and of the condition."""
        if not isinstance(level, Tensor) or not level.is_floating_point():
            raise TypeError("level must be a floating-point torch.Tensor, with entries in [0, 1]")
        if level.shape != x.shape[:1] and level.shape != x.shape[:2]:
            raise ValueError(
                f"level has shape {tuple(level.shape)}; expected {tuple(x.shape[:1])}, one a sample, or "
                f"{tuple(x.shape[:2])}, one for every {axis}"
            )
        width = self.config.condition_dim
        if (condition is None) != (width is None):
            given, wanted = ("no condition", width) if condition is None else ("a condition", None)
            raise ValueError(f"{given} is given and the model has condition_dim={wanted}; these go together")
        if condition is not None and condition.shape != (len(x), width):
            raise ValueError(f"condition has shape {tuple(condition.shape)}; expected {(len(x), width)}")


class ModulatedBlock(nn.Module):
    """``x + gate * mixer(norm(x) * (1 + scale) + shift)``, then likewise with the SwiGLU (adaLN-zero).

    Shift, scale and gate are projected from the condition, by a layer that starts at zero: a new block passes
    x on as it is.

    Args:
        pattern: the axes of the tokens, and those as the mixer takes them, in the words of einops:
            ``("b f s d", "(b s) f d")`` mixes over the second axis.
    """

    def __init__(
        self, mixer: nn.Module, pattern: tuple[str, str], dim: int, hidden: int, device=None, dtype=None
    ):
        super().__init__()
        self.axes, self.rows = pattern
        self.norm = nn.RMSNorm(dim, eps=NORM_EPS, elementwise_affine=False)
        self.mixer = mixer
        self.mlp = SwiGLU(dim, hidden, device=device, dtype=dtype)
        self.modulation = _zeroed(nn.Linear(dim, 6 * dim, device=device, dtype=dtype))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """``x`` ``[batch, ..., dim]`` under conditions ``c`` that broadcast to it."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(c).chunk(6, -1)
        x = x + gate * self._mixed(modulate(self.norm(x), shift, scale))
        return x + mlp_gate * self.mlp(modulate(self.norm(x), mlp_shift, mlp_scale))

    def _mixed(self, x: Tensor) -> Tensor:
        sizes = dict(zip(self.axes.split(), x.shape, strict=True))
        rows = self.mixer(rearrange(x, f"{self.axes} -> {self.rows}"))
        return rearrange(rows, f"{self.rows} -> {self.axes}", **sizes)

    def extra_repr(self) -> str:
        return f"{self.axes} -> {self.rows}"


class LevelEmbedding(nn.Module):
    """Noise levels in [0, 1] as vectors: sines and cosines of many periods, and two layers."""

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(LEVEL_FREQUENCIES, dim, device=device, dtype=dtype),
            nn.SiLU(),
            nn.Linear(dim, dim, device=device, dtype=dtype),
        )

    def forward(self, level: Tensor) -> Tensor:
        waves = sinusoids(LEVEL_SCALE * level, LEVEL_FREQUENCIES)
        return self.layers(waves.to(self.layers[0].weight.dtype))


def sinusoids(positions: Tensor, size: int) -> Tensor:
    """Cosines and sines of ``positions`` ``[...]``, periods 2 pi to 2 pi 10^4: ``[..., size]``, size even.

    In float32, or float64 for positions in float64.
    """
    dtype = torch.promote_types(positions.dtype, torch.float32)
    exponents = torch.arange(size // 2, device=positions.device, dtype=dtype) / (size // 2)
    angles = positions.to(dtype)[..., None] * torch.exp(-math.log(LONGEST_PERIOD) * exponents)
    return torch.cat([angles.cos(), angles.sin()], -1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def _zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
