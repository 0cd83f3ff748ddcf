"""The loop on one process: what a step is, and what stops it."""

import json
import math
import sys
import types

import pytest
import torch
from problems import batch, configure, loss, losses, make_model, make_trainer
from torch.nn import functional as F

from flashlla import models
from flashlla.models import training


def test_a_step_is_that_of_a_plain_loop(tmp_path):
    """Bit for bit: the loop adds nothing to PyTorch's own step, with one micro-batch and without clipping."""
    config = configure(5, micro_batches=1, clip_norm=None, ema_decay=None)
    trainer = make_trainer(tmp_path, config=config)
    trainer.fit()
    model = make_model()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for step in range(5):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * training.learning_rate_factor(config.schedule, step, 5)
        loss(model, batch(step, 0)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(t, trainer.weights()[name]) for name, t in model.state_dict().items())


def test_accumulation_equals_a_larger_batch(tmp_path):
    def joined(step, rank):
        return tuple(torch.cat(parts) for parts in zip(*(batch(step, i) for i in range(4)), strict=True))

    runs = {}
    for name, source, count in (("many", batch, 4), ("one", joined, 1)):
        model = make_model(dtype=torch.float64)
        runs[name] = make_trainer(
            tmp_path / name, model, configure(micro_batches=count, clip_norm=0.1), batch=source
        )
        runs[name].fit()
    torch.testing.assert_close(runs["many"].weights(), runs["one"].weights(), rtol=0, atol=1e-12)
    assert losses(tmp_path / "many") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)


def test_every_step_is_logged_and_the_loss_falls(tmp_path):
    trainer = make_trainer(tmp_path, config=configure(23, log_every=5))
    assert trainer.fit()
    records = training.read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 24))
    assert records[-1]["loss"] < records[0]["loss"] - 0.5
    assert all(record["gradient_norm"] > 0 and record["seconds"] > 0 for record in records)
    assert records[0]["learning_rate"] == pytest.approx(1e-2)


def test_lines_of_the_log_are_handed_on_when_they_are_written(tmp_path):
    handed = []

    def on_log(records):
        handed.append(records)
        assert training.read_metrics(tmp_path / "metrics.jsonl") == [r for lines in handed for r in lines]

    make_trainer(
        tmp_path,
        config=configure(5, log_every=2, evaluate_every=4),
        evaluate=lambda model: {"validation": 2.5},
        on_log=on_log,
    ).fit()
    kinds = [[(r["step"], "validation" in r) for r in records] for records in handed]
    of_steps = [[(1, False), (2, False)], [(3, False), (4, False)], [(5, False)]]
    assert kinds == [*of_steps[:2], [(4, True)], of_steps[2], [(5, True)]]


@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_a_loss_that_is_no_number_stops_the_run(value, tmp_path):
    def broken(model, tensors):
        return loss(model, tensors) * (
            value if trainer.step == 5 and torch.equal(tensors[0], batch(5, 1)[0]) else 1
        )

    trainer = make_trainer(tmp_path, config=configure(20, log_every=4, checkpoint_every=4), loss=broken)
    with pytest.raises(training.NonFiniteError) as error:
        trainer.fit()
    seed = training.batch_seed(0, 5, 1)
    assert f"the loss is {value} in step 5, micro-batch 1 (batch seed {seed})" in str(error.value)
    assert f"the last good checkpoint is {tmp_path / 'checkpoints' / 'step-00000004'}" in str(error.value)
    logged = [record["step"] for record in training.read_metrics(tmp_path / "metrics.jsonl")]
    assert logged[:4] == [1, 2, 3, 4] and logged[4:] in ([], [5])  # the weights may have been refused first


def test_no_checkpoint_stands_behind_a_nan(tmp_path):
    def broken(model, tensors):
        return loss(model, tensors) * (math.nan if trainer.step == 2 else 1)

    trainer = make_trainer(tmp_path, config=configure(20, log_every=100, checkpoint_every=3), loss=broken)
    with pytest.raises(training.NonFiniteError, match=r"in step 2.*there is no checkpoint yet"):
        trainer.fit()
    assert trainer.checkpoints.all() == []


def test_an_infinite_gradient_stops_the_run(tmp_path):
    def broken(model, tensors):
        value = loss(model, tensors)
        value.register_hook(lambda g: g * math.inf)
        return value

    with pytest.raises(
        training.NonFiniteError, match=r"gradient norm is (inf|nan) in step 0 \(batch seeds \d+, \d+"
    ):
        make_trainer(tmp_path, loss=broken).fit()


def test_randomness_follows_seed_and_step_alone(tmp_path):
    def noisy(model, tensors):
        return loss(model, tensors) * (1 + 0.1 * torch.randn(()))

    for name, state in (("a", 1), ("b", 2)):
        trainer = make_trainer(tmp_path / name, loss=noisy)
        torch.manual_seed(state)
        trainer.fit()
    make_trainer(tmp_path / "c", config=configure(seed=1), loss=noisy).fit()
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")


def test_bfloat16_trains_close_to_float32(tmp_path):
    for precision in ("float32", "bfloat16"):
        make_trainer(tmp_path / precision, config=configure(20, precision=precision)).fit()
    wide, narrow = losses(tmp_path / "float32"), losses(tmp_path / "bfloat16")
    assert wide != narrow
    assert narrow == pytest.approx(wide, abs=0.05)


def test_compiled_is_as_eager(tmp_path):
    for name in (False, "aot_eager"):
        make_trainer(tmp_path / str(name), config=configure(3, compile=name)).fit()
    assert losses(tmp_path / "aot_eager") == pytest.approx(losses(tmp_path / "False"), rel=1e-5)


@pytest.mark.slow
def test_compiled_by_inductor(tmp_path):
    for name in (False, True):
        make_trainer(tmp_path / str(name), config=configure(3, compile=name)).fit()
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-4)


def test_a_large_ridge_trains_as_softmax(tmp_path):
    """Same seed: with ridge 1e6 the curve is that of softmax attention; another seed changes far more."""
    options = {"config": configure(60, schedule=training.ScheduleConfig(warmup_steps=10))}
    make_trainer(tmp_path / "softmax", make_model("softmax"), **options).fit()
    make_trainer(tmp_path / "lla", make_model(mixer_options={"ridge": 1e6}), **options).fit()
    make_trainer(tmp_path / "other", make_model("softmax", seed=1), **options).fit()
    softmax, lla, other = (torch.tensor(losses(tmp_path / name)) for name in ("softmax", "lla", "other"))
    assert softmax[-10:].mean() < softmax[0] - 1  # it has learned
    assert (lla - softmax).abs().max() < 0.2 * (other - softmax).abs().max()
    assert (lla - softmax)[-10:].mean().abs() < 0.01


def test_any_model_and_nested_batches(tmp_path):
    """Nothing in the loop knows of tokens."""

    def source(step, rank):
        x = torch.randn(8, 3, generator=training.batch_generator(0, step, rank))
        return {"inputs": [x], "scale": 2.0, "targets": x.sum(1, keepdim=True)}

    def squares(model, data):
        return F.mse_loss(data["scale"] * model(data["inputs"][0]), data["targets"])

    torch.manual_seed(0)
    make_trainer(tmp_path, torch.nn.Linear(3, 1), configure(60, "adamw"), batch=source, loss=squares).fit()
    found = losses(tmp_path)  # of eight numbers each, so that single ones say little
    assert sum(found[-10:]) < 0.7 * sum(found[:10])


def test_wrong_arguments(tmp_path):
    with pytest.raises(TypeError, match="loss must return a 0-dim Tensor"):
        make_trainer(tmp_path, loss=lambda model, data: model(data[0])).fit()
    with pytest.raises(ValueError, match="the model is on meta, this process works on cpu; move it"):
        with torch.device("meta"):
            model = make_model()
        make_trainer(tmp_path, model, world=training.World.join(device="cpu"))


def test_weights_are_exported(tmp_path):
    pytest.importorskip("safetensors")
    trainer = make_trainer(tmp_path)
    trainer.fit()
    model = make_model()
    models.save_model(model, tmp_path / "model", weights=trainer.weights(averaged=True))
    loaded = models.load_model(tmp_path / "model")
    assert all(
        torch.equal(t, trainer.weights(averaged=True)[name]) for name, t in loaded.state_dict().items()
    )
    with pytest.raises(ValueError, match="other names or shapes"):
        models.save_model(make_model(dim=64), tmp_path / "model", weights=trainer.weights())


# ---- metrics ----------------------------------------------------------------------------------------


def test_a_log_is_mended(tmp_path):
    log = training.MetricsLog(tmp_path / "metrics.jsonl")
    log.cut(3)  # nothing there yet
    log.append({"step": step, "loss": 1.0} for step in range(1, 6))
    with open(log.path, "a") as file:
        file.write('{"step": 6, "lo')
    assert [record["step"] for record in training.read_metrics(log.path)] == [1, 2, 3, 4, 5]
    log.cut(5)
    log.append([{"step": 6, "loss": 0.5}])
    assert [record["step"] for record in training.read_metrics(log.path)] == [1, 2, 3, 4, 5, 6]
    log.cut(2)
    assert [record["step"] for record in training.read_metrics(log.path)] == [1, 2]
    with pytest.raises(ValueError, match="JSON"):
        log.append([{"step": 3, "loss": math.nan}])
    assert json.loads(log.path.read_text().splitlines()[-1])["step"] == 2


def test_tensorboard(tmp_path, monkeypatch):
    written = []
    writer = types.SimpleNamespace(add_scalar=lambda *entry: written.append(entry), flush=lambda: None)
    module = types.SimpleNamespace(SummaryWriter=lambda folder: writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    make_trainer(tmp_path, config=configure(2), tensorboard=True).fit()
    assert [(name, step) for name, _, step in written if name == "loss"] == [("loss", 1), ("loss", 2)]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        make_trainer(tmp_path, tensorboard=True)
