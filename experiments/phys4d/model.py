"""The world model: a video diffusion transformer, with heads for depth and motion on its last tokens.

A clip begins with known frames, which stay at noise level 0; the others are denoised along a rectified flow.
The network says the clean frames, and is trained for the velocity that follows from them (arXiv 2511.13720):
a narrow one cannot carry all the noise of a patch to its output.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flashlla.models.diffusion import DDIM, RectifiedFlow, VideoConfig, VideoTransformer, levels

from .render import BACKGROUND
from .worlds import WALL

PATCH = 4
PIXEL_SCALE = 0.12  # of colours, so that what the network sees has a variance of about 1
RISE_SCALE = 0.1  # of changes of depth
MOTIONS = 3  # two of flow, one of depth
FLOW, PREDICTION = RectifiedFlow(), "x0"


class Prediction(NamedTuple):
    """What the network says of noisy frames ``[batch, frames, height, width, ...]``.

    Attributes:
        clean: ``[..., 3]``, scaled frames without noise.
        depth: ``[...]``, in units of the world.
        flow, rise: from every frame to the next one, ``[batch, frames - 1, height, width]``, ``flow`` with 2
            numbers more: as in :class:`Clip`.
    """

    clean: Tensor
    depth: Tensor
    flow: Tensor
    rise: Tensor


class WorldModel(nn.Module):
    """The backbone and its two heads.

    A motion head sees the tokens of a place in two frames, since neither alone has the motion between them.
    Depth starts as that of the wall, and motion as none.

    Raises:
        TypeError, ValueError: sizes that do not fit, as :class:`VideoConfig` has them.
    """

    def __init__(self, mixer: str, dim: int, depth: int, heads: int):
        super().__init__()
        config = VideoConfig(
            channels=3,
            patch_size=PATCH,
            attention="full",
            dim=dim,
            depth=depth,
            heads=heads,
            mixer=mixer,
        )
        self.backbone = VideoTransformer(config)
        self.depth_head = _head(dim, PATCH**2)
        self.motion_head = _head(2 * dim, MOTIONS * PATCH**2)

    @property
    def heads(self) -> tuple[nn.Module, nn.Module]:
        return self.depth_head, self.motion_head

    def forward(self, x: Tensor, level: Tensor) -> Prediction:
        """Of scaled frames ``[batch, frames, height, width, 3]`` at levels ``[batch, frames]``."""
        clean, tokens = self.backbone.forward_with_hidden(x, level)
        return Prediction(clean, *self._geometry(tokens, x))

    def geometry(self, rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Depth, flow and rise of clean frames ``[batch, frames, height, width, 3]`` in [0, 1]."""
        x = scaled(rgb)
        return self._geometry(self.backbone.hidden(x, x.new_zeros(x.shape[:2])), x)

    def _geometry(self, tokens: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        depth = WALL * self._frames(self.depth_head(tokens), x)[..., 0].exp()
        pairs = torch.cat([tokens[:, :-1], tokens[:, 1:]], -1)
        motion = self._frames(self.motion_head(pairs), x)
        return depth, motion[..., :2], RISE_SCALE * motion[..., 2]

    def _frames(self, patches: Tensor, x: Tensor) -> Tensor:
        return self.backbone.unpatchify(patches, x.shape[2], x.shape[3])


def scaled(rgb: Tensor) -> Tensor:
    """Colours as the network sees them."""
    return (rgb - torch.tensor(BACKGROUND, device=rgb.device)) / PIXEL_SCALE


def colors(x: Tensor) -> Tensor:
    """The inverse of :func:`scaled`, held within [0, 1]."""
    return (x * PIXEL_SCALE + torch.tensor(BACKGROUND, device=x.device)).clamp(0, 1)


def behind(level: Tensor, known: int, frames: int) -> Tensor:
    """Levels ``[batch]`` of the frames behind the known ones, 0 for these: ``[batch, frames]``."""
    unknown = torch.arange(frames, device=level.device) >= known
    return level[:, None] * unknown


def denoiser(model: WorldModel, known: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The network of a sampler, over the frames behind ``known``: scaled frames ``[batch, known, ...]``."""

    def network(x: Tensor, level: Tensor) -> Tensor:
        frames = torch.cat([known, x], 1)
        return model.backbone(frames, behind(level, known.shape[1], frames.shape[1]))[:, known.shape[1] :]

    return network


@torch.no_grad()
def generate(model: WorldModel, rgb: Tensor, known: int, noise: Tensor, steps: int) -> Tensor:
    """Go on from the first frames along the flow; without draws, so that equal noise gives paired samples.

    Args:
        rgb: clips ``[batch, frames, height, width, 3]``, of which the first ``known`` frames are looked at.
        noise: of the shape of the others.

    Returns:
        Frames like ``rgb``, the known ones in front.
    """
    path = DDIM(FLOW, PREDICTION).sample(denoiser(model, scaled(rgb[:, :known])), noise, levels(steps))
    return torch.cat([rgb[:, :known], colors(path.sample)], 1)


# ---- adapters ---------------------------------------------------------------------------------------


def adapted(model: WorldModel, rank: int) -> WorldModel:
    """A copy with LoRA adapters (arXiv 2106.09685), at zero, on a frozen backbone; its heads go on learning.

    The adapters start the same for every call, whatever was drawn before.
    """
    from peft import LoraConfig, inject_adapter_in_model

    copy = deepcopy(model).requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=_adapted_layers(copy.backbone))
        inject_adapter_in_model(config, copy.backbone)
    for head in copy.heads:
        head.requires_grad_(True)
    return copy


def merged(model: WorldModel) -> WorldModel:
    """A copy with the adapters added to the weights: a plain model again, frozen."""
    from peft.tuners.lora import LoraLayer

    copy = deepcopy(model)
    layers = [(name, layer) for name, layer in copy.backbone.named_modules() if isinstance(layer, LoraLayer)]
    for name, layer in layers:
        layer.merge()
        copy.backbone.set_submodule(name, layer.get_base_layer())
    del copy.backbone.peft_config  # or the next adapters would be taken for second ones
    return copy.requires_grad_(False).eval()


def _adapted_layers(backbone: VideoTransformer) -> list[str]:
    """Names of the linear layers of mixers and SwiGLUs; what the noise level modulates stays as it is."""
    return [
        name
        for name, layer in backbone.named_modules()
        if isinstance(layer, nn.Linear) and {"mixer", "mlp"} & set(name.split("."))
    ]


def _head(inputs: int, outputs: int) -> nn.Sequential:
    last = nn.Linear(2 * inputs, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.RMSNorm(inputs), nn.Linear(inputs, 2 * inputs), nn.SiLU(), last)
