"""The kernels of csrc/cuda on a host: compiled as C++ with emulation/emulation.cpp, in place of CuPy's
launch.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from flashlla.ops import cuda, reference
from flashlla.ops.cuda import _kernels
from flashlla.ops.types import Forward, Layout, Options

EMULATION = Path(__file__).parent / "emulation" / "emulation.cpp"
FEW_KEYS = 128  # of a smallest split, so that short caches have several
SHARED = 232448  # bytes of a block on sm_90


class Emulation:
    """Stands in for ``_runtime``; compiles every specialisation once, when it is first launched."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.libraries: dict[tuple, ctypes.CDLL] = {}
        self.order = 1  # of the threads; -1 is the other one
        self.shared = SHARED
        self.launched: list[_kernels.Kernel] = []

    def shared_limit(self, device: torch.device) -> int:
        return self.shared

    def launch(self, kernel: _kernels.Kernel, problem: bytes, blocks: int, device: torch.device) -> None:
        self.launched.append(kernel)
        self.library(kernel).run(problem, blocks, kernel.threads, kernel.shared_bytes, self.order)

    def library(self, kernel: _kernels.Kernel) -> ctypes.CDLL:
        key = kernel.macros, kernel.source
        if key not in self.libraries:
            self.libraries[key] = self.compile(kernel, self.folder / f"{len(self.libraries)}.so")
        return self.libraries[key]

    def compile(self, kernel: _kernels.Kernel, path: Path) -> ctypes.CDLL:
        command = ["g++", "-std=c++20", "-O2", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-o", str(path)]
        command += [f"-I{_kernels.folder() / 'include'}", f"-DFLASHLLA_NAME={kernel.name}", *kernel.macros]
        command += [f'-DFLASHLLA_SOURCE="{_kernels.folder() / "cuda" / kernel.source}"', str(EMULATION)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        library, sizes = ctypes.CDLL(str(path)), (ctypes.c_int * 5)()
        library.describe(sizes)
        believed = [kernel.threads, kernel.shared_bytes, kernel.state_floats]
        assert list(sizes) == [*believed, cuda._PROBLEM.size, _kernels.MIN_SPLIT]
        return library


def _arguments(operands: dict[str, Tensor], layout: Layout, causal: bool, window_size: int) -> tuple:
    q = operands["q"]
    gate = operands.get("gate", torch.ones(q.shape[:3]))
    options = Options(q.shape[-1] ** -0.5, causal, window_size, "auto", 1e-3, 100)
    probe = None if "r" not in operands else -operands["r"]
    return (q, operands["k"], operands["v"], probe, operands.get("ridge"), gate, layout, options)


def decode(operands, layout: Layout, causal=True, window_size=0) -> Forward:
    """The kernel's answer."""
    return cuda.forward(*_arguments(operands, layout, causal, window_size), stats=False)


def exact(operands, layout: Layout, causal=True, window_size=0) -> tuple[Tensor, Tensor]:
    """Output and lse of the reference in float64."""
    wide = {name: t.double() for name, t in operands.items()}
    return reference.attention(*_arguments(wide, layout, causal, window_size))
