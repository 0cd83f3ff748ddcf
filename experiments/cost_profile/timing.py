"""Time of one call over that of another."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

SLICE = 0.02  # seconds of one call at a stretch, as often as it fits
LEAST_ROUNDS = 3


def time_ratio(call: Callable[[], object], other: Callable[[], object], seconds: float, device: str) -> float:
    """Time of ``call`` over that of ``other``: the median of rounds that run both, one behind the other.

    Whatever else the machine does meets both within a round alike, which an absolute time does not survive.

    Args:
        seconds: that rounds are added for; there are three at least.
        device: that the calls run on, and that is waited for.
    """
    synchronize = torch.get_device_module(torch.device(device)).synchronize

    def timed(call: Callable[[], object], count: int) -> float:
        synchronize()
        began = time.perf_counter()
        for _ in range(count):
            call()
        synchronize()
        return (time.perf_counter() - began) / count

    counts = []
    for each in (call, other):
        each()  # loads the kernels
        counts.append(max(1, round(SLICE / timed(each, 1))))
    ratios: list[float] = []
    began = time.perf_counter()
    while len(ratios) < LEAST_ROUNDS or time.perf_counter() - began < seconds:
        ratios.append(timed(call, counts[0]) / timed(other, counts[1]))
    return statistics.median(ratios)
