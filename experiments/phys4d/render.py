"""What a camera sees of a motion: colours, depth, optical flow, scene flow, and masks.

A pinhole camera of focal length FOCAL, in units of half the width of a frame. Balls are discs that face it,
at the depth of their centres, with soft edges a pixel wide; rods and slopes are lines painted on the wall.
Rows go downwards, and the second component of flow does too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .worlds import BALLS, RADIUS, WALL, Motion

FOCAL = 2.0
BACKGROUND = (0.1, 0.1, 0.15)
COLORS = ((0.95, 0.25, 0.1), (0.15, 0.45, 1.0), (0.3, 0.8, 0.3))  # two balls and the lines; a basis
LINE = 0.04  # half the width of a line, in half-widths of the frame
HIDDEN = 0.3  # a ball counts as occluded where more than this share of it is


class Clip(NamedTuple):
    """Frames and the truth about them, ``[clips, frames, ...]`` each, float32 unless noted.

    Attributes:
        rgb: ``[..., height, width, 3]`` in [0, 1].
        depth: ``[..., height, width]``.
        owner: int64 ``[..., height, width]``: the ball that is seen, or -1.
        flow: ``[clips, frames - 1, height, width, 2]``, pixels to the right and down until the next frame.
        rise: ``[clips, frames - 1, height, width]``, scene flow in depth until the next frame.
        steady: bool as ``rise``: pixels of a ball whose goal in the next frame is seen, and lies with all
            four pixels of a bilinear look-up inside the same ball. What is warped there must agree.
        hidden: bool ``[clips, frames, balls]``: occluded balls.
        motion: where the balls are.
    """

    rgb: Tensor
    depth: Tensor
    owner: Tensor
    flow: Tensor
    rise: Tensor
    steady: Tensor
    hidden: Tensor
    motion: Motion

    @property
    def foreground(self) -> Tensor:
        """bool ``[clips, frames, height, width]``."""
        return self.owner >= 0


def render(motion: Motion, size: int) -> Clip:
    """Frames of ``size`` x ``size`` pixels."""
    pixels = pixel_places(size)
    centre, radius = project(motion.position)
    ball = _disc(pixels, centre, radius, size) * motion.present[:, None, :, None, None]
    line = _line(pixels, *project(motion.guide)[0].unbind(2), size) * motion.guided[:, None, None, None]
    ahead = motion.position[..., 2].flip(2) < motion.position[..., 2]  # the other ball is nearer
    seen = ball * (1 - ball.flip(2) * ahead[..., None, None])
    layers = torch.cat([seen, (line * (1 - ball).prod(2))[:, :, None]], 2)
    ground = torch.tensor(BACKGROUND)
    rgb = ground + torch.einsum("nfkhw,kc->nfhwc", layers, torch.tensor(COLORS) - ground)
    best, owner = seen.max(2)
    owner = torch.where(best > 0.5, owner, -1)
    depth = _of_owner(motion.position[..., 2], owner, WALL)
    flow, rise = _flows(motion, owner, pixels, size)
    hidden = seen.sum((-1, -2)) < (1 - HIDDEN) * ball.sum((-1, -2))
    return Clip(rgb, depth, owner, flow, rise, _steady(owner, flow), hidden, motion)


def pixel_places(size: int) -> Tensor:
    """Image coordinates of pixel centres, x to the right and y upwards, ``[size, size, 2]``."""
    ticks = (2 * torch.arange(size) + 1) / size - 1
    return torch.stack(torch.meshgrid(ticks, -ticks, indexing="xy"), -1)


def project(position: Tensor) -> tuple[Tensor, Tensor]:
    """Image coordinates ``[..., 2]`` of places ``[..., 3]``, and the radius ``[...]`` of a ball there."""
    return FOCAL * position[..., :2] / position[..., 2:], FOCAL * RADIUS / position[..., 2]


def lift(image: Tensor, depth: Tensor) -> Tensor:
    """The inverse of :func:`project`: places ``[..., 3]`` of image coordinates ``[..., 2]`` at a depth."""
    return torch.cat([image * depth[..., None] / FOCAL, depth[..., None]], -1)


def warp(images: Tensor, flow: Tensor) -> Tensor:
    """Bilinear look-up where the flow leads; outside the edge is what is seen.

    Args:
        images: ``[..., height, width]``.
        flow: ``[..., height, width, 2]``, pixels to the right and down.
    """
    height, width = images.shape[-2:]
    rows, columns = torch.meshgrid(
        *(torch.arange(n, device=flow.device) for n in (height, width)), indexing="ij"
    )
    goal = torch.stack([columns, rows], -1) + flow
    scale = torch.tensor([2 / (width - 1), 2 / (height - 1)], device=flow.device)
    grid = (goal * scale - 1).flatten(0, -4)
    looked = torch.nn.functional.grid_sample(
        images.reshape(-1, 1, height, width), grid, padding_mode="border", align_corners=True
    )
    return looked.view(images.shape)


# ---- parts ------------------------------------------------------------------------------------------


def _disc(pixels: Tensor, centre: Tensor, radius: Tensor, size: int) -> Tensor:
    """How much of every pixel a disc covers: ``[clips, frames, balls, size, size]``."""
    distance = (pixels - centre[..., None, None, :]).norm(dim=-1)
    return ((radius[..., None, None] - distance) * size / 2 + 0.5).clamp(0, 1)


def _line(pixels: Tensor, start: Tensor, end: Tensor, size: int) -> Tensor:
    """The same of a line between two places ``[clips, frames, 2]`` of the image."""
    start, along = start[:, :, None, None], (end - start)[:, :, None, None]
    away = pixels - start
    share = (away * along).sum(-1) / along.square().sum(-1).clamp(min=1e-6)
    distance = (away - share.clamp(0, 1)[..., None] * along).norm(dim=-1)
    return ((LINE - distance) * size / 2 + 0.5).clamp(0, 1)


def _of_owner(values: Tensor, owner: Tensor, ground: float) -> Tensor:
    """Values ``[clips, frames, balls]`` at the pixels of the ball, ``ground`` elsewhere."""
    spread = values[..., None, None].expand(*values.shape, *owner.shape[-2:])
    picked = spread.take_along_dim(owner.clamp(min=0)[:, :, None], 2)[:, :, 0]
    return torch.where(owner >= 0, picked, ground)


def _flows(motion: Motion, owner: Tensor, pixels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Optical flow in pixels, and the change of depth: a disc is moved, and made larger or smaller."""
    centre, radius = project(motion.position)
    now, then, owner = centre[:, :-1], centre[:, 1:], owner[:, :-1]
    goal = [
        _of_owner(then[..., i] - now[..., i] * radius[:, 1:] / radius[:, :-1], owner, 0.0) for i in (0, 1)
    ]
    scale = _of_owner(radius[:, 1:] / radius[:, :-1], owner, 1.0)
    moved = torch.stack(goal, -1) + (scale[..., None] - 1) * pixels
    rise = _of_owner(motion.position[:, 1:, :, 2] - motion.position[:, :-1, :, 2], owner, 0.0)
    return moved * torch.tensor([size / 2, -size / 2]), rise


def _steady(owner: Tensor, flow: Tensor) -> Tensor:
    """Where a ball's pixels come to lie wholly inside the ball, and inside the frame."""
    steady = torch.zeros(flow.shape[:-1], dtype=torch.bool)
    for ball in range(BALLS):
        mine = (owner == ball).float()
        arrives = warp(mine[:, 1:], flow) > 1 - 1e-4
        steady |= arrives & (mine[:, :-1] > 0)
    return steady & _inside(flow)


def _inside(flow: Tensor) -> Tensor:
    height, width = flow.shape[-3:-1]
    columns, rows = torch.arange(width), torch.arange(height)[:, None]
    x, y = columns + flow[..., 0], rows + flow[..., 1]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
