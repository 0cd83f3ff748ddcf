"""Peak memory of a call beyond its operands; what it returns is counted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from flashlla import _env

from .methods import BOTH, FORWARD, prepare

# In this order, because the second takes more. A step of decoding allocates next to nothing beyond its cache.
MEASURED = (FORWARD, BOTH)
WARM_UP = 128  # keys, at which every method loads all that it needs
# A block of so many bytes or more goes back to the system when it is freed, so that the next one counts.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}


def peaks(case: Mapping[str, Any]) -> dict[str, int]:
    """Bytes at the peak of each phase of ``MEASURED`` beyond what was there before.

    On a GPU these are torch's allocations. On a CPU it is the resident memory of a process of its own, which
    also sees what compiled kernels and libraries allocate; torch's profiler does not.

    Args:
        case: keyword arguments of :func:`.methods.prepare`.

    Raises:
        CalledProcessError: the process failed, on a system without ``/proc`` for one.
    """
    if torch.device(case["device"]).type == "cuda":
        return {phase: _peak_on_gpu(prepare(phase, **case), case["device"]) for phase in MEASURED}
    command = [sys.executable, "-c", f"from {__name__} import main; main()", json.dumps(case)]
    done = subprocess.run(
        command, env=_env.with_more(ENVIRONMENT), stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    """The process of its own: prints the bytes of every phase. The peak of the process never falls."""
    torch.set_num_threads(1)
    case = json.loads(sys.argv[1])
    for phase in MEASURED:
        prepare(phase, **{**case, "length": WARM_UP})()
    found = {}
    for phase in MEASURED:
        call = prepare(phase, **case)
        before = _status("VmRSS")
        call()
        found[phase] = _status("VmHWM") - before
    print(json.dumps(found))


def _status(name: str) -> int:
    """Bytes from ``/proc``. The maximum of ``getrusage`` would be that of the parent process, if larger."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def _peak_on_gpu(call: Callable[[], object], device: str) -> int:
    call()  # compiles, and allocates what stays
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
