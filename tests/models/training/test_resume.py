"""A run that was stopped, killed or damaged goes on as if it had not been."""

import os

import pytest
import torch
from problems import configure, losses, make_model, make_trainer, train
from processes import kill_and_go_on, left_over, seconds_of

from flashlla.models import training


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
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@pytest.mark.parametrize("optimizer", ("adamw", "muon"))
def test_a_parameter_without_a_gradient_is_resumed_without_a_state(optimizer, tmp_path):
    """A head that only another arm of an experiment trains, say."""

    def fit(folder, **options):
        model = make_model()
        model.unused = torch.nn.Parameter(torch.arange(6.0).view(2, 3).t())  # not contiguous either
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


@pytest.mark.parametrize("moments", (4, pytest.param(50, marks=pytest.mark.slow)))
def test_kill_9_at_random_moments(moments, tmp_path):
    """The process dies between two instructions, in steps and in the middle of saves, and others go on."""
    options = {"steps": 10 * moments, "checkpoint_every": 3, "log_every": 1, "evaluate_every": 7}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    duration = seconds_of(train, whole, options)

    def where():
        return "save" if list(killed.glob("checkpoints/.*")) else "work"

    found = kill_and_go_on(train, killed, options, moments=moments, duration=duration, seed=0, where=where)
    print(f"{dict(found)}, and undisturbed {duration:.1f} s")
    assert_same(run(killed, **options), run(whole, **options))
    assert steps_logged(killed) == list(range(1, options["steps"] + 1))
    assert losses(killed) == losses(whole)
    assert not left_over(killed)


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


def test_a_full_disk_leaves_the_old_checkpoints(small_disk, tmp_path):
    folder = small_disk.folder / "run"
    run(folder, stop_after=9)
    trainer = make_trainer(folder, config=configure(12))
    trainer.resume()
    trainer.train_step()
    trainer._read()
    for spare in (0, 4096, 60000, 120000):  # for nothing, the first block, a part of the shard, most of it
        small_disk.fill(spare)
        with pytest.raises(OSError, match=r"step-00000010 cannot be written: No space left on device; make"):
            trainer.save()
        assert [p.name for p in trainer.checkpoints.all()] == ["step-00000006", "step-00000009"]
        assert not left_over(folder)
    small_disk.empty()
    assert_same(run(folder), run(tmp_path / "whole"))


def test_a_line_that_a_full_disk_cut_short_is_dropped(small_disk):
    log = training.MetricsLog(small_disk.folder / "metrics.jsonl")
    log.append([{"step": 1}])
    small_disk.fill(8192)
    with pytest.raises(
        OSError, match=r"metrics\.jsonl cannot be written: No space left on device; make room"
    ):
        log.append([{"step": 2, "text": "long" * 8192}])
    assert log.path.stat().st_size > len('{"step": 1}\n')
    small_disk.empty()
    log.cut(2)
    log.append([{"step": 2}])
    assert training.read_metrics(log.path) == [{"step": 1}, {"step": 2}]


def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(small_disk, tmp_path):
    (tmp_path / "file").touch()
    small_disk.fill()
    for folder, reason in ((tmp_path / "file" / "run", "Not a directory"), (small_disk.folder, "No space")):
        trainer = make_trainer(folder, config=configure(12))
        with pytest.raises(OSError, match=rf"{folder} cannot be written: {reason}.*; make room"):
            trainer.fit()
        assert trainer.step == 0


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
