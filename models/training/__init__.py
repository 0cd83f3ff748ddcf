"""One training loop for every experiment, from one process to many (docs/training.md)."""

from .checkpoints import CheckpointError, Checkpoints
from .config import OptimizerConfig, ParallelConfig, ScheduleConfig, TrainerConfig
from .metrics import MetricsLog, read_metrics
from .muon import Muon
from .schedules import learning_rate_factor
from .seeds import batch_generator, batch_seed
from .trainer import NonFiniteError, Trainer
from .world import World

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "MetricsLog",
    "Muon",
    "NonFiniteError",
    "OptimizerConfig",
    "ParallelConfig",
    "ScheduleConfig",
    "Trainer",
    "TrainerConfig",
    "World",
    "batch_generator",
    "batch_seed",
    "learning_rate_factor",
    "read_metrics",
]
