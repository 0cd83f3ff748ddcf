"""Models on disk: what is loaded is what was saved, and an interrupted save destroys nothing."""

import builtins
import json
import os

import pytest
import torch

from flashlla import models
from flashlla.models import diffusion

pytest.importorskip("safetensors")


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


@pytest.mark.parametrize(
    "model",
    (
        lambda sizes: models.Encoder(models.EncoderConfig(vocab_size=9, outputs=3, **sizes)),
        lambda sizes: models.PolicyModel(models.PolicyConfig(vocab_size=9, actions=3, **sizes)),
        lambda sizes: diffusion.TrajectoryTransformer(diffusion.TrajectoryConfig(channels=2, **sizes)),
        lambda sizes: diffusion.VideoTransformer(diffusion.VideoConfig(channels=2, **sizes)),
    ),
    ids=("encoder", "policy", "trajectory", "video"),
)
def test_every_kind_of_model_comes_back_as_what_it_was(model, tmp_path):
    model = model({"dim": 24, "depth": 2, "heads": 4, "mixer": ("lla", "gla")})
    models.save_model(model, tmp_path)
    loaded = models.load_model(tmp_path)
    assert type(loaded) is type(model) and loaded.config == model.config
    for name, t in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], t)
    with pytest.raises(TypeError, match=r"model is a Linear; one of flashlla\.LanguageModel, "):
        models.save_model(torch.nn.Linear(2, 2), tmp_path)


@pytest.mark.parametrize("fails", ("replace", "fsync"))
def test_an_interrupted_save_leaves_the_old_model(fails, make_model, tokens, tmp_path, monkeypatch):
    model = make_model()
    models.save_model(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupt(*_):
        raise KeyboardInterrupt

    other = make_model(seed=1)
    monkeypatch.setattr(os, fails, interrupt)
    with pytest.raises(KeyboardInterrupt):
        models.save_model(other, tmp_path)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert torch.equal(models.load_model(tmp_path)(tokens), model(tokens))


def test_a_full_disk_leaves_the_old_model(make_model, small_disk):
    folder = small_disk.folder / "model"
    models.save_model(make_model(), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for spare in (0, 4096, 20000):  # for nothing, a first block, a part of the weights
        small_disk.fill(spare)
        with pytest.raises(OSError, match=rf"{folder}.* cannot be written: .*No space left.*; make"):
            models.save_model(make_model(seed=1), folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    small_disk.empty()
    models.save_model(make_model(seed=1), folder)


def test_a_folder_that_cannot_be_written_is_named(make_model, small_disk, tmp_path):
    (tmp_path / "file").touch()
    small_disk.protect()
    for folder, reason in ((tmp_path / "file", "Not a directory"), (small_disk.folder, "Read-only file")):
        with pytest.raises(OSError, match=rf"{folder}/model cannot be written: {reason}.*; make"):
            models.save_model(make_model(), folder / "model")


@pytest.mark.parametrize("damage", ("cut", "noise", "empty"))
def test_a_corrupt_file_is_named(damage, make_model, tmp_path):
    models.save_model(make_model(), tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "noise": b"\x80\x02noise" * 99, "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"model\.safetensors is corrupt"):
        models.load_model(tmp_path)


def test_missing_and_foreign_files(tmp_path):
    import safetensors.torch

    with pytest.raises(FileNotFoundError, match=r"model\.safetensors does not exist"):
        models.load_model(tmp_path)
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="was not written by save_model"):
        models.load_model(tmp_path)


def test_weights_that_do_not_fit_their_configuration(make_model, tmp_path):
    import safetensors.torch

    model = make_model()
    config = json.dumps(make_model(dim=16).config.to_dict())
    path = tmp_path / "model.safetensors"
    metadata = {"format": "flashlla.LanguageModel", "config": config}
    safetensors.torch.save_file(model.state_dict(), path, metadata)
    with pytest.raises(ValueError, match="does not fit its own configuration"):
        models.load_model(tmp_path)


@pytest.mark.parametrize(
    ("config", "complaint"),
    (
        ("[1]", "has a configuration that no model has"),
        ("{", "has a configuration that no model has"),
        ("{}", "has a configuration that no model has: missing keys"),
        (10**9, "does not fit its own configuration: depth=1000000000"),
    ),
)
def test_configurations_that_no_model_has(config, complaint, make_model, tmp_path):
    import safetensors.torch

    model = make_model()
    if not isinstance(config, str):  # a depth
        config = json.dumps({**model.config.to_dict(), "depth": config})
    metadata = {"format": "flashlla.LanguageModel", "config": config}
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors", metadata)
    with pytest.raises(ValueError, match=rf"model\.safetensors {complaint}"):
        models.load_model(tmp_path)


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
