"""Where kernels are launched: the one place, so that a tool can see what a call launches
(flashlla.testing.offline), and a second stream for launches too small to fill a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch


def run(kernel: Any, grid: int, *arguments: Any, **constants: Any) -> None:
    """Every launch of this backend goes through here, on the device of its first argument."""
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(grid,)](*arguments, **constants, enable_fp_fusion=True)


@contextlib.contextmanager
def aside(device: torch.device) -> Iterator[Callable[[], contextlib.AbstractContextManager[object]]]:
    """Launches in ``with side():`` run beside the others of the block; what follows the block waits for both.

    Only for kernels that leave most of a GPU idle. They find what was launched before the first of them.
    Whatever is no GPU runs everything in order.
    """
    if device.type != "cuda":
        yield contextlib.nullcontext
        return
    main, other, used = torch.cuda.current_stream(device), _side_stream(device), False

    def side() -> contextlib.AbstractContextManager[object]:
        nonlocal used
        if not used:
            other.wait_stream(main)
            used = True
        return torch.cuda.stream(other)

    try:
        yield side
    finally:
        if used:
            main.wait_stream(other)


@lru_cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Of high priority: its launches are short of parallelism, so they should start as soon as they can."""
    return torch.cuda.Stream(device, priority=-1)
