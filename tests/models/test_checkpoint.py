"""Checkpoints: what is loaded is what was saved, and an interrupted save destroys nothing."""

import builtins
import json
import os

import pytest
import torch
from torch.nn import functional as F

from flashlla import models

pytest.importorskip("safetensors")


def train(model, optimizer, generator, steps):
    losses = []
    for _ in range(steps):
        tokens = torch.randint(0, 32, (2, 9), generator=generator)
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() + torch.rand(()).item())  # the global random state counts too
    return losses


def new_run(make_model):
    model = make_model()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2), torch.Generator().manual_seed(4)


@pytest.mark.parametrize("mixer", sorted(models.mixers.ATTENTION_MIXERS))
@pytest.mark.parametrize("tie_embeddings", (True, False))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_model_round_trip(mixer, tie_embeddings, dtype, make_model, tokens, tmp_path):
    model = make_model(mixer, tie_embeddings=tie_embeddings, dtype=dtype)
    models.save_model(model, tmp_path / "new" / "folder")
    loaded = models.load_model(tmp_path / "new" / "folder")
    assert loaded.config == model.config
    assert torch.equal(loaded(tokens), model(tokens))
    assert all(p.requires_grad and p.dtype == dtype for p in loaded.parameters())
    assert json.loads((tmp_path / "new" / "folder" / "config.json").read_text()) == model.config.to_dict()


def test_a_resumed_run_is_the_same_run(make_model, tmp_path):
    model, optimizer, generator = new_run(make_model)
    train(model, optimizer, generator, 4)
    models.save_training_state(tmp_path, model, optimizer, 4, generator=generator)
    expected = train(model, optimizer, generator, 4)

    model, optimizer, generator = new_run(make_model)
    torch.manual_seed(99)
    assert models.load_training_state(tmp_path, model, optimizer, generator=generator) == 4
    assert train(model, optimizer, generator, 4) == expected


@pytest.mark.parametrize("fails", ("replace", "fsync"))
def test_an_interrupted_save_leaves_the_old_checkpoint(fails, make_model, tokens, tmp_path, monkeypatch):
    model, optimizer, _ = new_run(make_model)
    models.save_model(model, tmp_path)
    models.save_training_state(tmp_path, model, optimizer, 1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupt(*_):
        raise KeyboardInterrupt

    other = make_model(seed=1)
    monkeypatch.setattr(os, fails, interrupt)
    with pytest.raises(KeyboardInterrupt):
        models.save_model(other, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        models.save_training_state(tmp_path, other, optimizer, 2)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert torch.equal(models.load_model(tmp_path)(tokens), model(tokens))


@pytest.mark.parametrize("damage", ("cut", "noise", "empty"))
@pytest.mark.parametrize("name", ("model.safetensors", "training.pt"))
def test_a_corrupt_file_is_named(name, damage, make_model, tmp_path):
    model, optimizer, _ = new_run(make_model)
    models.save_model(model, tmp_path)
    models.save_training_state(tmp_path, model, optimizer, 1)
    path = tmp_path / name
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "noise": b"\x80\x02noise" * 99, "empty": b""}[damage])
    with pytest.raises(ValueError, match=f"{name} is corrupt"):
        models.load_model(tmp_path) if name == "model.safetensors" else models.load_training_state(
            tmp_path, model, optimizer
        )


def test_missing_and_foreign_files(make_model, tmp_path):
    import safetensors.torch

    model, optimizer, _ = new_run(make_model)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors does not exist"):
        models.load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"training\.pt does not exist"):
        models.load_training_state(tmp_path, model, optimizer)
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "training.pt")
    with pytest.raises(ValueError, match="was not written by save_model"):
        models.load_model(tmp_path)
    with pytest.raises(ValueError, match="was not written by save_training_state"):
        models.load_training_state(tmp_path, model, optimizer)


def test_weights_that_do_not_fit_their_configuration(make_model, tmp_path):
    import safetensors.torch

    model = make_model()
    config = json.dumps(make_model(dim=16).config.to_dict())
    path = tmp_path / "model.safetensors"
    metadata = {"format": "flashlla.LanguageModel", "config": config}
    safetensors.torch.save_file(model.state_dict(), path, metadata)
    with pytest.raises(ValueError, match="does not fit its own configuration"):
        models.load_model(tmp_path)


def test_a_state_of_another_run_changes_nothing(make_model, tmp_path):
    model, optimizer, generator = new_run(make_model)
    train(model, optimizer, generator, 1)
    models.save_training_state(tmp_path, model, optimizer, 1, generator=generator)
    other = make_model(seed=1)
    before = [p.clone() for p in other.parameters()]
    groups = [{"params": [p]} for p in other.parameters()]
    for message, arguments, options in (
        (
            "saved with a generator and is loaded without one",
            (other, torch.optim.AdamW(other.parameters())),
            {},
        ),
        ("another optimiser", (other, torch.optim.AdamW(groups)), {"generator": generator}),
        ("dim=32 there, 16 here", (make_model(dim=16), optimizer), {"generator": generator}),
    ):
        random_state = torch.get_rng_state()
        with pytest.raises(ValueError, match=message):
            models.load_training_state(tmp_path, *arguments, **options)
        assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_without_safetensors_the_remedy_is_named(make_model, tmp_path, monkeypatch):
    load = builtins.__import__

    def without_safetensors(name, *args, **kwargs):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return load(name, *args, **kwargs)

    model = make_model()
    monkeypatch.setattr(builtins, "__import__", without_safetensors)
    with pytest.raises(ImportError, match=r"flashlla\[experiments\]"):
        models.save_model(model, tmp_path)
