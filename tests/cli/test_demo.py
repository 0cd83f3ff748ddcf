"""``flashlla demo``, as a program: results, interruption, and what it says when something is wrong."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from processes import left_over

import flashlla
from flashlla import cli, models
from flashlla.experiments.demo import data, sampling, training
from flashlla.models.training import Trainer, read_metrics

# One worker: the runs that several tests look at are then made once.
pytestmark = pytest.mark.xdist_group("demo")

STEPS = 30
TINY = {"steps": STEPS, "dim": 16, "depth": 1, "heads": 2, "context": 48, "batch": 2}
MIXERS = ("lla", "softmax")


def arguments(out, *more, **changed):
    sizes = {name: value for name, value in {**TINY, **changed}.items() if value is not None}
    words = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    return ["demo", "--device", "cpu", "--out", str(out), *words, *more]


def start(out):
    """The program itself."""
    command = [sys.executable, "-m", "flashlla", *arguments(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def demo(capsys, monkeypatch):
    """The command in this process: exit code, output and errors of ``demo(out, ...)``, with little text."""
    monkeypatch.setattr(sampling, "CHECKED_TOKENS", 4)
    monkeypatch.setattr(sampling, "SAMPLED_TOKENS", 4)

    def call(out, *more, **changed):
        try:
            code = cli.main(arguments(out, *more, **changed))
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, " ".join(captured.out.split()), captured.err

    return call


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


def losses_logged(out, mixer):
    records = read_metrics(out / mixer / "metrics.jsonl")
    return [record["loss"] for record in records if "loss" in record]


def stop_by(wanted, out):
    """The folder of a run that got a signal as soon as it had saved some steps; exit code, output, errors."""
    program, until = start(out), time.monotonic() + 200
    while not [*out.glob("lla/checkpoints/step-*")] and program.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    program.send_signal(wanted)
    output, error = program.communicate(timeout=60)
    return program.returncode, " ".join(output.split()), error


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder and the output of one whole run."""
    out = tmp_path_factory.mktemp("finished")
    output, error = (program := start(out)).communicate(timeout=200)
    assert program.returncode == 0, error
    return out, output


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The folder of a run that Ctrl-C stopped as soon as it had saved some steps."""
    out = tmp_path_factory.mktemp("interrupted")
    code, output, error = stop_by(signal.SIGINT, out)
    assert code == 130, error
    assert "same command goes on" in output
    return out


def test_results_are_there(finished):
    out, text = finished
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    models_and_curves = {
        f"{mixer}/{name}"
        for mixer in MIXERS
        for name in ("model.safetensors", "config.json", "metrics.jsonl")
    }
    assert found == {"metrics.json", "loss.png", "sample.txt", "run.json"} | models_and_curves
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert all(f"=== {label} ===" in (out / "sample.txt").read_text() for label in ("LLA", "softmax"))
    for part in ("validation loss", "bits per byte", "parameters", "one seed", "greedy tokens equal"):
        assert part in text


def test_metrics_are_sane(finished):
    out, text = finished
    found = metrics(out)
    assert found["versions"]["flashlla"] == flashlla.__version__
    assert found["settings"]["steps"] == STEPS
    for mixer in MIXERS:
        run = found["mixers"][mixer]
        assert run["steps"] == len(run["train_curve"]) == STEPS
        assert 0 < run["validation_loss"] < 6
        assert run["validation_loss"] < run["train_curve"][0]
        assert run["bits_per_byte"] == pytest.approx(run["validation_loss"] / 0.6931472)
        assert run["validation_curve"][-1] == {"step": STEPS, "loss": pytest.approx(run["validation_loss"])}
        assert run["train_seconds"] > 0 and run["evaluation_seconds"] > 0
        assert run["decoding"]["max_logit_difference"] < 1e-3
        assert run["decoding"]["equal_tokens"] >= run["decoding"]["tokens"] - 1  # two tokens may be as likely
        assert f"{run['validation_loss']:.4f}" in text
        assert f"{run['parameters']:,}" in text
    ridges = TINY["depth"] * TINY["heads"]
    assert found["mixers"]["lla"]["parameters"] == found["mixers"]["softmax"]["parameters"] + ridges


@pytest.mark.parametrize("mixer", MIXERS)
def test_models_can_be_loaded(finished, mixer):
    model = models.load_model(finished[0] / mixer)
    assert model.config.mixer == mixer
    assert model.num_parameters() == metrics(finished[0])["mixers"][mixer]["parameters"]


def test_interrupted_and_resumed_is_as_uninterrupted(finished, interrupted, demo, tmp_path, monkeypatch):
    """Stopped in the first mixer, then in the second: every loss of every step is the same."""
    out = shutil.copytree(interrupted, tmp_path / "out")
    assert 0 < len(losses_logged(out, "lla")) < STEPS
    with monkeypatch.context() as patch:
        interrupt_at(patch, mixer="softmax", step=STEPS // 2)
        assert demo(out)[0] == 130
    assert len(losses_logged(out, "softmax")) == STEPS // 2
    assert not (out / "metrics.json").exists()
    code, output, _ = demo(out, "--resume")
    assert code == 0
    assert "going on with the unfinished run" in output
    assert_same_curves(out, finished[0])


def assert_same_curves(ours, theirs):
    ours, theirs = metrics(ours)["mixers"], metrics(theirs)["mixers"]
    for name in MIXERS:
        assert ours[name]["train_curve"] == theirs[name]["train_curve"]
        assert ours[name]["validation_curve"] == theirs[name]["validation_curve"]


def interrupt_at(patch, mixer, step):
    """Ctrl-C during one training step of one mixer."""
    train_step = Trainer.train_step

    def interrupted_step(trainer):
        if trainer.model.config.mixer == mixer and trainer.step == step - 1:
            signal.raise_signal(signal.SIGINT)
        return train_step(trainer)

    patch.setattr(Trainer, "train_step", interrupted_step)


def test_a_killed_run_goes_on_from_its_last_state(finished, demo, tmp_path):
    assert stop_by(signal.SIGKILL, tmp_path)[0] == -signal.SIGKILL
    assert 0 < len(losses_logged(tmp_path, "lla")) < STEPS
    code, output, _ = demo(tmp_path)
    assert code == 0
    assert "going on with the unfinished run" in output
    assert_same_curves(tmp_path, finished[0])


def test_other_settings_are_refused_and_named(finished, demo):
    code, _, error = demo(finished[0], seed=1, batch=4)
    assert code == 1
    assert "seed is 0 there and 1 here; batch is 2 there and 4 here" in error
    assert "--fresh" in error
    assert error.count("\n") == 1


def test_resume_needs_an_unfinished_run(finished, demo, tmp_path):
    for out in (finished[0], tmp_path):
        code, _, error = demo(out, "--resume")
        assert (code, error.count("\n")) == (1, 1)
        assert "no unfinished run" in error


def cut(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize("damaged", ("lla/checkpoints", "lla/metrics.jsonl", "run.json"))
def test_a_damaged_state_is_named_and_can_be_replaced(interrupted, demo, tmp_path, damaged):
    out = shutil.copytree(interrupted, tmp_path / "out")
    for path in [out / damaged, *(out / damaged).rglob("*")]:
        if path.is_file():
            cut(path)
    code, _, error = demo(out)
    assert (code, error.count("\n")) == (1, 1)
    assert damaged in error
    assert "--fresh" in error
    assert demo(out, "--fresh", steps=1)[0] == 0
    assert not (out / "lla" / "checkpoints").exists()


def test_a_lost_log_is_named(interrupted, demo, tmp_path):
    out = shutil.copytree(interrupted, tmp_path / "out")
    (out / "lla" / "metrics.jsonl").unlink()
    code, _, error = demo(out)
    assert (code, error.count("\n")) == (1, 1)
    assert "lla/metrics.jsonl" in error and "--fresh" in error


def test_behind_a_damaged_checkpoint_is_the_one_before(finished, interrupted, demo, tmp_path):
    out = shutil.copytree(interrupted, tmp_path / "out")
    _, last = sorted((out / "lla" / "checkpoints").glob("step-*"))
    cut(last / "manifest.json")
    code, output, error = demo(out)
    assert (code, error) == (0, "")
    assert f"{last.name} is corrupt: manifest.json is damaged; using the checkpoint before it" in output
    assert_same_curves(out, finished[0])


def test_a_loss_that_is_no_number_gives_one_line(demo, tmp_path, monkeypatch):
    losses = training._losses
    monkeypatch.setattr(training, "_losses", lambda *inputs: math.nan * losses(*inputs))
    code, _, error = demo(tmp_path)
    assert (code, error.count("\n")) == (1, 1)
    assert "the loss is nan in step 0" in error
    assert "ridge" in error and "--fresh" in error


def test_minutes_decide_equal_steps(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "EVALUATIONS", 2)
    monkeypatch.setattr(data, "VALIDATION_WINDOWS", 8)
    code, _, error = demo(tmp_path, "--minutes", "0.05", steps=None)
    assert code == 0, error
    found = metrics(tmp_path)
    assert found["settings"]["minutes"] == 0.05
    assert {found["mixers"][mixer]["steps"] for mixer in MIXERS} == {found["settings"]["steps"]}


def test_too_few_minutes_give_one_line(demo, tmp_path):
    code, _, error = demo(tmp_path / "out", "--minutes", "1e-5", steps=None)
    assert (code, error.count("\n")) == (1, 1)
    assert "too short" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    (
        (["--steps", "0"], "at least 1"),
        (["--steps", "many"], "at least 1"),
        (["--minutes", "-1"], "greater than 0"),
        (["--minutes", "nan"], "greater than 0"),
        (["--steps", "3", "--minutes", "1"], "not allowed with"),
        (["--resume", "--fresh"], "not allowed with"),
        (["--ridge", "0"], "greater than 0"),
        (["--ridge", "soft"], "greater than 0"),
        (["--seed", "-1"], "at least 0"),
        (["--speed", "9"], "unrecognized"),
        (["--device", "abacus"], "device abacus"),
        (["--dim", "30", "--heads", "4"], "heads"),
        (["--context", "100000000"], "context"),
    ),
)
def test_wrong_arguments_give_one_line(capsys, tmp_path, wrong, complaint):
    try:
        code = cli.main(["demo", "--out", str(tmp_path / "out"), *wrong])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code != 0
    assert complaint in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unwritable_folder_gives_one_line(small_disk, capsys, tmp_path, monkeypatch):
    """Before a step is timed or made."""

    def nothing(*_):
        raise AssertionError("something was computed")

    monkeypatch.setattr(Trainer, "train_step", nothing)
    (tmp_path / "file").write_text("")
    small_disk.protect()
    for folder, reason in (
        (tmp_path / "file", "Not a directory"),
        (small_disk.folder, "Read-only file system"),
    ):
        for length in ("--steps=9", "--minutes=1"):
            assert cli.main(["demo", "--device", "cpu", length, "--out", str(folder / "out")]) == 1
            error = capsys.readouterr().err
            assert f"{folder / 'out'} cannot be written: {reason}" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "name",
    (
        "model.safetensors",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("run.json", "manifest.json", "metrics.json", "loss.png", "sample.txt")
        ),
    ),
)
def test_a_full_disk_gives_one_line_and_a_run_that_goes_on(name, demo, small_disk, monkeypatch):
    out = small_disk.folder / "out"
    assert demo(out, steps=1)[0] == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.name.endswith(name)}
    with monkeypatch.context() as patch:
        small_disk.fill_at(name, patch)
        code, _, error = demo(out, "--fresh", steps=2)
    assert (code, error.count("\n")) == (1, 1)
    assert error.startswith(f"flashlla demo: {out}") and "No space left on device" in error
    assert {path: path.read_bytes() for path in before} == before and not left_over(out)
    small_disk.empty()
    assert demo(out, "--fresh" if name == "run.json" else "--resume", steps=2)[0] == 0
    assert metrics(out)["settings"]["steps"] == 2


@pytest.mark.parametrize(
    "content",
    (
        "",
        "NaN",
        "[]",
        "{}",
        '{"finished": false, "settings": {"steps": "9"}}',
        pytest.param("[" * 10**5, id="deep"),
    ),
)
def test_a_hostile_state_is_named(content, demo, tmp_path):
    (tmp_path / "run.json").write_text(content)
    code, _, error = demo(tmp_path)
    assert (code, error.count("\n")) == (1, 1)
    assert "run.json is damaged" in error and "--fresh" in error


def test_missing_packages_are_named(capsys, monkeypatch):
    monkeypatch.setattr(cli, "DEMO_NEEDS", ("torch", "no_such_package"))
    assert cli.main(["demo"]) == 1
    assert "needs no_such_package: pip install" in capsys.readouterr().err


def test_version_and_no_command(capsys):
    for arguments, code in ((["--version"], 0), ([], 2), (["dance"], 2)):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == code
    assert flashlla.__version__ in capsys.readouterr().out
