"""``flashlla run``, ``list`` and ``report``: results, going on, wrong arguments."""

import json
import subprocess
import sys
import time

import pandas
import psutil
import pytest

from flashlla import cli
from flashlla.experiments.common import registry
from flashlla.experiments.common.claims import above, below, within
from flashlla.experiments.common.statistics import Interval, bootstrap
from flashlla.experiments.common.sweep import Sweep

OUTCOMES = ("supported", "not supported", "inconclusive")
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
    assert cli.main([*SWEEP, "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot be written" in capsys.readouterr().err


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
