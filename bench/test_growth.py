"""How time grows with the length and with the iterations, and memory with the length."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _common import HEAD_DIM, check, interleave, problem

from flashlla import lla_attention, lla_attention_with_stats

# Far below what float32 reaches: every row that iterates takes all iterations.
NEVER = 1e-30


def truncated(operands, iterations: int):
    """A call that takes exactly so many iterations, checked against the same truncation in float64.

    In mid-convergence rounding moves a few rows by more than any budget allows, hence the loose check.
    """
    options = {"solver": "cg", "rtol": NEVER, "max_iters": iterations}
    check(lla_attention, operands, backend="cpu", loosest=2e-2, exact_options=options, **options)
    taken = lla_attention_with_stats(**operands, backend="cpu", **options).iterations
    assert bool(((taken == iterations) | (taken == 0)).all())
    return lambda: lla_attention(**operands, backend="cpu", **options)


def test_time_grows_as_the_square_of_the_length(benchmark, report, shrink):
    lengths = [shrink(n) for n in (8192, 4096, 2048, 1024)]
    times = interleave(benchmark, {n: truncated(problem(n, 1)[0], 8) for n in lengths}, rounds=3)
    per_pair = {n: t / (n * (n + 1) / 2) * 1e9 for n, t in times.items()}
    report(
        "Growth",
        "time a pair, most over least, 1 head, 8 iterations",
        max(per_pair.values()) / min(per_pair.values()),
        at_most=1.15,
        detail={f"n={n}": f"{t:.1f} ns" for n, t in reversed(per_pair.items())},
    )


def test_time_grows_linearly_with_iterations(benchmark, report, shrink):
    counts = [4, 8, 16, 24]  # after 27 some rows have reached a residual of 0
    n = shrink(2048)
    operands, _ = problem(n, 1, ridge=0.1)
    direct = {"solver": "direct", "backend": "cpu"}
    check(lla_attention, operands, **direct)
    contenders = {m: truncated(operands, m) for m in counts} | {
        "direct": lambda: lla_attention(**operands, **direct)
    }
    times = interleave(benchmark, contenders, rounds=5)
    measured = torch.tensor([times[m] for m in counts], dtype=torch.float64)
    design = torch.tensor([[1.0, m] for m in counts], dtype=torch.float64) / measured[:, None]
    fixed, slope = torch.linalg.lstsq(design, torch.ones_like(measured)[:, None]).solution[:, 0].tolist()
    residual = (design @ torch.tensor([fixed, slope], dtype=torch.float64) - 1).abs().max()
    report(
        "Growth",
        f"largest residual of a line through time over iterations, n={n}",
        100 * float(residual),
        " %",
        at_most=15,
        spread=benchmark.extra_info["spread"] / max(float(residual), 1e-3),  # that of the times
        detail={
            **{f"{m} iterations": f"{times[m] * 1e3:.1f} ms" for m in counts},
            "line": f"{fixed * 1e3:.1f} + {slope * 1e3:.2f} m ms",
        },
    )
    report(
        "Growth",
        f"iterations that a direct solve costs, d={HEAD_DIM}, n={n}",
        (times["direct"] - fixed) / slope,
        better="smaller",
        detail={"direct": f"{times['direct'] * 1e3:.1f} ms"},
    )


PEAK = """
import sys, torch
from pathlib import Path
from flashlla import lla_attention

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":"))

n, backward = int(sys.argv[1]), sys.argv[2] == "backward"
torch.set_num_threads(2)
options = {"ridge": 1.0, "backend": "cpu", "rtol": 0.5}
tiny = torch.zeros(1, 8, 8, 64, requires_grad=backward)
lla_attention(tiny, tiny, tiny, **options)
q, k, v, do = (torch.randn(1, n, 8, 64) for _ in range(4))
before = status("VmRSS")
leaves = [t.requires_grad_(backward) for t in (q, k, v)]
out = lla_attention(*leaves, **options)
if backward:
    torch.autograd.grad(out, leaves, do)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_memory_is_linear(benchmark, report, shrink, direction):
    """Peak beyond the inputs in a process of its own; rtol is loose because memory does not depend on it."""
    peaks = {}

    def measure() -> None:
        for n in (shrink(8192), shrink(16384)):
            command = [sys.executable, "-c", PEAK, str(n), direction]
            peaks[n] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    benchmark.pedantic(measure, rounds=1)
    short, long = peaks
    what = "forward" if direction == "forward" else "forward and backward"
    report(
        "Memory beyond the inputs, 8 heads, d=64, float32, 2 threads",
        f"{what}, n={long}",
        peaks[long],
        " MiB",
        at_most=1024 if direction == "forward" else None,
        better="smaller",
        detail={f"n={short}": f"{peaks[short]:.0f} MiB", "ratio": f"{peaks[long] / peaks[short]:.2f}"},
    )
