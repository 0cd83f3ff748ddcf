"""What a call launches: every kernel with its constants, and how long each of them runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from unittest import mock

import torch
import triton.language as tl

from flashlla.ops.triton import _runtime

SLEEP = 20_000_000  # cycles, about 10 ms


def observed(call: Callable[[], object]) -> list[tuple[str, dict]]:
    """Names and constants of the kernels that a call launches, which run as ever."""
    seen, run = [], _runtime.run

    def spy(kernel, grid, *arguments, **constants):
        seen.append((label(kernel, constants), constants))
        run(kernel, grid, *arguments, **constants)

    with mock.patch.object(_runtime, "run", spy):
        call()
    return seen


def label(kernel, constants: dict) -> str:
    """The name of a kernel; one that runs in float64, as rows that see few keys do, says so."""
    name = getattr(kernel, "fn", kernel).__name__.removesuffix("_kernel")
    return name + (", float64" if constants.get("ACC") == tl.float64 else "")


def split(call: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Milliseconds of every kernel of a call, summed by name, without what PyTorch launches in between."""
    events, run, cuda = [], _runtime.run, device.type == "cuda"

    def now():
        if not cuda:
            return time.perf_counter() * 1e3
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def timed(kernel, grid, *arguments, **constants):
        begin = now()
        run(kernel, grid, *arguments, **constants)
        events.append((label(kernel, constants), begin, now()))

    if cuda:
        torch.cuda._sleep(SLEEP)  # Python gets ahead, and no kernel waits for its launch
    with mock.patch.object(_runtime, "run", timed):
        call()
    if cuda:
        torch.cuda.synchronize(device)
    milliseconds: dict[str, float] = {}
    for name, begin, end in events:
        passed = begin.elapsed_time(end) if cuda else end - begin
        milliseconds[name] = milliseconds.get(name, 0.0) + passed
    return milliseconds
