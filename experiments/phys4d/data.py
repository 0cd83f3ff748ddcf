"""The clips of a trial, made once from its seed: broken worlds, true ones, and two takes of the test."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flashlla.models.training import batch_seed

from .render import Clip, render
from .worlds import Motion, broken, draw_scenes, second_take, simulate

LABEL_SCALE = 0.2  # standard deviation of the logarithm of a clip's wrong scale, of depth and of motion
LABEL_SHIFT = 0.15  # of a clip's depth
LABEL_NOISE = 0.1  # of a pixel's depth, and of its change
FLOW_NOISE = 0.5  # of a pixel's flow, pixels


class Library(NamedTuple):
    """Clips on the device of the trial.

    Attributes:
        broken: worlds that look right and move wrong, to pretrain on.
        labels: what a poor estimator says of their depth and flow.
        true: worlds that obey laws, to fine-tune on.
        test: others like these.
        retake: the test once more, with speeds, gravity and restitution slightly off.
    """

    broken: Clip
    labels: Clip
    true: Clip
    test: Clip
    retake: Clip

    @classmethod
    def make(
        cls, clips: int, test: int, frames: int, size: int, *, seed: int, device: torch.device | str = "cpu"
    ) -> Library:
        """Bit by bit the same for the same arguments, whatever the device.

        Args:
            clips: of broken and of true worlds each.
            test: clips of each take.
        """
        generator = torch.Generator().manual_seed(batch_seed(seed, 0, 0))
        wrong = broken(draw_scenes(clips, generator), frames, generator)
        wrong = render(simulate(wrong, frames), size)
        labels = corrupted(wrong, generator)
        true = render(simulate(draw_scenes(clips, generator), frames), size)
        scene = draw_scenes(test, generator)
        takes = (scene, second_take(scene, generator))
        tests = (render(simulate(take, frames), size) for take in takes)
        return cls(*(on_device(clip, device) for clip in (wrong, labels, true, *tests)))


def corrupted(clip: Clip, generator: torch.Generator) -> Clip:
    """Depth and motion of a wrong scale and shift for each clip, and with noise at every pixel."""

    def normal(like: Tensor, per_clip: bool) -> Tensor:
        shape = (len(like), *[1] * (like.dim() - 1)) if per_clip else like.shape
        return torch.randn(shape, generator=generator)

    scale = (LABEL_SCALE * normal(clip.depth, True)).exp()
    shift = LABEL_SHIFT * normal(clip.depth, True)
    speed = (LABEL_SCALE * normal(clip.rise, True)).exp()
    return clip._replace(
        depth=scale * clip.depth + shift + LABEL_NOISE * normal(clip.depth, False),
        flow=speed[..., None] * clip.flow + FLOW_NOISE * normal(clip.flow, False),
        rise=speed * clip.rise + LABEL_NOISE * normal(clip.rise, False),
    )


def rows(clip: Clip, index: Tensor | slice) -> Clip:
    """Some of the clips."""
    return Clip(*(t[index] for t in clip[:-1]), Motion(*(t[index] for t in clip.motion)))


def on_device(clip: Clip, device: torch.device | str) -> Clip:
    return Clip(*(t.to(device) for t in clip[:-1]), Motion(*(t.to(device) for t in clip.motion)))
