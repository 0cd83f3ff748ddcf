"""Training: what the loop costs, LLA against softmax, and two processes against one.

    python bench/training.py [--quick]

Everything runs on the CPU, one thread a process. The table is printed, saved as ``training.json`` under
``bench/results/<machine>``, and put into docs/training.md; with ``--quick`` it is only printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from _common import (
    CORES,
    ROOT,
    Row,
    describe,
    machine,
    replace_between_markers,
    results_folder,
    rows_as_tables,
    save_rows,
)
from torch.nn import functional as F

from flashlla import models
from flashlla.models import training

LOG_EVERY = 10


class Shape(NamedTuple):
    """A preset of the language model, and the sizes of a micro-batch."""

    preset: str
    seq: int
    batch: int

    @property
    def tokens(self) -> int:
        return self.seq * self.batch

    def describe(self) -> dict:
        sizes = models.LanguageModelConfig.PRESETS[self.preset]
        return {**{n: sizes[n] for n in ("dim", "depth", "heads")}, "seq": self.seq, "batch": self.batch}


TINY, LONG, SMALL = Shape("tiny", 256, 4), Shape("tiny", 1024, 1), Shape("small", 256, 2)


def make_model(mixer: str, shape: Shape) -> models.LanguageModel:
    torch.manual_seed(0)
    return models.LanguageModel(models.LanguageModelConfig.preset(shape.preset, mixer=mixer))


def batches(shape: Shape) -> Callable:
    def batch(step: int, rank: int):
        generator = training.batch_generator(0, step, rank)
        tokens = torch.randint(256, (shape.batch, shape.seq + 1), generator=generator)
        return tokens[:, :-1], tokens[:, 1:]

    return batch


def loss(model, batch) -> torch.Tensor:
    tokens, targets = batch
    return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def make_trainer(mixer: str, shape: Shape, folder: Path, steps: int, world=None, micro_batches: int = 1):
    config = training.TrainerConfig(steps, micro_batches=micro_batches, log_every=LOG_EVERY)
    model = make_model(mixer, shape)
    return training.Trainer(model, loss, batches(shape), config, folder, world=world, progress=False)


# ---- the loop against a bare step ----------------------------------------------------------------------


class BareLoop:
    """What one would write for one model: the same step, and nothing around it."""

    def __init__(self, shape: Shape):
        self.model, self.batch, self.steps = make_model("lla", shape), batches(shape), 0
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))

    def step(self) -> None:
        value = loss(self.model, self.batch(self.steps, 0))
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1


def measure_overhead(shape: Shape, blocks: int, folder: Path) -> Row:
    """Blocks of steps of the loop, losses read and written, and of bare steps, in turn."""
    bare, loop_seconds, bare_seconds = BareLoop(shape), [], []
    begun = time.perf_counter()

    def between() -> bool:  # asked behind each block
        nonlocal begun
        loop_seconds.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        for _ in range(LOG_EVERY):
            bare.step()
        bare_seconds.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        return False

    make_trainer("lla", shape, folder, blocks * LOG_EVERY + 1).fit(should_stop=between)
    # Pairs of neighbours share the state of the machine; the first and the last are a warm-up and one step.
    ratios = [ours / theirs for ours, theirs in zip(loop_seconds[1:-1], bare_seconds[1:-1], strict=True)]
    bare_ms = statistics.median(bare_seconds[1:-1]) / LOG_EVERY * 1e3
    return Row(
        "The loop over a bare PyTorch step",
        f"{shape.preset}: overhead",
        100 * (statistics.median(ratios) - 1),
        " %",
        at_most=3.0,
        detail={**shape.describe(), "bare step ms": round(bare_ms, 1), "blocks": len(ratios)},
        load_average=os.getloadavg()[0],
    )


# ---- LLA against softmax -------------------------------------------------------------------------------


def measure_mixers(shape: Shape, rounds: int, folder: Path) -> list[Row]:
    """Steps of both language models in turn."""
    trainers = {m: make_trainer(m, shape, folder / m, rounds + 2) for m in ("softmax", "lla")}
    seconds: dict[str, list[float]] = {mixer: [] for mixer in trainers}
    for _ in range(rounds + 1):
        for mixer, trainer in trainers.items():
            begun = time.perf_counter()
            trainer.train_step()
            seconds[mixer].append(time.perf_counter() - begun)
    speeds = {mixer: shape.tokens / statistics.median(times[1:]) for mixer, times in seconds.items()}
    topic, load = "LLA against softmax", os.getloadavg()[0]
    rows = [
        Row(topic, f"{shape.preset}: {mixer}", speed, " tokens/s", better="larger", detail=shape.describe())
        for mixer, speed in speeds.items()
    ]
    ratio = speeds["softmax"] / speeds["lla"]
    rows.append(Row(topic, f"{shape.preset}: softmax / LLA", ratio, "x", better="smaller"))
    for row in rows:
        row.load_average = load
    return rows


# ---- two processes against one -------------------------------------------------------------------------

# name: mesh, shape, micro-batches of a step. "apart" is two processes that share nothing but the machine.
WAYS = {
    "apart": ({}, TINY, 2),
    "ddp": ({}, TINY, 2),
    "fsdp": ({"strategy": "fsdp"}, TINY, 2),
    "tensor": ({"tensor": 2}, TINY, 2),
    "context": ({"context": 2}, LONG, 1),
}


class Seconds(NamedTuple):
    """Of one step: on the clock, and computed by this process, which waiting for others is no part of."""

    wall: float
    cpu: float


def seconds_a_step(way: str, steps: int, world: training.World, folder: Path) -> Seconds:
    _, shape, micro_batches = WAYS[way]
    trainer = make_trainer("lla", shape, folder, steps + 1, world, micro_batches)
    times = []
    for _ in range(steps + 1):
        world.barrier()
        begun = Seconds(time.perf_counter(), time.process_time())
        trainer.train_step()
        world.barrier()
        times.append(Seconds(time.perf_counter() - begun.wall, time.process_time() - begun.cpu))
    return Seconds(*(statistics.median(values) for values in zip(*times[1:], strict=True)))


def work(way: str, steps: int, folder: Path) -> None:
    """What each of the processes that ``torchrun`` starts does."""
    torch.set_num_threads(1)
    world = training.World.join(training.ParallelConfig(**WAYS[way][0]), "cpu")
    mine = training.World(training.ParallelConfig(), torch.device("cpu")) if way == "apart" else world
    seconds = seconds_a_step(way, steps, mine, folder / f"run-{world.rank if way == 'apart' else 0}")
    everyone = world.gather(seconds)
    if world.is_main:
        wall, cpu = zip(*everyone, strict=True)
        (folder / "seconds.json").write_text(json.dumps([max(wall), sum(cpu)]))
    world.leave()


def on_two_processes(way: str, steps: int, folder: Path) -> Seconds:
    """The slower one's time, and what both have computed."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
    ]
    command += [__file__, "--work", way, "--steps", str(steps), "--folder", str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return Seconds(*json.loads((folder / "seconds.json").read_text()))


def measure_scaling(steps: int, folder: Path) -> list[Row]:
    """The same step on one process, right before, and on two; an efficiency of 100 % is half the time."""
    rows, alone = [], training.World.join(device="cpu")
    for way, (_, shape, micro_batches) in WAYS.items():
        (folder / way).mkdir(parents=True)
        one = seconds_a_step(way, steps, alone, folder / way / "one")
        two = on_two_processes(way, steps, folder / way)
        share = 1 if way == "apart" else 2
        efficiency = 100 * one.wall / (share * two.wall)
        computed = two.cpu / one.cpu * share / 2
        detail = {"one ms": round(1e3 * one.wall), "two ms": round(1e3 * two.wall)}
        detail |= {"computed by both / by one": round(computed, 2), "micro-batches": micro_batches}
        name = "two runs at once, nothing shared" if way == "apart" else f"{way}: efficiency"
        detail |= shape.describe()
        row = Row("Two processes against one", name, efficiency, " %", better="larger", detail=detail)
        row.load_average = os.getloadavg()[0]
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps; the table is printed, not saved")
    parser.add_argument("--work", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=10, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.steps, options.folder)
        return
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    this, rows, steps = machine(), [], 3 if options.quick else 15
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows.append(measure_overhead(TINY, 5 if options.quick else 20, folder / "overhead"))
        for shape, rounds in ((TINY, 2 * steps), (SMALL, steps // 3)):
            rows += measure_mixers(shape, rounds, folder / f"mixers-{shape.preset}")
        if CORES > 1:
            rows += measure_scaling(steps, folder / "scaling")
    table = f"{describe(this)} One thread a process.\n\n{rows_as_tables(rows)}"
    print(table)
    if not options.quick:
        save_rows(results_folder() / "training.json", this, rows)
        replace_between_markers(ROOT / "docs" / "training.md", "bench", table)


if __name__ == "__main__":
    main()
