"""Several gloo processes, started by ``torchrun``, equal one: weights, averages, means of gradients, losses.

In float64 to rounding. In float32 the means of gradients are held to a tolerance; AdamW divides by their
size, so that weights whose gradient is all but zero may differ by a share of the learning rate.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import CASES, LAYERS, ON_FOUR, RESUMED, dtypes_of, train
from problems import losses, make_model
from torch import nn

from flashlla.models import training
from flashlla.models.training.context_parallel import shard_batch, split_context, zigzag_shard, zigzag_unshard
from flashlla.models.training.tensor_parallel import split_heads

# One worker: the processes are started once.
pytestmark = pytest.mark.xdist_group("training-parallel")

HERE = Path(__file__).parent
FLOAT64 = 1e-12
GRADIENTS, LOSSES, WEIGHTS = 1e-5, 1e-5, 1e-3  # float32; the learning rate is 1e-2


def torchrun(processes, folder, names):
    command = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [str(HERE / "cases.py"), str(folder), *names]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def on_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    for name in RESUMED:
        train(name, folder / name / "from-one", torch.float64, steps=2)
        good = folder / name / "from-one" / "checkpoints" / "step-00000002"
        damaged = shutil.copytree(good, good.with_name("step-00000003"))
        (damaged / "__0_0.distcp").write_bytes(b"")
    return torchrun(2, folder, CASES)


@pytest.fixture(scope="module")
def on_four(tmp_path_factory):
    return torchrun(4, tmp_path_factory.mktemp("four"), ON_FOUR)


@pytest.fixture(scope="module")
def on_one(tmp_path_factory):
    """The folder and the weights of a run on one process, made once for all cases that share it."""
    runs = {}

    def find(name, dtype):
        layer, _, changes = {**CASES, **ON_FOUR}[name]
        key = (layer, dtype, *sorted(changes.items()))
        if key not in runs:
            folder = tmp_path_factory.mktemp("one")
            runs[key] = folder, train(name, folder, dtype)
        return runs[key]

    return find


def largest_difference(ours, theirs, kinds=None):
    names = [name for name in theirs if kinds is None or name.rsplit(".", 1)[-1] in kinds]
    assert ours.keys() == theirs.keys() and names
    return max((ours[name] - theirs[name]).abs().max().item() for name in names)


def distance(ours, theirs, kind):
    differences = [(ours[n] - t).flatten() for n, t in theirs.items() if n.rsplit(".", 1)[-1] == kind]
    return torch.cat(differences).norm().item()


def validation_losses(folder):
    records = training.read_metrics(folder / "metrics.jsonl")
    return [record["validation_loss"] for record in records if "validation_loss" in record]


def check(name, dtype, many, on_one):
    folder, expected = on_one(name, dtype)
    found = torch.load(many / name / str(dtype) / "weights-4.pt")
    loss_error = max(
        abs(a - b) for a, b in zip(losses(many / name / str(dtype)), losses(folder), strict=True)
    )
    if dtype == torch.float64:
        assert largest_difference(found, expected) <= FLOAT64
        assert loss_error <= 1e-6  # losses are read in float32
        assert validation_losses(many / name / str(dtype)) == pytest.approx(
            validation_losses(folder), abs=1e-12
        )
    elif "bfloat16" in name:  # within half of what bfloat16 itself does to the gradients
        rounding = distance(on_one("ddp", dtype)[1], expected, "exp_avg")
        assert distance(found, expected, "exp_avg") <= 0.5 * rounding
        assert loss_error <= 2**-8
    else:
        assert largest_difference(found, expected, ("exp_avg", "exp_avg_sq", "momentum")) <= GRADIENTS
        assert largest_difference(found, expected) <= WEIGHTS
        assert loss_error <= LOSSES


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name in CASES for dtype in dtypes_of(name)])
def test_two_processes_equal_one(name, dtype, on_two, on_one):
    check(name, dtype, on_two, on_one)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name in ON_FOUR for dtype in dtypes_of(name)])
def test_four_processes_equal_one(name, dtype, on_four, on_one):
    check(name, dtype, on_four, on_one)


@pytest.mark.parametrize("name", RESUMED)
def test_one_process_goes_on_as_two(name, on_two, on_one):
    """From the last good checkpoint: all processes agree that the newest is damaged."""
    assert (on_two / name / "from-one" / "checkpoints" / "step-00000003.corrupt").is_dir()
    found = torch.load(on_two / name / "from-one" / "weights-4.pt")
    assert largest_difference(found, on_one(name, torch.float64)[1]) <= FLOAT64


@pytest.mark.parametrize("name", RESUMED)
def test_two_processes_go_on_as_one(name, on_two, on_one):
    found = train(name, on_two / name / "to-one", torch.float64)
    assert largest_difference(found, on_one(name, torch.float64)[1]) <= FLOAT64
    assert len(losses(on_two / name / "to-one")) == 4


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_on_two_is_as_uninterrupted(name, on_two):
    """Bit for bit."""
    found, expected = (
        torch.load(on_two / name / run / "weights-4.pt") for run in ("stopped", "torch.float64")
    )
    assert all(torch.equal(found[entry], t) for entry, t in expected.items())


def test_a_nan_in_one_process_stops_all(on_two):
    first, second = ((on_two / f"error-{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    assert f"the loss is nan in step 1, micro-batch 1 (batch seed {training.batch_seed(0, 1, 1)})" in first


# ---- without processes ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", (1, 2, 3))
def test_zigzag_is_a_partition_with_equal_work(size, generator):
    t = torch.randn(2, 12 * size, 3, generator=generator)
    shards = [zigzag_shard(t, rank, size) for rank in range(size)]
    if size > 1:
        assert torch.equal(zigzag_unshard(shards), t)
    positions = [zigzag_shard(torch.arange(12 * size), rank, size, dim=0) for rank in range(size)]
    assert len({int((p + 1).sum()) for p in positions}) == 1  # keys that the rows of a process see
    batch = {"tokens": t, "more": (t,)}
    assert torch.equal(shard_batch(batch, size - 1, size)["more"][0], shards[-1])


def test_what_cannot_be_shared_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"shape \(2, 6\); for context=2 dimension 1 must be the sequence"):
        zigzag_shard(torch.zeros(2, 6), 0, 2)
    with pytest.raises(NotImplementedError, match=r"0 \(MultiheadAttention\) mixes rows in its own way"):
        split_context(nn.Sequential(nn.MultiheadAttention(8, 2)), None)
    recurrence = nn.Linear(3, 3)
    recurrence.make_state = lambda *_: None  # what every token mixer has
    with pytest.raises(NotImplementedError, match=r"0 \(Linear\) mixes rows in its own way"):
        split_context(nn.Sequential(recurrence), None)
    with pytest.raises(NotImplementedError, match=r"no attention layer of flashlla\.nn"):
        split_context(nn.Linear(3, 3), None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes are no multiple of tensor"):
        training.World.join(training.ParallelConfig(tensor=4), "cpu")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="needs strategy='fsdp'"):
        training.World.join(training.ParallelConfig(tensor=2), "cpu")


class Mesh:
    @staticmethod
    def size():
        return 4


def test_heads_must_divide():
    with pytest.raises(
        ValueError, match=r"blocks\.0\.mixer\.attention: kv_heads 2 is no multiple of tensor=4"
    ):
        split_heads(make_model(**LAYERS["lla"]), Mesh())
    with pytest.raises(ValueError, match="no attention layer"):
        split_heads(nn.Linear(3, 3), Mesh())


def test_micro_batches_must_divide(monkeypatch, tmp_path):
    world = training.World.join(device="cpu")
    monkeypatch.setattr(world, "size_of", lambda dimension: 3)
    with pytest.raises(ValueError, match="micro_batches=2 is no multiple of 3 data-parallel processes"):
        training.Trainer(
            make_model(), None, None, training.TrainerConfig(1, micro_batches=2), tmp_path, world=world
        )
