"""CuPy: compiling with NVRTC and launching. The one place where kernels of this backend are launched."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import Any

import numpy
import torch

from flashlla.ops.cuda import _kernels
from flashlla.ops.cuda._kernels import Kernel

DEFAULT_SHARED_BYTES = 48 * 1024  # more must be asked for


@cache
def missing() -> str | None:
    """Why this backend cannot be loaded, with the remedy, or None if it can."""
    if importlib.util.find_spec("cupy") is None:
        return "backend 'cuda' compiles its kernels with CuPy, which is missing; pip install 'flashlla[cuda]'"
    if not torch.cuda.is_available() or torch.version.hip:
        return "backend 'cuda' needs an NVIDIA GPU that torch finds"
    return None


@cache
def shared_limit(device: torch.device) -> int:
    """The most shared memory that a block may ask for, in bytes.

    Raises:
        NotImplementedError: the device is older than compute capability 8.0.
    """
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        raise NotImplementedError(
            f"backend 'cuda' needs compute capability 8.0 or higher, not {'.'.join(map(str, capability))}"
        )
    attributes = importlib.import_module("cupy").cuda.Device(device.index).attributes
    limit: int = attributes["MaxSharedMemoryPerBlockOptin"]
    return limit


@cache
def _function(kernel: Kernel, index: int) -> Any:
    """The compiled kernel on a device, which must be the current one."""
    cupy = importlib.import_module("cupy")
    code = _kernels.source_text(kernel.source)
    function = cupy.RawModule(code=code, options=("-std=c++17", *kernel.macros)).get_function(kernel.name)
    if kernel.shared_bytes > DEFAULT_SHARED_BYTES:
        function.max_dynamic_shared_size_bytes = kernel.shared_bytes
    return function


def launch(kernel: Kernel, problem: bytes, blocks: int, device: torch.device) -> None:
    """Run ``blocks`` blocks on torch's current stream of ``device``; ``problem`` is passed by value."""
    cuda = importlib.import_module("cupy").cuda
    argument = numpy.frombuffer(problem, dtype=f"V{len(problem)}")  # an array of one structure
    stream = torch.cuda.current_stream(device).cuda_stream
    with cuda.Device(device.index), cuda.ExternalStream(stream, device.index):
        function = _function(kernel, device.index)
        function((blocks,), (kernel.threads,), (argument,), shared_mem=kernel.shared_bytes)
