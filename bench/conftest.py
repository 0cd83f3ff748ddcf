"""Options, the report that every benchmark writes to, and what happens to it at the end of a run.

The report is printed. With ``--compare`` it is held against the committed one of this machine. Otherwise,
unless the run was ``--quick``, it is saved under ``bench/results`` and put into ``docs/performance.md``; a
run of all benchmarks replaces what is there, a run of some only their rows.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from _common import (
    RESULTS,
    ROOT,
    Row,
    describe,
    load_rows,
    machine,
    machines_as_sections,
    replace_between_markers,
    results_folder,
    rows_as_tables,
    save_rows,
    threads,
)
from _compare import changes, verdict

_machine = pytest.StashKey[dict]()
_rows = pytest.StashKey[list[Row]]()
_baseline = pytest.StashKey[list[Row]]()


def _results() -> Path:
    return results_folder() / "cpu.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help="small sizes, to see that all runs; nothing is saved"
    )
    parser.addoption("--assert-bars", action="store_true", help="fail if a measured number misses its bar")
    parser.addoption(
        "--compare",
        action="store_true",
        help="fail if a number is worse than the committed one of this machine; nothing is saved",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_quiet = True  # the report says it all
    config.stash[_machine], config.stash[_rows] = machine(), []
    config.stash[_baseline] = load_rows(_results()) if config.option.compare else []
    if config.option.compare and config.option.quick:
        raise pytest.UsageError("--compare needs the full sizes: leave --quick out")
    if config.option.compare and not config.stash[_baseline]:
        raise pytest.UsageError(f"this machine has no baseline, {_results()}; `make bench` makes one")


@pytest.fixture
def report(request: pytest.FixtureRequest):
    """``report(topic, name, measured, unit, at_least=..., at_most=..., detail={...})`` adds a row.

    Its spread is that of what was timed, unless another one is given. Bars are set for the full sizes: a
    ``--quick`` run has none.
    """
    config, timed = request.config, request.getfixturevalue("benchmark").extra_info

    def add(*args, **kwargs) -> None:
        row = Row(*args, **{"spread": timed.get("spread", 0.0), "load_average": os.getloadavg()[0], **kwargs})
        row = replace(row, spread=round(row.spread, 4), load_average=round(row.load_average, 2))
        if config.option.quick:
            row = replace(row, at_least=None, at_most=None)
        config.stash[_rows].append(row)

    return add


@pytest.fixture
def shrink(request: pytest.FixtureRequest):
    """A sequence length as given, or an eighth of it in a ``--quick`` run."""
    return lambda n: n // 8 if request.config.option.quick else n


@pytest.fixture(autouse=True)
def one_thread():
    """One thread unless a benchmark takes more, and as many as before afterwards."""
    with threads(1):
        yield


def _ran_everything(session: pytest.Session) -> bool:
    """Whether no file of this folder was left out and no name deselected."""
    files = set(Path(__file__).parent.glob("test_*.py"))
    return files <= {item.path for item in session.items} and not session.config.option.keyword


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config, rows = session.config, session.config.stash[_rows]
    missed = config.option.assert_bars and any(row.met is False for row in rows)
    slower = any(change.is_slower for change in changes(config.stash[_baseline], rows))
    if (missed or slower) and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if not rows or config.option.quick or config.option.compare:
        return
    path = _results()
    if not _ran_everything(session):
        new = {(row.topic, row.name) for row in rows}
        rows = rows + [row for row in load_rows(path) if (row.topic, row.name) not in new]
    rows = sorted(rows, key=lambda row: row.topic)
    save_rows(path, config.stash[_machine], rows)
    sections = machines_as_sections(sorted(RESULTS.glob("*/cpu.json")))
    replace_between_markers(ROOT / "docs" / "performance.md", "bench", f"\n{sections}\n")


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    rows = config.stash[_rows]
    if not rows:
        return
    barred = [row for row in rows if row.met is not None]
    terminalreporter.section("measured")
    terminalreporter.write_line(describe(config.stash[_machine]))
    terminalreporter.write_line(rows_as_tables(rows))
    if barred:
        terminalreporter.write_line(f"{sum(row.met for row in barred)} of {len(barred)} bars met")
    if config.option.compare:
        terminalreporter.section("against the baseline")
        terminalreporter.write_line(verdict(config.stash[_baseline], rows))
