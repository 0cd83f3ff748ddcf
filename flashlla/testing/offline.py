"""Compile the Triton kernels that a call would launch, for any GPU and without one, and say what they use.

    python -m flashlla.testing.offline --target sm_90 --head-dim 64

prints a JSON object a kernel. Needs kernels that are compiled, not interpreted: ``TRITON_INTERPRET`` must
not be set.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from flashlla.ops import triton as backend
from flashlla.ops.triton import _configs, _runtime
from flashlla.ops.types import Layout, Options

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
    arguments: tuple[Any, ...]
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


class Resources(NamedTuple):
    """What a compiled kernel uses; registers and spills are only known where the assembler reports them."""

    shared: int  # bytes a program
    registers: int | None  # a thread
    spilled: int | None  # bytes of stack a thread
    spilled_in_loops: int | None  # local loads and stores within an innermost loop
    instructions: dict[str, int]  # of interest, by name


@contextlib.contextmanager
def recorded(target: str) -> Iterator[list[Launch]]:
    """Launches of the Triton backend as on a target, one of ``TARGETS``, are collected instead of run."""
    launches: list[Launch] = []
    architecture = "gfx9" if target.startswith("gfx9") else target

    def record(kernel: triton.JITFunction, grid: int, *arguments: Any, **constants: Any) -> None:
        launches.append(Launch(kernel, grid, arguments, constants))

    with (
        mock.patch.object(_runtime, "run", record),
        mock.patch.object(_configs, "architecture", lambda device: architecture),
    ):
        yield launches


def source_of(launch: Launch) -> ASTSource:
    """The launch as Triton specialises it: divisibility by 16 of pointers and integers, integers that are
    1.
    """
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
        elif value == 1 and not launch.kernel.params[index].do_not_specialize:
            signature[name], constants[index,] = "constexpr", 1
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not launch.kernel.params[index].do_not_specialize:
                attributes[index,] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def compile_launch(launch: Launch, target: GPUTarget) -> Resources:
    """Compile for a target and read what the assembler says of the result."""
    options = {name: launch.constants[name] for name in LAUNCH_OPTIONS if name in launch.constants}
    compiled = triton.compile(source_of(launch), target=target, options={**options, "enable_fp_fusion": True})
    if target.backend == "cuda":
        return _cuda_resources(compiled)
    return _hip_resources(compiled)


def _cuda_resources(compiled: Any) -> Resources:
    ptx = compiled.asm["ptx"]
    interesting = {name: len(re.findall(pattern, ptx)) for name, pattern in _PTX.items()}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, sass = (cuobjdump(option, file.name) for option in ("-res-usage", "-sass"))
    registers, stack = (_number(rf"{name}:(\d+)", usage) for name in ("REG", "STACK"))
    return Resources(compiled.metadata.shared, registers, stack, spills_in_loops(sass), interesting)


def _number(pattern: str, text: str) -> int:
    """The number that a tool reports."""
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the report of the compiler has nothing like {pattern}")
    return int(found[1])


def cuobjdump(option: str, path: str) -> str:
    """The disassembler that comes with Triton."""
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout


_PTX = {
    "wgmma": r"wgmma\.mma_async",
    "mma": r"\bmma\.sync",
    "tcgen05": r"tcgen05\.mma",
    "cp.async": r"cp\.async\.c[ag]",
}


def spills_in_loops(sass: str, instruction: str = "") -> int:
    """Loads and stores of local memory between the target of a backward branch and that branch, innermost
    loops; of those that have an ``instruction``, if one is named.
    """
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", sass)
    addresses = [(int(address, 16), text) for address, text in lines]
    loops = []
    for address, text in addresses:
        branch = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if branch and (begin := int(branch[1], 16)) < address:
            loops.append((begin, address))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    inner = [a for a in inner if any(instruction in text for at, text in addresses if a[0] <= at <= a[1])]
    return sum(
        bool(re.search(r"\b(LDL|STL)\b", text))
        for address, text in addresses
        if any(begin <= address <= end for begin, end in inner)
    )


def _hip_resources(compiled: Any) -> Resources:
    assembly = compiled.asm["amdgcn"]
    registers = _number(r"\.vgpr_count:\s+(\d+)", assembly)
    spilled = _number(r"\.vgpr_spill_count:\s+(\d+)", assembly)
    mfma = {"mfma": len(re.findall(r"v_mfma", assembly))}
    return Resources(compiled.metadata.shared, registers, 4 * spilled, None, mfma)


# ---- calls that need every kernel, and every option of it ------------------------------------------------

# One call, changed in one thing at a time.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "parallax": {"member": "parallax"},
    "softmax": {"member": "softmax"},
    "full": {"causal": False},
    "window": {"window_size": 256},
    "packed": {"packed": True},
    "cache": {"cache": True},
    "grouped": {"kv_heads": 1},
    "float16": {"dtype": torch.float16},
    "float32": {"dtype": torch.float32},
    "loose": {"rtol": 5e-2},
    "odd": {"head_dim_change": -3},
    "decode": {"new_rows": 1, "kv_heads": 1},
    "decode_paged": {"new_rows": 4, "paged": True, "window_size": 256},
    "decode_parallax": {"new_rows": 1, "member": "parallax", "kv_heads": 1},
    "decode_softmax": {"new_rows": 1, "member": "softmax", "paged": True},
}


def launches_of(
    target: str,
    head_dim: int,
    *,
    member: str = "lla",
    dtype: torch.dtype = torch.bfloat16,
    causal: bool = True,
    window_size: int = 0,
    packed: bool = False,
    cache: bool = False,
    new_rows: int | None = None,
    paged: bool = False,
    kv_heads: int = 2,
    rtol: float = 1e-4,
    head_dim_change: int = 0,
) -> list[Launch]:
    """What a forward and a backward pass launch on a target, every kernel and specialisation once.

    Args:
        cache: a prefill over a cache; with ``new_rows`` so many rows are decoded instead. No backward pass.
        paged: the cache is paged.
    """
    length, heads, dim = 1024, 2, head_dim + head_dim_change
    rows, cache = new_rows or length, cache or new_rows is not None
    q = torch.empty(1, rows, heads, dim, dtype=dtype)
    k = torch.empty(*((4, length // 4) if paged else (1, length)), kv_heads, dim, dtype=dtype)
    probe = q if member == "parallax" else None
    gate = torch.ones(1, rows, heads)
    ridge = torch.ones(1, rows, heads) if member == "lla" else None
    bounds = torch.tensor([0, 300, length])
    table = torch.arange(4, dtype=torch.int32)[None] if paged else None
    layout = Layout(cu_seqlens_q=bounds) if packed else Layout()
    layout = Layout(seqlens_k=bounds[-1:], block_table=table) if cache else layout
    options = Options(dim**-0.5, causal, window_size, "auto", rtol, 2 * dim + 16)
    with recorded(target) as launches:
        out = backend.forward(q, k, k, probe, ridge, gate, layout, options, True)
        if not cache:
            backend.backward(q, q, k, k, probe, ridge, gate, out.kbar, out.g, layout, options)
    return list({_identity(launch): launch for launch in launches}.values())


def _identity(launch: Launch) -> tuple[str, ...]:
    source = source_of(launch)
    return launch.name, str(source.signature), str(source.constants), str(source.attrs)


def main() -> None:
    """Compile the launches of one target and head dimension; print what they use, one JSON object a line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--target", required=True, choices=TARGETS)
    parser.add_argument("--head-dim", required=True, type=int)
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="default: all of them")
    arguments = parser.parse_args()
    done: set[tuple[str, ...]] = set()
    for variant in arguments.variant or VARIANTS:
        for launch in launches_of(arguments.target, arguments.head_dim, **VARIANTS[variant]):
            if _identity(launch) in done:
                continue
            done.add(_identity(launch))
            resources = compile_launch(launch, TARGETS[arguments.target])
            wide = launch.constants.get("ACC") == triton.language.float64
            row = {"kernel": launch.name, "variant": variant, "float64": wide, **launch.constants}
            shown = {
                name: value if isinstance(value, int | bool) else str(value) for name, value in row.items()
            }
            print(json.dumps({**shown, **resources._asdict()}), flush=True)


if __name__ == "__main__":
    main()
