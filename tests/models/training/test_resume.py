"""A run that was stopped, killed or damaged goes on as if it had not been."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from problems import configure, make_model, make_trainer

from flashlla.models import training
from flashlla.models.training import checkpoints

HERE = Path(__file__).parent
KILLED_RUN = {"steps": 80, "checkpoint_every": 3, "log_every": 1, "evaluate_every": 7}


def run(folder, *, stop_after=None, model=None, **options):
    trainer = make_trainer(folder, model, configure(**{"steps": 12, "checkpoint_every": 3, **options}))
    trainer.fit(should_stop=lambda: stop_after is not None and trainer.step >= stop_after)
    return trainer


def everything(trainer):
    return {name: t.clone() for name, t in trainer._tensors().items()}


def assert_same(ours, theirs):
    ours, theirs = everything(ours), everything(theirs)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def steps_logged(folder):
    return [r["step"] for r in training.read_metrics(folder / "metrics.jsonl") if "loss" in r]


@pytest.mark.parametrize(("optimizer", "stop_after"), (("adamw", 1), ("adamw", 8), ("muon", 3)))
def test_resumed_is_as_uninterrupted(optimizer, stop_after, tmp_path):
    whole = run(tmp_path / "whole", optimizer=optimizer)
    first = run(tmp_path / "parts", stop_after=stop_after, optimizer=optimizer)
    assert stop_after <= first.step < 12
    second = run(
        tmp_path / "parts", optimizer=optimizer, model=make_model(seed=5)
    )  # the start does not matter
    assert_same(second, whole)
    assert steps_logged(tmp_path / "parts") == list(range(1, 13))
    losses = [
        [r["loss"] for r in training.read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("optimizer", ("adamw", "muon"))
def test_a_parameter_without_a_gradient_is_resumed_without_a_state(optimizer, tmp_path):
    """A head that only another arm of an experiment trains, say."""

    def fit(folder, **options):
        model = make_model()
        model.unused = torch.nn.Parameter(torch.ones(3))
        return run(folder, model=model, optimizer=optimizer, **options)

    whole = fit(tmp_path / "whole")
    fit(tmp_path / "parts", stop_after=5)
    second = fit(tmp_path / "parts")
    assert_same(second, whole)
    assert "model.unused" in everything(second)
    assert not [name for name in everything(second) if name.startswith("optimizer.unused")]


def test_a_finished_run_stays_and_can_be_prolonged(tmp_path):
    finished = run(tmp_path)
    assert_same(run(tmp_path), finished)
    assert run(tmp_path, steps=15).step == 15
    assert steps_logged(tmp_path) == list(range(1, 16))


def test_kill_9_at_random_steps(tmp_path):
    """The process dies between two instructions, several times, in steps and in the middle of saves."""
    random.seed(0)
    command = [sys.executable, "-W", "ignore", str(HERE / "test_resume.py"), str(tmp_path / "killed")]
    log = tmp_path / "killed" / "metrics.jsonl"
    reached = 0
    for _ in range(3):
        process = subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE
        )
        target, until = reached + random.randint(6, 18), time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until and lines(log) < target:
            time.sleep(0.0005)
        time.sleep(random.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        error = process.communicate()[1]
        assert process.returncode == -signal.SIGKILL, error.decode()
        reached = lines(log)
    resumed = run(tmp_path / "killed", **KILLED_RUN)
    assert_same(resumed, run(tmp_path / "whole", **KILLED_RUN))
    assert steps_logged(tmp_path / "killed") == list(range(1, KILLED_RUN["steps"] + 1))
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))  # what was half written is gone


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


# ---- checkpoints ------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path):
    """A run that stopped after 9 of its 12 steps; checkpoints of steps 6 and 9 are there."""
    run(tmp_path / "run", stop_after=9)
    found = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert found == {"step-00000006", "step-00000009"}
    return tmp_path / "run"


def damage(path, how):
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flipped":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


@pytest.mark.parametrize("how", ("gone", "cut", "flipped"))
@pytest.mark.parametrize("name", ("__0_0.distcp", ".metadata", "manifest.json"))
def test_a_corrupt_checkpoint_is_named_and_the_one_before_is_used(name, how, stopped, tmp_path):
    damage(stopped / "checkpoints" / "step-00000009" / name, how)
    with pytest.warns(
        UserWarning, match=rf"step-00000009 is corrupt.*{name}.*using the checkpoint before it"
    ):
        resumed = run(stopped)
    assert_same(resumed, run(tmp_path / "whole"))
    assert steps_logged(stopped) == list(range(1, 13))
    assert (stopped / "checkpoints" / "step-00000009.corrupt").is_dir()


@pytest.mark.filterwarnings("ignore:.*using the checkpoint before it")
def test_without_a_good_checkpoint_the_run_does_not_start(stopped):
    for step in (6, 9):
        damage(stopped / "checkpoints" / f"step-{step:08}" / "__0_0.distcp", "cut")
    with pytest.raises(training.CheckpointError, match=r"every checkpoint in .* is corrupt"):
        run(stopped)


@pytest.mark.parametrize("fails", ("replace", "fsync"))
def test_an_interrupted_save_leaves_the_old_checkpoints(fails, stopped, tmp_path, monkeypatch):
    trainer = make_trainer(stopped, config=configure(12))
    trainer.resume()
    trainer.train_step()

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, fails, interrupt)
        with pytest.raises((KeyboardInterrupt, OSError)):
            trainer.save()
    assert [p.name for p in trainer.checkpoints.all()] == ["step-00000006", "step-00000009"]
    assert_same(run(stopped), run(tmp_path / "whole"))


def test_another_run_is_refused(stopped):
    with pytest.raises(
        training.CheckpointError, match=r"step-00000009 is of another run: seed is 0 there, 1 here"
    ):
        run(stopped, seed=1)
    with pytest.raises(training.CheckpointError, match="optimizer is adamw there, muon here"):
        run(stopped, optimizer="muon")
    with pytest.raises(training.CheckpointError, match=r"step-00000009 does not fit this run: .*[Ss]ize"):
        run(stopped, model=make_model(dim=64))
    with pytest.raises(training.CheckpointError, match=r"does not fit this run: Missing key .*head"):
        run(stopped, model=make_model(tie_embeddings=False))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_an_index_cannot_run_code(stopped, tmp_path):
    """The digests fit, as those of a checkpoint from elsewhere would."""
    path = stopped / "checkpoints" / "step-00000009"
    (path / ".metadata").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    forge(path, ".metadata")
    with pytest.raises(training.CheckpointError, match="which no checkpoint needs"):
        run(stopped)
    assert not (tmp_path / "exploded").exists()


def test_an_index_cannot_ask_for_unpickling(stopped):
    """An entry that is no tensor would be unpickled by PyTorch's planner."""
    path = stopped / "checkpoints" / "step-00000009"
    metadata = pickle.loads((path / ".metadata").read_bytes())
    name = next(iter(metadata.state_dict_metadata))
    metadata.state_dict_metadata[name] = torch.distributed.checkpoint.metadata.BytesStorageMetadata()
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    forge(path, ".metadata")
    with pytest.raises(training.CheckpointError, match="BytesStorageMetadata, which no checkpoint needs"):
        run(stopped)


def forge(path, name):
    content = json.loads((path / "manifest.json").read_text())
    content["files"][name] = checkpoints._digest(path / name)
    del content["digest"]
    checkpoints._write_manifest(path, content)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), **KILLED_RUN)
