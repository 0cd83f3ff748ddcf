"""Every specialisation compiles for real targets without a GPU: within their shared memory, loops over keys
without spills.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess

import pytest

from flashlla.ops.cuda import _kernels
from flashlla.ops.cuda._kernels import Kernel
from flashlla.testing.offline import cuobjdump, spills_in_loops

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed here")

SHARED = {"sm_80": 163 * 1024, "sm_90a": 227 * 1024}
REGISTERS = 65536  # of a multiprocessor
PROBES = ("solved", "given", "zero")
USUAL = [
    ("solved", True, 64, True),
    ("solved", False, 128, True),
    ("solved", True, 256, True),
    ("given", True, 128, True),
    ("zero", False, 64, False),
]
OTHERS = [
    case
    for case in itertools.product(PROBES, (True, False), (64, 128, 256), (True, False))
    if case not in USUAL
]


def resources(kernel: Kernel, target: str, folder) -> dict[str, int]:
    """Registers, and accesses to what was spilled within a loop of products."""
    source = folder / kernel.source
    source.write_text(_kernels.source_text(kernel.source))  # as the runtime compiler sees it
    command = ["nvcc", "-std=c++17", "-cubin", f"-arch={target}", "-Xptxas", "-v", *kernel.macros]
    done = subprocess.run(
        [*command, str(source), "-o", str(folder / "out.cubin")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "warning" not in done.stderr, done.stderr
    registers = int(re.search(r"Used (\d+) registers", done.stderr).group(1))
    return {
        "registers": registers,
        "spilled_in_loops": spills_in_loops(cuobjdump("-sass", str(folder / "out.cubin")), "HMMA"),
    }


def check(case: tuple, target: str, folder) -> None:
    probe, bf16, dim, aligned = case
    kernel = _kernels.choose(probe, bf16, dim, aligned, SHARED[target])
    used = resources(kernel, target, folder)
    assert kernel.stages >= 2 and kernel.shared_bytes <= SHARED[target]
    assert used["registers"] * kernel.threads <= REGISTERS
    if dim <= 128:
        assert used["spilled_in_loops"] == 0, used


@pytest.mark.parametrize("case", USUAL, ids=str)
@pytest.mark.parametrize("target", [pytest.param("sm_80", marks=pytest.mark.slow), "sm_90a"])
def test_usual_kernels_compile(case, target, tmp_path):
    check(case, target, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS, ids=str)
@pytest.mark.parametrize("target", SHARED)
def test_other_kernels_compile(case, target, tmp_path):
    check(case, target, tmp_path)


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("dim", [64, 128])
def test_small_shared_memory_suffices_for_usual_heads(probe, dim):
    assert _kernels.choose(probe, True, dim, True, 99 * 1024).stages >= 1
