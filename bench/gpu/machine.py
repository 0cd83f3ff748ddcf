"""The machine: what a number depends on besides the code, and the rate of its matrix products."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess

import torch
import triton

from gpu.timing import Timer
from gpu.tree import ROOT


def describe(device: torch.device) -> dict:
    """Names, versions and sizes, for the head of the results."""
    facts = {
        "device": "CPU, interpreted",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "commit": _commit(),
        "tuned": bool(os.environ.get("FLASHLLA_TUNING")),
        "date": datetime.date.today().isoformat(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_mib": round(properties.L2_cache_size / 2**20, 1),
            "cuda": torch.version.cuda,
        }
    return facts


def _commit() -> str | None:
    """The commit of the checkout, with a plus if it has changed since; None where there is no git."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def slug(facts: dict) -> str:
    """The name of the device as a folder."""
    return re.sub(r"[^a-z0-9]+", "-", facts["device"].lower()).strip("-")


def matmul_rate(timer: Timer, device: torch.device) -> dict:
    """The yardstick: operations a second of a large product of bfloat16 matrices (float32 on a CPU)."""
    n, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (256, torch.float32)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    timing = timer.measure(lambda: a @ b)
    return {"n": n, "ms": timing.ms, "operations_per_second": 2 * n**3 / timing.ms * 1e3}
