"""Registers, spills and shared memory of every Triton kernel: the table of docs/performance.md. Needs no GPU.

    .venv/bin/python bench/resources.py [--target sm_90 ...] [--head-dim 64 ...] [--variant decode ...]

Writes ``bench/results/offline/resources.json`` and, from all that it holds, the table of the page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import triton
from _common import ROOT, markdown_table, replace_between_markers, save_json

PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench" / "results" / "offline" / "resources.json"
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
HEAD_DIMS = (64, 128, 256)
VARIANTS = ("plain", "decode", "decode_parallax")  # these have every kernel


def compile_kernels(target: str, head_dim: int, variants: list[str]) -> list[dict]:
    """One row for every kernel of the calls."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "flashlla.testing.offline", "--target", target]
    command += ["--head-dim", str(head_dim), *(part for name in variants for part in ("--variant", name))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    kept = ("kernel", "float64", "BLOCK_M", "BLOCK_N", "num_warps", "num_stages", "shared", "registers")
    kept += ("spilled", "spilled_in_loops", "instructions")
    return [{name: row[name] for name in kept if name in row} for row in rows]


def cell(row: dict | None) -> str:
    """``registers / spilled bytes / local accesses in inner loops / KiB of shared memory`` of one kernel."""
    if row is None:
        return ""
    loops = "-" if row["spilled_in_loops"] is None else row["spilled_in_loops"]
    return f"{row['registers']} / {row['spilled']} / {loops} / {row['shared'] / 1024:.0f}"


def table(results: dict[str, list[dict]]) -> str:
    """Kernels down, targets and head dimensions across, one table a target."""
    parts = []
    for target in TARGETS:
        dims = [dim for dim in HEAD_DIMS if f"{target}/{dim}" in results]
        found = {dim: {identity(row): row for row in results[f"{target}/{dim}"]} for dim in dims}
        names = dict.fromkeys(name for rows in found.values() for name in rows)
        lines = [
            [name[0], "float64" if name[1] else "bfloat16", *(cell(found[dim].get(name)) for dim in dims)]
            for name in names
        ]
        if lines:
            head = ["kernel", "arithmetic", *(f"d={dim}" for dim in dims)]
            parts.append(f"#### {target}\n\n{markdown_table(head, lines)}")
    note = (
        f"Triton {triton.__version__}: registers a thread / bytes of stack a thread / local loads and stores "
        "in all inner loops / KiB of shared memory a program."
    )
    return "\n\n".join([note, *parts])


def identity(row: dict) -> tuple[str, bool]:
    """What tells the kernels of a call apart in the table."""
    return row["kernel"].removesuffix("_kernel"), row["float64"]


def main() -> None:
    """Compile, save, and write the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--head-dim", nargs="+", type=int, choices=HEAD_DIMS, default=HEAD_DIMS)
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=VARIANTS)
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for target in arguments.target:
        for head_dim in arguments.head_dim:
            rows = compile_kernels(target, head_dim, arguments.variant)
            found = {identity(row): row for row in rows}
            before = {identity(row): row for row in results.get(f"{target}/{head_dim}", [])}
            results[f"{target}/{head_dim}"] = list((before | found).values())
            save_json(RESULTS, results)
            replace_between_markers(PAGE, "resources", table(results))


if __name__ == "__main__":
    main()
