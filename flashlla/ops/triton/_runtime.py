"""The one place where kernels are launched, so that a tool can see what a call launches
(flashlla.testing.offline).
"""

from __future__ import annotations

import contextlib

import torch


def run(kernel, grid: int, *arguments, **constants) -> None:
    """Every launch of this backend goes through here, on the device of its first argument."""
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(grid,)](*arguments, **constants, enable_fp_fusion=True)
