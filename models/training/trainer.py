"""The training loop: the same for every model, loss and number of processes."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from flashlla._files import check_writable

from .checkpoints import CheckpointError, Checkpoints, step_of
from .config import TrainerConfig
from .context_parallel import shard_batch, whole_sequences
from .ema import MovingAverage
from .metrics import MetricsLog
from .optimizers import (
    build_optimizers,
    clip_gradients,
    complete_gradients,
    create_state,
    optimizer_tensors,
    stateless_parameters,
)
from .progress import progress_bar
from .readings import Reading, Readings
from .schedules import learning_rate_factor
from .seeds import batch_seed
from .sharding import distribute
from .shards import forget_gathered, whole
from .world import World

_FIXED = ("seed", "micro_batches")  # a run that goes on must not change them


class NonFiniteError(RuntimeError):
    """A loss or gradient norm is no finite number; the message says where, and what is left to go on from."""


class Trainer:
    """Trains ``model`` in steps that depend on nothing but the configuration, the step and the weights.

    In ``folder`` it keeps ``metrics.jsonl`` and ``checkpoints/``; a run that was stopped, even killed, goes
    on from its last checkpoint as if it had not been, bit for bit at the same number of processes.

    Args:
        model: built alike in every process, on ``world.device``; it is sharded in place.
        loss: ``loss(model, batch) -> Tensor``, the mean over the batch, 0-dim. It must call the model that it
            is given.
        batch: ``batch(step, rank) -> tensors``: micro-batch ``rank`` of ``step``, both counted from 0, as a
            tensor or any nesting of tuples, lists and dicts of them; the same at every call. Torch's global
            random state is seeded before, :func:`batch_generator` gives another source.
        config: the run.
        folder: of the results.
        evaluate: ``evaluate(model) -> {name: number}``, called in every process, without gradient and in eval
            mode, with the averaged weights if there are such, on whole sequences; the first process's numbers
            are logged.
        world: the processes; None is those that ``torchrun`` has started, data parallel.
        tensorboard: log there too.
        progress: a bar on a terminal.
        on_log: ``on_log(records)``, called in the first process with lines of ``metrics.jsonl`` once they are
            written: a list of dicts, those of the steps since the last reading, or that of an evaluation.

    Raises:
        TypeError, ValueError: a configuration that does not fit the model or the processes.
        NotImplementedError: a model that cannot be shared in the way that the world wants.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Any], Tensor],
        batch: Callable[[int, int], Any],
        config: TrainerConfig,
        folder: str | os.PathLike,
        *,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        world: World | None = None,
        tensorboard: bool = False,
        progress: bool = True,
        on_log: Callable[[list[dict[str, Any]]], None] = lambda records: None,
    ):
        world = World.join() if world is None else world
        data, stray = world.size_of("data"), [p for p in model.parameters() if p.device != world.device]
        if config.micro_batches % data:
            raise ValueError(
                f"micro_batches={config.micro_batches} is no multiple of {data} data-parallel processes; "
                "change one of them"
            )
        if stray:
            raise ValueError(
                f"the model is on {stray[0].device}, this process works on {world.device}; move it"
            )
        self.config, self.world, self.folder = config, world, Path(folder)
        self.loss, self.batch, self.evaluate = loss, batch, evaluate
        self.progress, self.on_log = progress, on_log
        self.step = 0
        self._model = model
        self.model = distribute(model, world)
        if config.compile:
            self.model.compile(backend="inductor" if config.compile is True else config.compile)
        self.optimizers = build_optimizers(model, config.optimizer)
        self._average = MovingAverage(model, config.ema_decay) if config.ema_decay else None
        self.checkpoints = Checkpoints(self.folder / "checkpoints", world, config.keep)
        self._log = (
            MetricsLog(self.folder / "metrics.jsonl", tensorboard=tensorboard) if world.is_main else None
        )
        self._micro_batches = range(world.rank_in("data"), config.micro_batches, data)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._readings = Readings(world, self._micro_batches, config.micro_batches)
        self._read_at = time.perf_counter()

    # ---- running ------------------------------------------------------------------------------------

    def fit(self, *, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Train up to ``config.steps``, going on from the last checkpoint in the folder if there is one.

        Args:
            should_stop: asked when losses are read (``log_every``); if it says so in any process, a
                checkpoint is written and the run stops.

        Returns:
            Whether the run has come to its end.

        Raises:
            NonFiniteError: a loss or gradient norm is NaN or infinite.
            CheckpointError: every checkpoint is corrupt, or they are of another run.
            OSError: nothing can be written; said before the first step where it shows there.
        """
        check_writable(self.folder)
        if self.step == 0:
            self.resume()
        self.model.train()
        self._read_at = time.perf_counter()
        with progress_bar(self.config.steps, self.step, self.progress and self.world.is_main) as show:
            while self.step < self.config.steps:
                try:
                    self.train_step()
                except Exception:
                    self._check_finite(self._readings.peek())  # NaN weights are refused by many an operation
                    raise
                evaluates = self.evaluate is not None and self._is_due(self.config.evaluate_every)
                saves = self._is_due(self.config.checkpoint_every)
                if not (evaluates or saves or self.step % self.config.log_every == 0):
                    continue
                show(self.step, self._read())
                if evaluates:
                    self._evaluate()
                stops = self.world.any(bool(should_stop()))
                if saves or stops:
                    self.save()
                if stops:
                    return self.step == self.config.steps
        return True

    def train_step(self) -> None:
        """One step: gradients of this process's micro-batches, their mean over all processes, an update."""
        rate = self.config.optimizer.learning_rate * learning_rate_factor(
            self.config.schedule, self.step, self.config.steps
        )
        losses = []
        for i in self._micro_batches:
            with self._gradient_sync(i == self._micro_batches[-1]):
                losses.append(self._backward(i))
        complete_gradients(self._parameters)
        clip = self.config.clip_norm
        norm = None if clip is None else clip_gradients(self._parameters, clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._readings.add(self.step, losses, norm, rate)
        self.step += 1
        if self._average is not None:
            self._average.update(self.step)

    def _backward(self, micro_batch: int) -> Tensor:
        """Add the gradient of one micro-batch; its loss."""
        seed = batch_seed(self.config.seed, self.step, micro_batch)
        torch.manual_seed(seed)
        batch = tree_map(self._to_device, self.batch(self.step, micro_batch))
        context, size = self.world.rank_in("context"), self.world.size_of("context")
        if size > 1:
            batch = shard_batch(batch, context, size)
            torch.manual_seed(batch_seed(self.config.seed, self.step, micro_batch, context))
        with self._autocast():
            loss = self.loss(self.model, batch)
        if not isinstance(loss, Tensor) or loss.dim():
            raise TypeError(
                f"loss must return a 0-dim Tensor, got {getattr(loss, 'shape', type(loss).__name__)}"
            )
        (loss / len(self._micro_batches)).backward()
        return loss.detach()

    def _to_device(self, t: Any) -> Any:
        return t.to(self.world.device, non_blocking=True) if isinstance(t, Tensor) else t

    def _autocast(self):
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.world.device.type, torch.bfloat16)

    @contextmanager
    def _gradient_sync(self, wanted: bool) -> Iterator[None]:
        """Average the gradients over the processes in the last backward pass of a step only."""
        if hasattr(self.model, "set_requires_gradient_sync"):  # FSDP2
            self.model.set_requires_gradient_sync(wanted)
        with nullcontext() if wanted or not hasattr(self.model, "no_sync") else self.model.no_sync():
            yield

    def _is_due(self, every: int | None) -> bool:
        return self.step == self.config.steps or (every is not None and self.step % every == 0)

    # ---- what is measured ---------------------------------------------------------------------------

    def _read(self) -> float:
        """Log the steps since the last reading; the last loss, NaN if there was none."""
        readings = self._readings.read()
        seconds = (time.perf_counter() - self._read_at) / max(len(readings), 1)
        good = list(takewhile(lambda reading: reading.is_finite, readings))
        self._write([reading.record(seconds) for reading in good])
        self._check_finite(readings)
        self._read_at = time.perf_counter()
        return readings[-1].loss if readings else math.nan

    def _check_finite(self, readings: list[Reading]) -> None:
        for reading in readings:
            if not reading.is_finite:
                paths = self.checkpoints.all()
                last = f"the last good checkpoint is {paths[-1]}" if paths else "there is no checkpoint yet"
                raise NonFiniteError(
                    f"{reading.problem(self.config.seed)}; {last}. Lower the learning rate, clip more, or "
                    "raise the ridge"
                )

    def _evaluate(self) -> None:
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.averaged_weights(), whole_sequences(self._model), self._autocast():
            numbers = self.evaluate(self.model)
        self.model.train(was_training)
        self._write([{"step": self.step, **{name: float(value) for name, value in numbers.items()}}])
        self._read_at = time.perf_counter()

    def _write(self, records: list[dict[str, Any]]) -> None:
        if self._log is not None and records:
            self._log.append(records)
            self.on_log(records)

    # ---- what is kept -------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a checkpoint; its folder. Losses are read first: none stands behind one that is NaN."""
        self._read()
        if self._log is not None:
            self._log.sync()
        stateless = stateless_parameters(self._model, self.optimizers)
        info = {"step": self.step, "stateless": stateless, **self._identity()}
        path = self.checkpoints.save(self.step, self._tensors(), info)
        self._read_at = time.perf_counter()
        return path

    def resume(self) -> int:
        """Load the last good checkpoint of the folder, if there is one; the step.

        Raises:
            CheckpointError: every checkpoint is corrupt, or they are of another run.
        """
        self._readings.clear()
        if (found := self.checkpoints.last_good()) is not None:
            path, info = found
            ours = self._identity()
            different = [
                f"{k} is {info.get(k)} there, {ours[k]} here" for k in ours if info.get(k) != ours[k]
            ]
            if different:
                raise CheckpointError(f"{path} is of another run: {'; '.join(different)}")
            names, step = info.get("stateless"), step_of(path)
            if not isinstance(names, list) or info.get("step") != step:
                raise CheckpointError(f"{path} has another step, or no list of parameters without a state")
            stateless = {p for name, p in self._model.named_parameters() if name in names}
            create_state(self.optimizers, stateless)
            self.checkpoints.load(path, self._tensors())
            forget_gathered(self._model)
            self.step = step
        if self._log is not None:
            self._log.cut(self.step)
        return self.step

    def weights(self, *, averaged: bool = False) -> dict[str, Tensor]:
        """All weights and buffers as whole tensors on the CPU, by name; called in all processes together.

        Args:
            averaged: the moving average where there is one of a tensor.

        Raises:
            ValueError: there is no moving average.
        """
        if averaged and self._average is None:
            raise ValueError("averaged=True needs a run with ema_decay")
        state = self._model.state_dict()
        averages = self._average.tensors if averaged else {}
        return {n: whole(averages.get(n, t).detach()).to("cpu", t.dtype, copy=True) for n, t in state.items()}

    def averaged_weights(self):
        """Context in which the model has the averaged weights, if the run keeps such."""
        return nullcontext() if self._average is None else self._average.in_place()

    def _tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds, to be saved from or loaded into."""
        state = {f"model.{name}": t for name, t in self._model.state_dict().items()}
        state |= {f"optimizer.{n}": t for n, t in optimizer_tensors(self._model, self.optimizers).items()}
        averages = {} if self._average is None else self._average.tensors
        return state | {f"average.{name}": t for name, t in averages.items()}

    def _identity(self) -> dict[str, Any]:
        return {name: getattr(self.config, name) for name in _FIXED} | {
            "optimizer": self.config.optimizer.name
        }
