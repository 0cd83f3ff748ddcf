"""Diffusion: transformers that see noisy samples and a noise level, noise schedules, samplers."""

from .samplers import DDIM, FlowSDE, Sampler, Step, Trajectory
from .schedules import (
    PREDICTIONS,
    CosineVP,
    LinearVP,
    Parts,
    RectifiedFlow,
    Schedule,
    VariancePreserving,
    levels,
)
from .trajectory import TrajectoryConfig, TrajectoryTransformer
from .video import VideoConfig, VideoTransformer

__all__ = [
    "DDIM",
    "PREDICTIONS",
    "CosineVP",
    "FlowSDE",
    "LinearVP",
    "Parts",
    "RectifiedFlow",
    "Sampler",
    "Schedule",
    "Step",
    "Trajectory",
    "TrajectoryConfig",
    "TrajectoryTransformer",
    "VariancePreserving",
    "VideoConfig",
    "VideoTransformer",
    "levels",
]
