"""What decides a training run: plain data, checked once, the same at any number of processes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("constant", "cosine", "wsd")
PRECISIONS = ("float32", "bfloat16")
STRATEGIES = ("ddp", "fsdp")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its constants.

    Attributes:
        name: ``"adamw"``, or ``"muon"``: Muon for the matrices of the blocks, AdamW for the rest.
        learning_rate: peak of the schedule. Updates of Muon are scaled to the size that those of AdamW have,
            so that one learning rate serves both.
        weight_decay: decoupled, on parameters with two or more dimensions only.
        betas, eps: of AdamW.
        momentum: of Muon, Nesterov.
        newton_schulz_steps: iterations that orthogonalise an update of Muon.

    Raises:
        TypeError, ValueError: values of a wrong type or out of range.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95
    newton_schulz_steps: int = 5

    def __post_init__(self):
        _check_choice("name", self.name, OPTIMIZERS)
        for name in ("learning_rate", "eps"):
            _check_number(name, getattr(self, name), above=0.0)
        _check_number("weight_decay", self.weight_decay, at_least=0.0)
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise TypeError(f"betas must be two floats, got {self.betas!r}")
        object.__setattr__(self, "betas", tuple(self.betas))
        for name, value in (("betas[0]", self.betas[0]), ("betas[1]", self.betas[1])):
            _check_number(name, value, at_least=0.0, below=1.0)
        _check_number("momentum", self.momentum, at_least=0.0, below=1.0)
        _check_int("newton_schulz_steps", self.newton_schulz_steps, 1)


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run, as a share of its peak.

    Attributes:
        kind: ``"cosine"`` falls from the warm-up to the end; ``"wsd"`` (warm-up, stable, decay) stays at the
            peak and falls linearly over the last ``decay_steps``; ``"constant"`` stays.
        warmup_steps: steps of a linear rise; the last of them is at the peak.
        decay_steps: for ``"wsd"``.
        floor: share of the peak that the fall ends at, in [0, 1].

    Raises:
        TypeError, ValueError: values of a wrong type or out of range.
    """

    kind: str = "cosine"
    warmup_steps: int = 0
    decay_steps: int = 0
    floor: float = 0.1

    def __post_init__(self):
        _check_choice("kind", self.kind, SCHEDULES)
        _check_int("warmup_steps", self.warmup_steps, 0)
        _check_int("decay_steps", self.decay_steps, 0)
        _check_number("floor", self.floor, at_least=0.0, at_most=1.0)
        if self.decay_steps and self.kind != "wsd":
            raise ValueError(f"decay_steps={self.decay_steps} is for kind='wsd', not for {self.kind!r}")


@dataclass(frozen=True)
class ParallelConfig:
    """How processes share the work; those that neither tensor nor context take are data parallel.

    Attributes:
        strategy: ``"ddp"`` (every process holds the model) or ``"fsdp"`` (FSDP2, parameters, gradients and
            optimizer state are sharded); both over the data- and context-parallel processes.
        tensor: processes that share the heads of every attention layer and the width of every SwiGLU.
        context: processes that share every sequence.

    Raises:
        TypeError, ValueError: values of a wrong type or out of range.
    """

    strategy: str = "ddp"
    tensor: int = 1
    context: int = 1

    def __post_init__(self):
        _check_choice("strategy", self.strategy, STRATEGIES)
        _check_int("tensor", self.tensor, 1)
        _check_int("context", self.context, 1)


@dataclass(frozen=True)
class TrainerConfig:
    """A training run.

    Attributes:
        steps: optimizer steps.
        micro_batches: batches of one step. The data-parallel processes share them, and each accumulates the
            gradients of its own: a step is the same at any number of processes that divides this.
        seed: of all that is random in a step; together with step and micro-batch it gives
            :func:`~flashlla.models.training.batch_seed`.
        optimizer, schedule: see there.
        clip_norm: largest gradient norm; None clips nothing.
        precision: ``"float32"`` (none is changed), or ``"bfloat16"`` for autocast; weights keep their dtype.
        compile: True, or the name of a backend, for ``torch.compile``.
        ema_decay: of the moving average of the weights, in (0, 1); None keeps none. After ``t`` steps it is
            at most ``(1 + t) / (10 + t)``, so that the start is forgotten.
        log_every: steps between two readings of losses and gradient norms. Every step is logged; reading is
            where the host waits for the device, and where a loss that is no number stops the run.
        evaluate_every, checkpoint_every: steps between two of them; the last step has both. None: only there.
        keep: checkpoints that are kept, at least 2.

    Raises:
        TypeError, ValueError: values of a wrong type or out of range, or that do not fit together.
    """

    steps: int
    micro_batches: int = 1
    seed: int = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    clip_norm: float | None = 1.0
    precision: str = "float32"
    compile: bool | str = False
    ema_decay: float | None = None
    log_every: int = 10
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    keep: int = 2

    def __post_init__(self):
        for name, least in (("steps", 1), ("micro_batches", 1), ("seed", 0), ("log_every", 1), ("keep", 2)):
            _check_int(name, getattr(self, name), least)
        for name in ("evaluate_every", "checkpoint_every"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), 1)
        for name, kind in (("optimizer", OptimizerConfig), ("schedule", ScheduleConfig)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {type(getattr(self, name)).__name__}")
        _check_choice("precision", self.precision, PRECISIONS)
        if self.clip_norm is not None:
            _check_number("clip_norm", self.clip_norm, above=0.0)
        if self.ema_decay is not None:
            _check_number("ema_decay", self.ema_decay, above=0.0, below=1.0)
        if not isinstance(self.compile, (bool, str)):
            raise TypeError(f"compile must be a bool or the name of a backend, got {self.compile!r}")
        taken = self.schedule.warmup_steps + self.schedule.decay_steps
        if taken > self.steps:
            raise ValueError(
                f"warmup_steps + decay_steps = {taken} is more than steps={self.steps}; shorten them"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(choices)}")


def _check_int(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}")


def _check_number(
    name: str,
    value: Any,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a float, got {type(value).__name__}")
    for holds, limit in (
        (value >= at_least, f"at least {at_least:g}"),
        (value > above, f"greater than {above:g}"),
        (value <= at_most, f"at most {at_most:g}"),
        (value < below, f"less than {below:g}"),
    ):
        if not holds:
            raise ValueError(f"{name}={value} must be {limit}")
