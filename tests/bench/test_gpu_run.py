"""The GPU run without a GPU: every section, interpreted, at tiny sizes; and its parts by themselves."""

from __future__ import annotations

import json

import pytest
from other_python import ROOT, elsewhere, run_python

SECTIONS = ["matmul", "checks", "speed", "decode", "training", "accuracy", "memory", "long"]
SECTIONS += ["kernels"]
GOALS = ["time, forward and backward, ridge 1", "time, forward and backward, ridge 0.1", "error, forward"]
GOALS += ["sdpa, time of a step", "share of copy bandwidth", "solve of one step"]
GOALS += ["time over products executed", "as a share of the matmul rate", "peak memory", "runs and is right"]


def files_of_results() -> set:
    return set((ROOT / "bench" / "results").rglob("*"))


@pytest.mark.slow
def test_every_section_runs_interpreted(tmp_path):
    before = files_of_results()
    command = ("-W", "ignore", "bench/gpu_run.py", "--device", "cpu", "--quick", "--out", str(tmp_path))
    done = run_python(*command, interpreted=True)
    assert done.returncode == 0, done.stderr
    assert files_of_results() == before, "an interpreted run saves only where it is told to"

    saved = json.loads((tmp_path / "gpu.json").read_text())
    assert saved["interpreted"] is True and saved["quick"] is True
    assert list(saved["sections"]) == [*SECTIONS, "more speed"]
    for name, section in saved["sections"].items():
        assert section["status"] == "done", (name, section)
        assert bool(section["rows"]) == (name in SECTIONS), name
        for row in section["rows"]:
            assert "failed" not in row and "refused" not in row and row.get("passed", True), (name, row)
    forward = [row for row in saved["sections"]["speed"]["rows"] if row["direction"] == "forward"]
    assert all(row["ms"] > 0 for row in forward)
    assert all(row["iterations"]["most"] > 0 for row in forward if row["kind"] == "lla")

    table = done.stdout.splitlines()[-len(saved["bars"]) - 2 :]
    assert all(line.startswith("| ") for line in table)
    for goal in GOALS:
        assert any(goal in line for line in table), goal
    assert all(row["met"] is None for row in saved["bars"]), "the interpreter says nothing of speed"


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--minutes", "0"], "--minutes 0 must be greater than 0"),
        (["--device", "tpu9"], "--device tpu9 is no device"),
        (["--device", "mps"], "--device mps is not supported"),
        (["--device", "cpu"], "set TRITON_INTERPRET=1"),
        (["--out", "pyproject.toml", "--device", "cpu"], "--out pyproject.toml is a file"),
    ],
)
def test_wrong_arguments(arguments, complaint):
    done = run_python("bench/gpu_run.py", *arguments, interpreted=False)
    assert done.returncode == 2 and complaint in done.stderr


def test_the_interpreter_needs_small_sizes():
    done = run_python("bench/gpu_run.py", "--device", "cpu", interpreted=True)
    assert done.returncode == 2 and "needs --quick" in done.stderr


def counted() -> dict:
    """Products of the launches of an LLA call with two terms each, and a summary of iterations."""
    import torch
    from gpu.counts import executed_products, summarise

    two = {"TERMS": 2, "PROBE_TERMS": 2, "F_TERMS": 2, "SOLVED": True}
    names = ("broken", "probe_fwd", "apply_fwd", "adjoint_bwd", "rows_bwd", "keys_bwd", "probe_fwd, float64")
    forward, backward = executed_products([(name, two) for name in names])
    iterations = torch.tensor([9, 9, 1, 2, 3, 4, 5, 6]).view(1, 8, 1)
    return {"forward": forward, "backward": backward, "iterations": summarise(iterations, tile=4, few=2)}


def test_products_and_iterations_are_counted():
    found = elsewhere(counted, interpreted=True)
    assert found["forward"] == [10, 4] and found["backward"] == [22, 4]
    # Rows 3 to 8 see many keys: 2 iterations for the 7 pairs of the first tile, 6 for the 26 of the second.
    assert found["iterations"] == pytest.approx([21 / 6, (2 * 7 + 6 * 26) / 33, 6])


def written(folder: str) -> list[str]:
    """A file that replaces another, with numbers that JSON does not know."""
    from pathlib import Path

    from _tables import save_json

    for value in (1.0, float("nan"), float("inf")):
        save_json(Path(folder) / "made" / "x.json", {"value": [value, {"twice": value}]})
    return [(Path(folder) / "made" / "x.json").read_text(), *map(str, (Path(folder) / "made").iterdir())]


def test_files_are_replaced_whole(tmp_path):
    text, *files = elsewhere(written, str(tmp_path), interpreted=True)
    assert json.loads(text) == {"value": ["inf", {"twice": "inf"}]} and len(files) == 1


def planned() -> list:
    """Names of all checks of a full run."""
    from gpu.checks import groups

    return [[name, [check.name for check in checks]] for name, checks in groups(False, False).items()]


def test_every_check_is_there_once():
    names = [name for _, checks in elsewhere(planned, interpreted=True) for name in checks]
    assert len(set(names)) == len(names)
    for part in (
        "window",
        "packed",
        "grouped",
        "bidirectional",
        "float16",
        "float32",
        "ridge 0.01",
    ):
        assert any(part in name for name in names), part
