"""Time of a call on the device: medians of single calls, each of which finds the second-level cache cold."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

GRAPH_BELOW_MS = 20.0  # a shorter call is replayed from a CUDA graph: its launches may take Python longer
HOST_CALLS = 10


class Timing(NamedTuple):
    """Median milliseconds of a call, of how many, and by what: ``events``, ``graph`` or ``wall``."""

    ms: float
    calls: int
    method: str


class Timer:
    """Times calls on one device.

    Args:
        seconds: how long one measurement may repeat its call; three calls count in any case.
    """

    def __init__(self, device: torch.device, seconds: float = 0.3):
        self.device, self.seconds = device, seconds
        self.cuda = device.type == "cuda"
        if self.cuda:
            cache = torch.cuda.get_device_properties(device).L2_cache_size or 2**26
            self.eviction = torch.empty(2 * cache, dtype=torch.int8, device=device)

    def measure(self, call: Callable[[], object], graph: bool = True) -> Timing:
        """Time ``call``, which has no arguments and whose result is dropped.

        Args:
            graph: a short call may be captured in a CUDA graph, that is, it can be run any number of times.
        """
        if not self.cuda:
            start = time.perf_counter()
            call()
            return Timing((time.perf_counter() - start) * 1e3, 1, "wall")
        call()  # may compile
        times, method = [self._once(call)], "events"
        if graph and times[0] < GRAPH_BELOW_MS:
            replay = self._captured(call)
            if replay is not None:
                replay()
                call, method, times = replay, "graph", [self._once(replay)]
        more = int(self.seconds * 1e3 / max(times[0], 1e-3))
        times += [self._once(call) for _ in range(min(50, max(2, more)))]
        return Timing(statistics.median(times), len(times), method)

    def host_ms(self, call: Callable[[], object]) -> float:
        """Median milliseconds that Python takes to launch a call, which bounds models of short sequences."""
        times = []
        for _ in range(HOST_CALLS):
            if self.cuda:
                torch.cuda.synchronize(self.device)
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times)

    def _once(self, call: Callable[[], object]) -> float:
        """Milliseconds of one call. The eviction before it gives Python time to get ahead of the device."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.eviction.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def _captured(self, call: Callable[[], object]) -> Callable[[], None] | None:
        """A replay of the call, None if it cannot be captured."""
        graph, stream, current = torch.cuda.CUDAGraph(), torch.cuda.Stream(), torch.cuda.current_stream()
        try:
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                call()
            current.wait_stream(stream)
            with torch.cuda.graph(graph):
                call()
        except RuntimeError:
            torch.cuda.set_stream(current)
            torch.cuda.synchronize()
            return None
        return graph.replay
