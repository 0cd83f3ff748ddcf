"""``flashlla run --ray``: two workers, failing trials, a killed sweep, addresses without a cluster."""

import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pandas
import psutil
import pytest

from flashlla import cli

pytestmark = pytest.mark.xdist_group("ray")
FAILS = 1e30  # a learning rate
SIZES = ("--mixer", "softmax", "--seeds", "3", "--steps", "80", "--learning-rate", "0.003", str(FAILS))
SWEEP = ("run", "state_tracking", "--preset", "smoke", *SIZES)


@pytest.fixture(scope="module")
def address():
    """A cluster of one node with two CPUs."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'flashlla[cluster]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # or the workers starve beside other tests
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        yield cluster.address
        cluster.shutdown()


def command(out, address):
    return [sys.executable, "-m", "flashlla", *SWEEP, "--out", str(out), "--ray", address]


def rows(out):
    return {path: path.stat().st_mtime_ns for path in out.glob("trials/*/rows.json")}


def workers():
    """The processes below this one that compute a trial, as Ray calls them."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            name = process.cmdline()[:1]
        except psutil.Error:  # it has just ended
            continue
        found |= {process} if name == ["ray::_compute_elsewhere"] else set()
    return found


@pytest.fixture(scope="module")
def killed(address, tmp_path_factory):
    """A sweep that was killed when both workers had been seen and a first trial was done."""
    out, seen = tmp_path_factory.mktemp("ray"), set()
    with subprocess.Popen(
        command(out, address), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as sweep:
        while len(seen) < 2 or not rows(out):
            assert sweep.poll() is None
            seen |= workers() if len(seen) < 2 else set()
            time.sleep(0.05)
        sweep.kill()
    return SimpleNamespace(out=out, workers=seen, done=rows(out))


def test_trials_run_in_two_workers_that_end_with_the_sweep(killed):
    assert len(killed.workers) == 2
    assert not psutil.wait_procs(killed.workers, timeout=20)[1]


@pytest.mark.slow
def test_a_killed_sweep_goes_on_elsewhere_and_a_failing_trial_costs_no_other(killed):
    assert 1 <= len(killed.done) < 3
    again = subprocess.run(command(killed.out, "local"), capture_output=True, text=True)
    assert f"6 trials, {len(killed.done)} of them done before" in again.stdout
    assert again.returncode == 1 and "3 of 6 trials failed" in again.stderr
    assert again.stderr.count(" failed: ") == 3 and "Traceback" not in again.stderr
    assert rows(killed.out).items() >= killed.done.items(), "a trial was computed twice"
    table = pandas.read_parquet(killed.out / "table.parquet")
    assert set(table["seed"]) == {0, 1, 2} and set(table["learning_rate"]) == {0.003}


@pytest.mark.parametrize("place", ["127.0.0.1", "127.0.0.1:{free}", "127.0.0.1:99999"])
def test_an_address_without_a_cluster_gives_one_line_and_code_2(place, tmp_path, capsys):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'flashlla[cluster]'")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # but nobody listens
        address = place.format(free=taken.getsockname()[1])
        assert cli.main([*SWEEP, "--out", str(tmp_path / "out"), "--ray", address]) == 2
    error = capsys.readouterr().err
    assert f"--ray {address}: no cluster can be used there" in error and error.count("\n") == 1


def test_without_the_package_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main([*SWEEP, "--out", str(tmp_path / "out"), "--ray", "local"]) == 2
    assert "pip install 'flashlla[cluster]'" in capsys.readouterr().err
