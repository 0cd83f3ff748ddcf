"""`make bench` and `make bench-compare` on synthetic numbers: what counts as slower, what is said of it."""

from __future__ import annotations

import shutil

import pytest
from other_python import ROOT, elsewhere, run_python


def is_slower(cases: list[dict]) -> list[bool]:
    """Whether a row got slower, for every case: its measured values, its spreads, its direction."""
    from _common import Row
    from _compare import Change

    def row(case: dict, i: int) -> Row:
        options = {name: case[name] for name in ("better", "at_least", "at_most") if name in case}
        return Row("topic", "row", case["measured"][i], spread=case.get("spread", (0, 0))[i], **options)

    return [Change(row(case, 0), row(case, 1)).is_slower for case in cases]


def test_slower_is_what_noise_does_not_allow():
    cases = [
        ({"measured": (10, 10.9), "better": "smaller"}, False),
        ({"measured": (10, 11.2), "better": "smaller"}, True),
        ({"measured": (10, 5), "better": "smaller"}, False),
        ({"measured": (100, 92), "better": "larger"}, False),
        ({"measured": (100, 85), "better": "larger"}, True),
        ({"measured": (100, 200), "better": "larger"}, False),
        ({"measured": (10, 20), "at_most": 60}, True),
        ({"measured": (10, 20), "at_least": 1}, False),
        ({"measured": (10, 12.9), "better": "smaller", "spread": (0.1, 0)}, False),
        ({"measured": (10, 12.9), "better": "smaller", "spread": (0, 0.1)}, False),
        ({"measured": (10, 13.1), "better": "smaller", "spread": (0.1, 0.02)}, True),
        ({"measured": (0, 0), "better": "smaller"}, False),
        ({"measured": (0, 1), "better": "smaller"}, True),
        ({"measured": (1, 0), "better": "larger"}, True),
    ]
    assert elsewhere(is_slower, [case for case, _ in cases], interpreted=True) == [slow for _, slow in cases]


def committed() -> dict:
    """The directions of all committed rows by file, and what a row without one meets."""
    from _common import RESULTS, Row, load_rows

    found = {path.parent.name: [row.better for row in load_rows(path)] for path in RESULTS.glob("*/cpu.json")}
    try:
        Row("topic", "row", 1.0)
    except ValueError as error:
        return {"files": found, "error": str(error)}
    return {"files": found}


def test_every_row_has_a_direction():
    found = elsewhere(committed, interpreted=True)
    assert found["files"] and all(found["files"].values())
    assert {better for rows in found["files"].values() for better in rows} == {"larger", "smaller"}
    assert "give a bar" in found["error"]


BENCHMARK = """
import os

def test_something(benchmark, report):
    benchmark.pedantic(lambda: None, rounds=1)
    report("Topic", "time", float(os.environ["MEASURED"]), " ms", better="smaller")
    report("Topic", "speed", 5.0, "x", at_least=1)
"""


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A copy of the frame with one benchmark, as a call with what it measures and options of pytest."""
    (tmp_path / "bench").mkdir()
    for name in ("conftest.py", "_common.py", "_tables.py", "_compare.py"):
        shutil.copy(ROOT / "bench" / name, tmp_path / "bench")
    (tmp_path / "bench" / "test_something.py").write_text(BENCHMARK)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "performance.md").write_text("before\n<!-- bench -->\n<!-- /bench -->\nafter\n")

    def run(measured: float, *options: str):
        monkeypatch.setenv("MEASURED", str(measured))
        arguments = ("-p", "no:cacheprovider", "-p", "no:xdist", *options, str(tmp_path / "bench"))
        return run_python("-W", "ignore", "-m", "pytest", *arguments, interpreted=True)

    return run


@pytest.mark.slow  # three runs of a benchmark
def test_a_run_is_compared_with_the_baseline(bench, tmp_path):
    done = bench(10.0, "--compare")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR and "`make bench` makes one" in done.stderr

    done = bench(10.0)
    assert done.returncode == 0, done.stdout
    (file,) = tmp_path.glob("bench/results/*/cpu.json")
    page, saved = (tmp_path / "docs" / "performance.md").read_text(), file.read_text()
    assert page.startswith("before") and page.endswith("after\n") and "#### Topic" in page

    done = bench(10.5, "--compare")
    assert done.returncode == 0 and "0 of 2 rows became slower" in done.stdout, done.stdout
    done = bench(15.0, "--compare")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "1 of 2 rows became slower" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("| Topic: ")]
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["10 ms", "15 ms", "+50%", "10%"]
    assert file.read_text() == saved, "a comparison saves nothing"
