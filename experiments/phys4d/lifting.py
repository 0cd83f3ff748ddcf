"""From frames to balls and points in space, without anything that was learned.

The colours of the scenery are known and span all colours, so that every pixel says how much of it each ball
covers. A disc of known size that covers an area is at one depth. :func:`depth_cloud` is the other way, of
pixels at a depth that somebody else says.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .render import BACKGROUND, COLORS, FOCAL, lift, pixel_places
from .worlds import BALLS, HIGH, LOW, RADIUS, Motion

SOFT = (0.2, 0.8)  # coverages below count as none, above as whole: noise is not summed up, areas stay
REACH = 1.6  # radii of the nearest ball around the place of most coverage that are looked at
SMALLEST = 0.25  # share of the area of the farthest ball that makes a ball
TIME = 0.25  # length that a frame of distance in time counts as
NOTHING = 2.0  # distance to a clip without a single point
RING = 8  # points on the edge of a disc, beside its centre


class Tracks(NamedTuple):
    """Places of the balls, ``[clips, frames, balls, 3]``, and where they were seen, bool without the 3."""

    position: Tensor
    seen: Tensor

    @classmethod
    def of(cls, motion: Motion) -> Tracks:
        """The truth."""
        return cls(motion.position, motion.present[:, None].expand(motion.position.shape[:3]))

    def outside(self, hidden: Tensor) -> Tracks:
        """Without those that are not to count, bool ``[clips, frames, balls]``."""
        return Tracks(self.position, self.seen & ~hidden)

    def frames(self, index: slice) -> Tracks:
        return Tracks(self.position[:, index], self.seen[:, index])


class Cloud(NamedTuple):
    """Points in space and time, ``[clips, points, 4]``, and which of them there are, ``[clips, points]``."""

    points: Tensor
    there: Tensor


def coverage(rgb: Tensor) -> Tensor:
    """How much of each pixel the balls and the lines cover: ``[..., 3, height, width]`` of ``[..., 3]``."""
    ground = torch.tensor(BACKGROUND, device=rgb.device)
    unmix = torch.linalg.inv(torch.tensor(COLORS, device=rgb.device) - ground)
    return ((rgb - ground) @ unmix).movedim(-1, -3)


def track(rgb: Tensor) -> Tracks:
    """Centres and areas of the balls of frames ``[clips, frames, height, width, 3]``, lifted to space."""
    low, high = SOFT
    covered = ((coverage(rgb)[..., :BALLS, :, :] - low) / (high - low)).clamp(0, 1)
    size = rgb.shape[-2]
    pixels = pixel_places(size).to(rgb.device)
    reach = REACH * FOCAL * RADIUS / (LOW[2] + RADIUS)
    covered = covered * _near_peak(covered, pixels, reach)
    pixel = (2 / size) ** 2
    area = covered.sum((-1, -2)) * pixel
    centre = torch.einsum("...hw,hwc->...c", covered, pixels) * pixel / area.clamp(min=pixel)[..., None]
    farthest = math.pi * (FOCAL * RADIUS / (HIGH[2] - RADIUS)) ** 2
    depth = FOCAL * RADIUS / (area / math.pi).clamp(min=SMALLEST * farthest / math.pi).sqrt()
    return Tracks(lift(centre, depth), area > SMALLEST * farthest)


def disc_cloud(tracks: Tracks) -> Cloud:
    """The centre and the edge of every ball."""
    angles = torch.arange(RING, device=tracks.position.device) * (2 * math.pi / RING)
    ring = RADIUS * torch.stack([angles.cos(), angles.sin(), 0 * angles], -1)
    offsets = F.pad(ring, (0, 0, 1, 0))
    places = tracks.position[..., None, :] + offsets
    return _in_time(places.flatten(2, 3), tracks.seen[..., None].expand(places.shape[:-1]).flatten(2))


def depth_cloud(rgb: Tensor, depth: Tensor, count: int) -> Cloud:
    """The ``count`` pixels of a frame that a ball covers most, those that it covers by half, at given depths.

    Args:
        rgb: ``[clips, frames, height, width, 3]``.
        depth: ``[clips, frames, height, width]``.
    """
    balls = coverage(rgb)[..., :BALLS, :, :].amax(-3).flatten(-2)
    best, index = balls.topk(count, dim=-1)
    pixels = pixel_places(rgb.shape[-2]).to(rgb.device).flatten(0, 1)
    return _in_time(lift(pixels[index], depth.flatten(-2).gather(-1, index)), best > 0.5)


def chamfer_4d(a: Cloud, b: Cloud) -> Tensor:
    """The mean over both directions of the mean distance to the nearest point of the other, ``[clips]``."""
    distance = torch.cdist(a.points, b.points, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance.masked_fill(~a.there[:, :, None] | ~b.there[:, None], torch.inf)
    to_b, to_a = (_mean_where(distance.amin(i), c.there) for i, c in ((2, a), (1, b)))
    empty, other = ~a.there.any(1), ~b.there.any(1)
    return torch.where(empty & other, 0.0, torch.where(empty | other, NOTHING, (to_a + to_b) / 2))


# ---- parts ------------------------------------------------------------------------------------------


def _near_peak(covered: Tensor, pixels: Tensor, reach: float) -> Tensor:
    """Pixels around the place where the most is covered, bool: stray ones elsewhere are no ball."""
    blurred = F.avg_pool2d(covered.flatten(0, -3), 3, stride=1, padding=1)
    peak = pixels.flatten(0, 1)[blurred.flatten(1).argmax(1)].view(*covered.shape[:-2], 1, 1, 2)
    return (pixels - peak).norm(dim=-1) <= reach


def _in_time(places: Tensor, there: Tensor) -> Cloud:
    """Places ``[clips, frames, points, 3]`` with their time."""
    times = TIME * torch.arange(places.shape[1], device=places.device, dtype=places.dtype)
    times = times[:, None, None].expand(*places.shape[1:3], 1).expand(*places.shape[:3], 1)
    return Cloud(torch.cat([places, times], -1).flatten(1, 2), there.flatten(1))


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)
