"""Compile the Triton kernels that a call would launch, for any GPU and without one, and say what they use.

    with recorded() as launches:
        triton_backend.forward(...)         # any tensors; nothing runs
    for launch in launches:
        resources = compile_launch(launch, TARGETS["sm_90"])

Needs kernels that are compiled, not interpreted: ``TRITON_INTERPRET`` must not be set.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from flashlla.ops.triton import _runtime

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Bytes of shared memory that one program may use.
SHARED_LIMIT = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}
LAUNCH_OPTIONS = ("num_warps", "num_stages")
POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
}


class Launch(NamedTuple):
    """One recorded launch."""

    kernel: triton.JITFunction
    grid: int
    arguments: tuple
    constants: dict

    @property
    def name(self) -> str:
        return self.kernel.__name__


class Resources(NamedTuple):
    """What a compiled kernel uses; registers and spills are only known where the assembler reports them."""

    shared: int  # bytes a program
    registers: int | None  # a thread
    spilled: int | None  # bytes of stack a thread
    spilled_in_loops: int | None  # local loads and stores within an innermost loop
    instructions: dict[str, int]  # of interest, by name


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches of the Triton backend are collected instead of run."""
    launches: list[Launch] = []

    def record(kernel, grid, *arguments, **constants):
        launches.append(Launch(kernel, grid, arguments, constants))

    with mock.patch.object(_runtime, "run", record):
        yield launches


def source_of(launch: Launch) -> ASTSource:
    """The launch as Triton specialises it: divisibility by 16 of pointers and integers, integers that are 1."""
    signature, constants, attributes = {}, {}, {}
    values = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))
    values |= {name: v for name, v in launch.constants.items() if name not in LAUNCH_OPTIONS}
    for index, name in enumerate(launch.kernel.arg_names):
        value = values[name]
        if launch.kernel.params[index].is_constexpr:
            signature[name], constants[index,] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            if value.data_ptr() % 16 == 0:
                attributes[index,] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:
            signature[name], constants[index,] = "constexpr", 1
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[index,] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def compile_launch(launch: Launch, target: GPUTarget) -> Resources:
    """Compile for a target and read what the assembler says of the result."""
    options = {name: launch.constants[name] for name in LAUNCH_OPTIONS if name in launch.constants}
    compiled = triton.compile(source_of(launch), target=target, options={**options, "enable_fp_fusion": True})
    if target.backend == "cuda":
        return _cuda_resources(compiled)
    return _hip_resources(compiled)


def _cuda_resources(compiled) -> Resources:
    ptx = compiled.asm["ptx"]
    interesting = {name: len(re.findall(pattern, ptx)) for name, pattern in _PTX.items()}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, sass = (_cuobjdump(option, file.name) for option in ("-res-usage", "-sass"))
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    return Resources(compiled.metadata.shared, registers, stack, _spills_in_loops(sass), interesting)


def _cuobjdump(option: str, path: str) -> str:
    """The disassembler that comes with Triton."""
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout


_PTX = {"wgmma": r"wgmma\.mma_async", "mma": r"\bmma\.sync", "tcgen05": r"tcgen05\.mma", "cp.async": r"cp\.async\.c[ag]"}


def _spills_in_loops(sass: str) -> int:
    """Loads and stores of local memory between the target of a backward branch and that branch, innermost loops."""
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", sass)
    addresses = [(int(address, 16), text) for address, text in lines]
    loops = []
    for address, text in addresses:
        branch = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if branch and (begin := int(branch[1], 16)) < address:
            loops.append((begin, address))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return sum(
        bool(re.search(r"\b(LDL|STL)\b", text))
        for address, text in addresses
        if any(begin <= address <= end for begin, end in inner)
    )


def _hip_resources(compiled) -> Resources:
    assembly = compiled.asm["amdgcn"]
    registers = int(re.search(r"\.vgpr_count:\s+(\d+)", assembly)[1])
    spilled = int(re.search(r"\.vgpr_spill_count:\s+(\d+)", assembly)[1])
    mfma = {"mfma": len(re.findall(r"v_mfma", assembly))}
    return Resources(compiled.metadata.shared, registers, 4 * spilled, None, mfma)
