"""Benchmarks are scripts: what is tested of them runs in a Python of its own, interpreted or compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_python(*arguments: str, interpreted: bool, timeout: float = 250) -> subprocess.CompletedProcess:
    """Python on ``arguments``, with one thread and Triton's interpreter or its compiler.

    Whether kernels are interpreted is decided when they are imported, so it cannot change within a process.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "bench"), *sys.path])}
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        cwd=ROOT,
    )


def elsewhere(function: Callable, *arguments, interpreted: bool):
    """The result of a function of a test module, called in another process, by way of JSON."""
    name, folder = function.__module__, str(Path(__file__).parent)
    code = (
        f"import json, sys; sys.path.insert(0, {folder!r}); import {name}; "
        f"print(json.dumps({name}.{function.__name__}(*json.loads({json.dumps(arguments)!r}))))"
    )
    done = run_python("-W", "ignore", "-c", code, interpreted=interpreted)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
