"""Configuration, trials, and what one trial measures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..common.experiment import ExperimentConfig
from .memory import WARM_UP, peaks
from .methods import COMPILED, PHASES, methods, prepare
from .timing import time_ratio

DTYPES = ("float32", "bfloat16", "float16")
MAX_HEAD_DIM = 96  # a warm-up of 128 keys iterates up to there; rows of few keys are solved otherwise


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """Time and memory by length.

    Attributes:
        mixer: among lla, softmax and mesanet; lla has three forms.
        length: keys, at least 256.
        naive: longest length of the naive form of LLA, whose memory is quadratic.
        heads, head_dim: of queries, keys and values, in a batch of 1.
        dtype: of the operands: float32, bfloat16 or float16.
        seconds: that the time of a call is measured for.
    """

    mixer: tuple[str, ...] = ("lla", "softmax", "mesanet")
    length: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    naive: int = 1024
    heads: int = 1
    head_dim: int = 64
    dtype: str = "float32"
    seconds: float = 1.5

    def __post_init__(self):
        super().__post_init__()
        known = {name.split(",")[0] for name in methods("cpu")}
        for mixer in self.mixer:
            if mixer not in known:
                raise ValueError(
                    f"mixer {mixer!r} is not measured here; choose from {', '.join(sorted(known))}"
                )
        if min(self.length, default=0) < 2 * WARM_UP:
            raise ValueError(f"length={self.length} must name lengths of at least {2 * WARM_UP}")
        if self.heads < 1 or not 1 <= self.head_dim <= MAX_HEAD_DIM:
            raise ValueError(
                f"heads={self.heads} must be at least 1, head_dim={self.head_dim} 1 to {MAX_HEAD_DIM}"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
        if self.seconds < 0:
            raise ValueError(f"seconds={self.seconds} must not be negative")
        if torch.device(self.device).type not in COMPILED:
            raise ValueError(f"device={self.device!r} must be one of {', '.join(COMPILED)}")


PRESETS = {
    "smoke": Config(mixer=("lla", "softmax"), length=(256,), naive=256, head_dim=16, seconds=0.0, seeds=1),
    "small": Config(),
    "gpu": Config(
        length=(256, 512, 1024, 2048, 4096, 8192, 16384),
        heads=16,
        dtype="bfloat16",
        seconds=0.5,
        device="cuda",
    ),
}


@dataclass(frozen=True)
class Trial:
    """One method at one length; a seed draws the operands, and is a repetition."""

    method: str
    length: int
    seed: int
    heads: int
    head_dim: int
    dtype: str
    seconds: float
    device: str


def trials(config: Config) -> Iterator[Trial]:
    """All combinations that memory allows."""
    sizes = (config.heads, config.head_dim, config.dtype, config.seconds, config.device)
    for seed in range(config.seeds):
        for length in config.length:
            for method in methods(torch.device(config.device).type):
                if method.split(",")[0] not in config.mixer:
                    continue
                if method == "lla, naive" and length > config.naive:
                    continue
                yield Trial(method, length, seed, *sizes)


def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """A row for every phase: time over that of torch SDPA, and the peak of memory in bytes."""
    case = {name: value for name, value in asdict(trial).items() if name != "seconds"}
    memory = peaks(case)
    rows = []
    for phase in PHASES:
        call, other = prepare(phase, **case), prepare(phase, **{**case, "method": "softmax"})
        ratio = time_ratio(call, other, trial.seconds, trial.device)
        rows.append({"phase": phase, "ratio": ratio, "peak": memory.get(phase)})
    return rows
