"""``flashlla run``, ``list`` and ``report``: results, going on, wrong arguments."""

import json
import os
import shutil
import subprocess
import sys
import time

import one_process
import pandas
import psutil
import pytest
from processes import kill_and_go_on, left_over, seconds_of

from flashlla import cli
from flashlla.experiments.common import commands, executors, registry
from flashlla.experiments.common.claims import above, below, within
from flashlla.experiments.common.statistics import Interval, bootstrap
from flashlla.experiments.common.sweep import Sweep

OUTCOMES = ("supported", "not supported", "inconclusive")
PROVENANCE = ["seconds", "step_seconds", "finished", "revision"]  # columns that no two runs have in common
SWEEP = ("run", "test_time_regression", "--preset", "smoke", "--workers", "1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "test_time_regression" / "smoke"
    assert cli.main([*SWEEP, "--out", str(out)]) == 0
    return out


def test_a_sweep_leaves_table_figures_and_where_they_come_from(finished):
    table = pandas.read_parquet(finished / "table.parquet")
    trials = {path.name for path in (finished / "trials").iterdir()}
    assert set(table["trial"]) == trials and len(trials) == 40
    assert set(table["seed"]) == {0, 1} and (table["error"] > 0).all()
    assert (finished / "errors.png").read_bytes().startswith(b"\x89PNG")
    config = json.loads((finished / "config.json").read_text())
    assert config["config"]["seeds"] == 2 and {"flashlla", "torch"} <= set(config["versions"])


def test_nothing_is_computed_twice(finished, capsys):
    rows = {path: path.stat().st_mtime_ns for path in finished.glob("trials/*/rows.json")}
    assert cli.main([*SWEEP, "--out", str(finished), "--seeds", "1"]) == 0
    assert "20 trials, 20 of them done before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.glob("trials/*/rows.json")} == rows


def test_a_trial_that_was_cut_short_is_computed_again(finished):
    experiment = registry.load("test_time_regression")
    sweep = Sweep(experiment, experiment.presets["smoke"], finished)
    assert sweep.pending() == []
    key = next(iter(sweep.trials))
    path = sweep.folder_of(key) / "rows.json"
    whole = path.read_text()
    path.write_text(whole[:20])
    assert sweep.pending() == [key]
    path.write_text(whole)


def test_workers_end_with_a_sweep_that_is_killed(tmp_path):
    sizes = ("--steps", "20000", "--seeds", "1")
    words = ("run", "state_tracking", "--preset", "smoke", "--workers", "1", *sizes)
    command = [sys.executable, "-m", "flashlla", *words, "--out", str(tmp_path / "out")]
    parent = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("out/trials/*/training/metrics.jsonl")):
        assert parent.poll() is None
        time.sleep(0.2)
    children = parent.children(recursive=True)
    parent.kill()
    parent.wait()
    assert children and not psutil.wait_procs(children, timeout=20)[1]


@pytest.mark.parametrize(
    ("moments", "sizes"),
    (
        (4, ("--seeds", "1", "--mixer", "lla", "softmax")),
        pytest.param(50, ("--seeds", "12"), marks=pytest.mark.slow),
    ),
)
def test_kill_9_at_random_moments(moments, sizes, tmp_path):
    """A sweep whose trials train dies at any instant, and others go on to the same table."""
    words = ["run", "state_tracking", "--preset", "smoke", *sizes, "--out"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def where():
        return "save" if left_over(killed) else "work"

    duration = seconds_of(one_process.run, [*words, str(whole)])
    found = kill_and_go_on(
        one_process.run, [*words, str(killed)], moments=moments, duration=duration, seed=0, where=where
    )
    print(f"{dict(found)}, and undisturbed {duration:.1f} s")
    tables = [
        pandas.read_parquet(folder / "table.parquet").drop(columns=PROVENANCE) for folder in (whole, killed)
    ]
    pandas.testing.assert_frame_equal(*tables, check_exact=True)
    assert files_in(killed) == files_in(whole) and not left_over(killed)


def files_in(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_report_is_one_page_that_asks_for_nothing(finished, tmp_path, capsys):
    page = tmp_path / "page.html"
    words = ["report", "--runs", str(finished.parents[1]), "--preset", "smoke", "--out", str(page)]
    assert cli.main(words) == 0
    text = page.read_text()
    assert "<svg" in text and "MesaNet is worse than LLA after the first change." in text
    assert "<script" not in text and "src=" not in text
    assert "http" not in text.replace("http://www.w3.org/", "")


def test_the_list_names_every_experiment(capsys):
    assert cli.main(["list"]) == 0
    listed = capsys.readouterr().out
    assert len(registry.names()) > 1 and all(name in listed for name in registry.names())


@pytest.mark.parametrize("name", [name for name in registry.names() if name != SWEEP[1]])
def test_smoke(name, tmp_path, capsys):
    """Every experiment runs to its claims, each of which has a verdict, and draws its figures."""
    assert cli.main(["run", name, "--preset", "smoke", "--workers", "1", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out.lower()
    verdicts = sum(printed.count(f"\n{outcome}  ") for outcome in OUTCOMES)
    assert verdicts == len(registry.load(name).claims) > 0
    assert list((tmp_path / "out").glob("*.png"))
    assert not pandas.read_parquet(tmp_path / "out" / "table.parquet").empty


@pytest.mark.parametrize(
    ("words", "complaint"),
    (
        (["run"], "name an experiment: one of "),
        (["run", "nothing"], "experiment 'nothing' is unknown"),
        ([*SWEEP, "--mixer", "magic"], "mixer 'magic' is unknown"),
        ([*SWEEP, "--mixer", "mamba2"], "mixer 'mamba2' needs training"),
        ([*SWEEP, "--seeds", "0"], "seeds=0 must be at least 1"),
        ([*SWEEP, "--seeds", "many"], "invalid literal for int"),
        ([*SWEEP, "--speed", "9"], "--speed"),
        ([*SWEEP, "--segment", "33"], "segment 33 must be a positive multiple of 32"),
        (["run", "test_time_regression", "--preset", "huge"], "invalid choice"),
        (["run", "test_time_regression", "--workers", "0"], "--workers 0 must be at least 1"),
        (["report", "--preset", "huge"], "invalid choice"),
    ),
)
def test_wrong_arguments_give_one_line_and_code_2(words, complaint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_gives_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert cli.main([*SWEEP, "--out", str(tmp_path / "file" / "out")]) == 1
    assert_one_line(capsys, "run", tmp_path / "file" / "out", "Not a directory")


@pytest.mark.parametrize("command", ("run", "report"))
def test_nothing_is_computed_for_what_cannot_be_written(command, small_disk, tmp_path, capsys, monkeypatch):
    """Neither the folder of a sweep, nor the package that results are published in, nor the page."""

    def nothing(*_):
        raise AssertionError("something was computed")

    small_disk.protect()
    monkeypatch.setattr(commands, "_package", lambda experiment: small_disk.folder)
    monkeypatch.setattr(commands, "_compute", nothing)
    monkeypatch.setattr(commands, "_section", nothing)
    words = {"run": [*SWEEP, "--publish", "--out", str(tmp_path)], "report": ["report", "--out"]}[command]
    words = words if command == "run" else [*words, str(small_disk.folder / "page.html")]
    assert cli.main(words) == 1
    assert_one_line(capsys, command, small_disk.folder, "Read-only file system")


def assert_one_line(capsys, command, folder, reason):
    error = capsys.readouterr().err
    assert error.startswith(f"flashlla {command}: {folder}") and error.count("\n") == 1
    assert f"cannot be written: {reason}" in error and "make room or give permission" in error


TRAINED = ("run", "state_tracking", "--preset", "smoke", "--seeds", "1", "--steps", "4", "--mixer", "lla")


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(executors, "processes", lambda workers: one_process.submit)


@pytest.mark.parametrize(
    "name",
    (
        "manifest.json",  # of a checkpoint
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("config.json", "trial.json", "rows.json", "table.parquet", ".png")
        ),
    ),
)
def test_a_full_disk_gives_one_line_and_a_sweep_that_goes_on(
    name, in_this_process, small_disk, capsys, monkeypatch
):
    out = small_disk.folder / "out"
    assert cli.main([*TRAINED, "--out", str(out)]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.name.endswith(name)}
    capsys.readouterr()
    with monkeypatch.context() as patch:
        small_disk.fill_at(name, patch)
        assert cli.main([*TRAINED, "softmax", "--out", str(out)]) == 1
    assert_one_line(capsys, "run", out, "No space left on device")
    assert {path: path.read_bytes() for path in before} == before and not left_over(out)
    small_disk.empty()
    assert cli.main([*TRAINED, "softmax", "--out", str(out)]) == 0
    assert set(pandas.read_parquet(out / "table.parquet")["mixer"]) == {"lla", "softmax"}


def test_a_full_disk_leaves_the_old_report(small_disk, capsys, monkeypatch):
    texts = iter(("short", "long" * 8192))
    monkeypatch.setattr(commands, "render", lambda *_: next(texts))
    monkeypatch.setattr(registry, "names", list)
    page = small_disk.folder / "page.html"
    assert cli.main(["report", "--out", str(page)]) == 0
    small_disk.fill(spare=8192)  # enough to begin
    capsys.readouterr()
    assert cli.main(["report", "--out", str(page)]) == 1
    assert_one_line(capsys, "report", page, "No space left on device")
    assert page.read_text() == "short" and not left_over(small_disk.folder)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(
    finished, in_this_process, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(registry, "names", lambda: [SWEEP[1]])
    monkeypatch.setattr(commands, "render", lambda *_: "")
    out = shutil.copytree(finished, tmp_path / SWEEP[1] / "smoke")
    report = ["report", "--runs", str(tmp_path), "--preset", "smoke", "--out", str(tmp_path / "page.html")]
    rows = next((out / "trials").iterdir()) / "rows.json"
    for path, words, code in (
        (rows, [*SWEEP, "--out", str(out)], 0),
        (out / "command.txt", report, 0),
        (out / "table.parquet", report, 2),
    ):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        assert cli.main(words) == code
    assert rows.is_file()
    assert "table.parquet does not exist; flashlla run writes it" in capsys.readouterr().err


def test_intervals_and_verdicts():
    interval = bootstrap([1.0, 2.0, 3.0])
    assert interval.value == 2.0 and 1.0 <= interval.low < 2.0 < interval.high <= 3.0
    assert bootstrap([1.0]) == Interval(1.0, float("-inf"), float("inf"))
    with pytest.raises(ValueError, match="samples must be finite"):
        bootstrap([1.0, float("nan")])
    for judge, outcomes in (
        (above, ("supported", "inconclusive", "not supported")),
        (below, ("not supported", "inconclusive", "supported")),
    ):
        assert tuple(judge(interval, threshold, "x").outcome for threshold in (0.5, 2.0, 3.5)) == outcomes
    assert within(interval, 0.0, 4.0, "x").outcome == "supported"
    assert within(interval, 5.0, 6.0, "x").outcome == "not supported"
    assert within(interval, 1.5, 6.0, "x").outcome == "inconclusive"
