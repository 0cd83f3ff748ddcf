"""The consistency of generated 4-D worlds, against a simulation of the same beginning.

Formulas of Physics-IQ (arXiv 2501.09038, and its published code) on masks of what moves; errors of depth and
flow; and what needs places in space, which :mod:`.lifting` finds without the learned heads. Every metric is
one number a clip, NaN where a clip does not have what it is about.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .lifting import Tracks, chamfer_4d, disc_cloud, track
from .render import Clip, warp
from .worlds import HIGH, LOW, RADIUS

MOVES = 0.2  # change of a colour between two frames that counts as motion
LOST = 1.0  # drift of a ball that is not there
OVERLAPS = ("st_iou", "s_iou", "ws_iou")


def video_metrics(rgb: Tensor, truth: Clip, known: int) -> dict[str, Tensor]:
    """All metrics of frames alone, ``[clips]`` each, over the frames behind the known ones.

    Args:
        rgb: ``[clips, frames, height, width, 3]`` in [0, 1]; the known frames in front.
    """
    return {**appearance(rgb, truth.rgb, known), **consistency(track(rgb), truth, known)}


def appearance(rgb: Tensor, real: Tensor, known: int) -> dict[str, Tensor]:
    """The four metrics of Physics-IQ, on frames behind the known ones."""
    generated, wanted = (motion_masks(x)[:, known - 1 :] for x in (rgb, real))
    return {
        "mse": (rgb - real)[:, known:].square().flatten(1).mean(1),
        "st_iou": spatiotemporal_iou(generated, wanted),
        "s_iou": spatial_iou(generated, wanted),
        "ws_iou": weighted_spatial_iou(generated, wanted),
    }


def consistency(tracks: Tracks, truth: Clip, known: int) -> dict[str, Tensor]:
    """Metrics of places in space. Balls that the truth shows occluded do not count."""
    tracks = tracks.outside(truth.hidden)  # a ball that nobody should see may be seen
    later = slice(known, None)
    mine, real = tracks.frames(later), Tracks.of(truth.motion).outside(truth.hidden).frames(later)
    away = drifts(mine, real)
    return {
        "chamfer": chamfer_4d(disc_cloud(mine), disc_cloud(real)),
        "drift": away.nanmean((1, 2)),
        "drift_slope": slope(away.nanmean(2)),
        "free_flight": free_flight_residual(tracks, truth, known),
        "penetration": penetration(mine),
        "lost": mean_where((~mine.seen).float(), real.seen),
    }


def geometry_metrics(depth: Tensor, flow: Tensor, rise: Tensor, truth: Clip) -> dict[str, Tensor]:
    """Errors of depth and motion where the truth has a ball, ``[clips]`` each.

    Args:
        depth: ``[clips, frames, height, width]``.
        flow, rise: as in :class:`Clip`.
    """
    inside = truth.foreground
    return {
        "abs_rel": mean_where((depth - truth.depth).abs() / truth.depth, inside),
        "epe": mean_where((flow - truth.flow).norm(dim=-1), inside[:, :-1]),
        "warp_l1": mean_where(warp_error(depth, flow, rise), truth.steady),
    }


def physics_iq_score(metrics: Mapping[str, float], takes: Mapping[str, float]) -> float:
    """Percent of the physical variance, the metrics of a second take of reality (Physics-IQ)."""
    overlap = sum(metrics[name] / takes[name] for name in OVERLAPS) / len(OVERLAPS)
    return 100 * min(max(overlap - (metrics["mse"] - takes["mse"]), 0.0), 1.0)


# ---- Physics-IQ -------------------------------------------------------------------------------------


def motion_masks(rgb: Tensor) -> Tensor:
    """Pixels that differ from the frame before: bool ``[clips, frames - 1, height, width]``."""
    return rgb.diff(dim=1).abs().amax(-1) > MOVES


def spatiotemporal_iou(a: Tensor, b: Tensor) -> Tensor:
    """Where and when: the mean over frames of the IoU of masks; 1 where both are empty."""
    return _iou(a.flatten(2), b.flatten(2)).mean(1)


def spatial_iou(a: Tensor, b: Tensor) -> Tensor:
    """Where, at any time."""
    return _iou(a.any(1).flatten(1), b.any(1).flatten(1))


def weighted_spatial_iou(a: Tensor, b: Tensor) -> Tensor:
    """Where and how much."""
    a, b = (mask.float().mean(1).flatten(1) for mask in (a, b))
    return _ratio(torch.minimum(a, b).sum(1), torch.maximum(a, b).sum(1))


def _iou(a: Tensor, b: Tensor) -> Tensor:
    return _ratio((a & b).sum(-1), (a | b).sum(-1))


def _ratio(shared: Tensor, either: Tensor) -> Tensor:
    return torch.where(either > 0, shared / either, 1.0)


# ---- geometry and motion ----------------------------------------------------------------------------


def warp_error(depth: Tensor, flow: Tensor, rise: Tensor) -> Tensor:
    """Depth transported by the motion, against the depth of the next frame, per pixel of all but the last.

    ``|D_t(p) + dz_t(p) - D_{t+1}(p + flow_t(p))|``; its mean over what stays visible is the Depth-Warp L1.
    """
    return (depth[:, :-1] + rise - warp(depth[:, 1:], flow)).abs()


def drifts(tracks: Tracks, real: Tracks) -> Tensor:
    """Distance of balls from where they should be, ``[clips, frames, balls]``; NaN where none should be."""
    distance = (tracks.position - real.position).norm(dim=-1)
    return torch.where(tracks.seen, distance, LOST).masked_fill(~real.seen, torch.nan)


def slope(series: Tensor) -> Tensor:
    """Of a least-squares line through ``[clips, frames]``, a frame, without what is NaN."""
    there = ~series.isnan()
    count = there.sum(1, keepdim=True)
    times = torch.arange(series.shape[1], device=series.device, dtype=series.dtype).expand_as(series)
    centred = (times - times.where(there, 0.0).sum(1, keepdim=True) / count).where(there, 0.0)
    fitted = (centred * series.nan_to_num()).sum(1) / centred.square().sum(1)
    return torch.where(count[:, 0] > 1, fitted, torch.nan)


def free_flight_residual(tracks: Tracks, truth: Clip, known: int) -> Tensor:
    """``|d2y/dt2 + g|`` of balls in free flight in the simulation, at frames whose next one is generated."""
    y, motion = tracks.position[..., 1], truth.motion
    curvature = y[:, 2:] - 2 * y[:, 1:-1] + y[:, :-2]
    free = motion.free[:, 1:-1] & motion.free[:, 2:] & motion.present[:, None]
    seen = tracks.seen[:, 2:] & tracks.seen[:, 1:-1] & tracks.seen[:, :-2]
    residual = (curvature + motion.gravity[:, None, None]).abs()
    generated = slice(max(known - 2, 0), None)
    return mean_where(residual[:, generated], (free & seen)[:, generated])


def penetration(tracks: Tracks) -> Tensor:
    """How deep balls are inside walls, and inside each other, summed; a mean over frames."""
    position = tracks.position
    low, high = (torch.tensor(wall, device=position.device) for wall in (LOW, HIGH))
    into_walls = (torch.maximum(low - position, position - high) + RADIUS).clamp(min=0.0).sum(-1)
    apart = (position[:, :, 0] - position[:, :, 1]).norm(dim=-1)
    into_other = (2 * RADIUS - apart).clamp(min=0.0) * tracks.seen.all(-1)
    return ((into_walls * tracks.seen).sum(-1) + into_other).mean(1)


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of a clip over a mask, ``[clips]``; NaN where it is empty."""
    return values.masked_fill(~mask, torch.nan).flatten(1).nanmean(1)
