"""Memory is linear in the length: peak of a fresh process, beyond what the operands hold."""

from __future__ import annotations

import subprocess
import sys

import pytest

GIBIBYTE = 2**30

PROGRAM = """
import resource, sys
import torch
import flashlla

def peak():
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/status") as status:  # Linux hands ru_maxrss down from the parent process, this not
        (line,) = (line for line in status if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])

backend, backward, options = sys.argv[1], sys.argv[2] == "True", eval(sys.argv[3])
torch.set_num_threads(1)

def operands(n):
    return [torch.randn(1, n, 1, 64, requires_grad=backward) for _ in range(3)]

def call(q, k, v):
    out = flashlla.lla_attention(q, k, v, ridge=10.0, backend=backend, **options)
    if backward:
        out.sum().backward()

call(*operands(64))  # whatever loads on first use has loaded
long = operands(16384)
before = peak()
call(*long)
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("backward", "options"),
    [
        pytest.param(False, {"rtol": 0.1}, id="forward"),
        pytest.param(True, {"rtol": 0.1}, id="backward", marks=pytest.mark.slow),
        pytest.param(False, {"solver": "direct", "window_size": 2048}, id="direct", marks=pytest.mark.slow),
    ],
)
def test_peak(backend, backward, options):
    command = [sys.executable, "-c", PROGRAM, backend, str(backward), repr(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < GIBIBYTE
