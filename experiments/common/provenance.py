"""Where a result comes from: versions, revision, machine."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

import flashlla

PACKAGES = ("torch", "triton", "numpy", "scipy", "scikit-learn", "statsmodels", "transformers")


@functools.cache
def revision() -> str:
    """The git revision of this source tree, with a + if files differ from it; "" outside of one."""
    folder = Path(flashlla.__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", folder, *words], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what computes the results."""
    found = {"flashlla": flashlla.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_name(device: str) -> str:
    """The GPU's name, or that of the processor. A sweep may start where there is none, for other machines."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else "no GPU here"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
