"""Every Triton kernel compiles for real targets without a GPU, within their shared memory, hot loops
without spills.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from flashlla.testing.offline import SHARED_LIMIT

KERNELS = {
    "broken_kernel",
    "probe_fwd_kernel",
    "residual_kernel",
    "apply_fwd_kernel",
    "adjoint_bwd_kernel",
    "rows_bwd_kernel",
    "keys_bwd_kernel",
}
DECODE = {"moments_kernel", "merge_kernel", "solve_kernel", "weighted_kernel", "merge_weighted_kernel"}
# Local loads and stores of all inner loops together (they number thousands of instructions).
FEW_SPILLS = 10


def compile_all(target: str, head_dim: int, *variants: str) -> list[dict]:
    """Resources of all kernels, compiled in a process that does not interpret them."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [
        sys.executable,
        "-m",
        "flashlla.testing.offline",
        "--target",
        target,
        "--head-dim",
        str(head_dim),
    ]
    command += [part for variant in variants for part in ("--variant", variant)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows
    for row in rows:
        assert row["shared"] <= SHARED_LIMIT[target], row
    return rows


@pytest.mark.timeout(900)
def test_every_kernel_compiles_for_sm_90():
    rows = compile_all("sm_90", 64, "plain")
    assert {row["kernel"] for row in rows} == KERNELS
    hot = [row for row in rows if not row["float64"] and row["kernel"].endswith(("fwd_kernel", "bwd_kernel"))]
    assert len(hot) == 5
    for row in hot:
        assert row["instructions"]["wgmma"] > 0, row
        assert row["instructions"]["cp.async"] > 0, row  # the loads of the sweeps are pipelined
        assert row["spilled_in_loops"] <= FEW_SPILLS, row
    wide = [row for row in rows if row["float64"] and row["kernel"].endswith(("fwd_kernel", "bwd_kernel"))]
    assert all(row["instructions"]["mma"] > 0 for row in wide)  # float64 has its tensor cores, too


@pytest.mark.timeout(900)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_decoding_compiles_for_sm_90(head_dim):
    rows = compile_all("sm_90", head_dim, "decode", "decode_parallax")
    assert {row["kernel"] for row in rows} == DECODE
    for row in rows:  # blocks half as large would have none of them, and were a tenth slower on an H200
        assert row["spilled_in_loops"] <= 2 * FEW_SPILLS, row
    moments = next(row for row in rows if row["kernel"] == "moments_kernel")
    assert moments["instructions"]["wgmma"] > 0
    assert moments["instructions"]["cp.async"] > 0


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("target", SHARED_LIMIT)
def test_every_option_compiles(target, head_dim):
    assert {row["kernel"] for row in compile_all(target, head_dim)} == KERNELS | DECODE


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("target", SHARED_LIMIT)
def test_the_largest_head_dimension_compiles(target):
    compile_all(target, 256, "plain", "decode", "decode_paged", "decode_parallax")
