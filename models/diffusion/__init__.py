"""Diffusion transformers: networks that see noisy trajectories or video latents, and a noise level."""

from .trajectory import TrajectoryConfig, TrajectoryTransformer
from .video import VideoConfig, VideoTransformer

__all__ = ["TrajectoryConfig", "TrajectoryTransformer", "VideoConfig", "VideoTransformer"]
