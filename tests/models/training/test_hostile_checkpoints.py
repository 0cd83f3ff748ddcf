"""Checkpoints from strangers, with digests that fit: refused with one error, and before they take memory."""

import io
import json
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from problems import configure, make_trainer, resume
from processes import outcomes

from flashlla._files import replace_file
from flashlla.models.training import checkpoints

HUGE, LONG = 10**12, 10**30
NAME = "model.embedding.weight"  # of a tensor
DAMAGED, NOT_ALL = "manifest.json is damaged", "manifest.json has not all"
STEP, SHARD = "step-00000001", "__0_0.distcp"


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def manifest(change):
    """What changes the manifest of a checkpoint, ``change(content)``; its digest fits again."""

    def apply(folder):
        content = json.loads((folder / "manifest.json").read_text())
        del content["digest"]
        change(content)
        digest = checkpoints._digest_of_json(content)
        (folder / "manifest.json").write_text(json.dumps({"digest": digest, **content}))

    return apply


def text(words):
    """What writes something else in place of the manifest."""
    return lambda folder: (folder / "manifest.json").write_text(words)


def info(**changes):
    return manifest(lambda content: content["info"].update(changes))


def tensor(**changes):
    return manifest(lambda content: content["tensors"][NAME].update(changes))


def chunks(*places):
    """Chunks of a tensor, ``(offsets, sizes)``, all with the bytes of the first."""

    def change(content):
        entry = content["tensors"][NAME]
        entry["chunks"] = [{**entry["chunks"][0], "offsets": at, "sizes": sizes} for at, sizes in places]

    return manifest(change)


def chunk(**changes):
    return manifest(lambda content: content["tensors"][NAME]["chunks"][0].update(changes))


def file(name, replace):
    """What puts something else in the place of a file, ``replace(path)``, with the digest that it has."""

    def apply(folder):
        path = folder / name
        data = path.read_bytes()
        path.unlink()
        content = replace(path, data)
        if content is None:
            return
        path.write_bytes(content)
        digest = checkpoints._digest(path)
        manifest(lambda content: content["files"].update({name: digest}))(folder)

    return apply


def archive(data, compression=zipfile.ZIP_STORED):
    """What changes the record of a tensor's numbers."""

    def apply(folder):
        content = json.loads((folder / "manifest.json").read_text())
        place = content["tensors"][NAME]["chunks"][0]
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", compression) as records:
            records.writestr("archive/data/0", data)
        shard = folder / place["file"]
        begin = shard.stat().st_size
        shard.write_bytes(shard.read_bytes() + made.getvalue())
        digest = checkpoints._digest(shard)
        chunk(begin=begin, length=len(made.getvalue()))(folder)
        manifest(lambda content: content["files"].update({place["file"]: digest}))(folder)

    return apply


def nested(depth):
    return "[" * depth + "]" * depth


# name: what changes the folder of a checkpoint, and what is said
CASES = {
    "whole": (lambda folder: None, "accepted"),
    "index of PyTorch": (
        file(".metadata", lambda path, data: pickle.dumps(Bomb())),
        "accepted",
    ),  # never read
    "shard a pickle": (
        file(SHARD, lambda path, data: pickle.dumps(Bomb())),
        "does not fit this run: .*too short",
    ),
    "shard empty": (file(SHARD, lambda path, data: b""), "does not fit this run: .*too short"),
    "shard noise": (file(SHARD, lambda path, data: bytes(len(data))), "does not fit this run: .*zip"),
    "shard a pipe": (file(SHARD, lambda path, data: os.mkfifo(path)), f"{SHARD} is no regular file"),
    "shard a folder": (file(SHARD, lambda path, data: os.mkdir(path)), f"{SHARD} is no regular file"),
    "shard a link": (
        file(SHARD, lambda path, data: os.symlink("/dev/zero", path)),
        f"{SHARD} is no regular file",
    ),
    "shard missing": (file(SHARD, lambda path, data: None), f"{SHARD} is missing"),
    "manifest a pipe": (file("manifest.json", lambda path, data: os.mkfifo(path)), "no regular file"),
    "manifest a folder": (file("manifest.json", lambda path, data: os.mkdir(path)), "no regular file"),
    "manifest zeros": (
        file("manifest.json", lambda path, data: os.symlink("/dev/zero", path)),
        "no regular file",
    ),
    "manifest missing": (file("manifest.json", lambda path, data: None), r"manifest\.json is missing"),
    "manifest empty": (text(""), DAMAGED),
    "manifest a list": (text("[]"), DAMAGED),
    "manifest a number": (text("NaN"), DAMAGED),
    "manifest of deep JSON": (text(nested(10**5)), DAMAGED),
    "manifest of another format": (manifest(lambda content: content.update(format=2)), "has format 2"),
    "no files": (manifest(lambda content: content.update(files=[SHARD])), NOT_ALL),
    "no info": (manifest(lambda content: content.update(info=None)), NOT_ALL),
    "no index": (manifest(lambda content: content.pop("tensors")), NOT_ALL),
    "file above": (manifest(lambda content: content["files"].update({"../x": ""})), "outside the checkpoint"),
    "file anywhere": (manifest(lambda content: content["files"].update({"/etc/passwd": ""})), "outside"),
    "the folder above": (manifest(lambda content: content["files"].update({"..": ""})), "no regular file"),
    "step a word": (info(step="1"), "has another step"),
    "step negative": (info(step=-1), "has another step"),
    "step another": (info(step=HUGE), "has another step"),
    "stateless a number": (info(stateless=1), "has another step, or no list"),
    "tensor missing": (
        manifest(lambda content: content["tensors"].pop(NAME)),
        "Missing key .*embedding",
    ),
    "tensor no object": (
        manifest(lambda content: content["tensors"].update({NAME: 3})),
        "none of this format",
    ),
    "dtype a function": (tensor(dtype="load"), "dtype load, which is none of torch"),
    "dtype unknown": (tensor(dtype="float33"), "none of this format"),
    "dtype another": (tensor(dtype="float64"), "bytes in its shard"),
    "size huge": (tensor(size=[HUGE, HUGE]), "chunks that are not"),
    "size beyond 64 bits": (tensor(size=[LONG, 1]), "are no sizes"),
    "size negative": (tensor(size=[-32, -32]), "are no sizes"),
    "size of truths": (tensor(size=[True, True]), "are no sizes"),
    "size not a number": (tensor(size=[float("nan"), 32]), "are no sizes"),
    "size a word": (tensor(size="32"), "are no sizes"),
    "size of many dimensions": (tensor(size=[1] * 10**5), "no part of it"),
    "chunks and sizes huge": (
        manifest(
            lambda content: content["tensors"].update(
                {
                    NAME: {
                        "dtype": "float32",
                        "size": [HUGE],
                        "chunks": [{**PLACE, "offsets": [0], "sizes": [HUGE]}],
                    }
                }
            )
        ),
        "Size mismatch",
    ),
    "chunks none": (chunks(), "not each of its numbers once"),
    "chunks with a gap": (chunks(([0, 0], [16, 32])), "not each of its numbers once"),
    "chunks that overlap": (chunks(([0, 0], [16, 32]), ([8, 0], [16, 32])), "not each of its numbers once"),
    "chunks behind the end": (chunks(([0, 0], [16, 32]), ([16, 32], [16, 32])), "no part of it"),
    "chunks huge": (chunks(([0, 0], [HUGE, HUGE])), "no part of it"),
    "chunks before the start": (chunks(([-32, 0], [64, 32])), "are no sizes"),
    "chunk elsewhere": (chunk(file="../../metrics.jsonl"), "no file of the checkpoint"),
    "chunk in any file": (chunk(file="/etc/passwd"), "no file of the checkpoint"),
    "chunk in no name": (chunk(file=["x"]), "none of this format"),
    "chunk behind the end": (chunk(begin=2**62), "too short"),
    "chunk longer than the file": (chunk(length=HUGE), "too short"),
    "chunk with nothing": (chunk(length=0), "zip"),
    "numbers too few": (archive(bytes(4)), "has 4 bytes in its shard"),
    "numbers compressed": (archive(bytes(4096), zipfile.ZIP_DEFLATED), "has 4096 bytes in its shard"),
}
PLACE = {"file": SHARD, "begin": 0, "length": 100}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A run of one step and its checkpoint."""
    folder = tmp_path_factory.mktemp("good")
    make_trainer(folder, config=configure(1)).fit()
    return folder


@pytest.fixture(scope="module")
def said(good, tmp_path_factory):
    """What going on from each says."""
    folders = {name: tmp_path_factory.mktemp("case") for name in CASES}
    for name, folder in folders.items():
        shutil.copytree(good, folder, dirs_exist_ok=True)
        CASES[name][0](folder / "checkpoints" / STEP)
    return dict(zip(CASES, outcomes(resume, list(folders.values())), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_from_a_stranger_is_refused(name, said):
    expected, kind = CASES[name][1], rf"(CheckpointError|UserWarning): .*{STEP} .*"
    assert re.match(expected if expected == "accepted" else kind + expected, said[name]), said[name]


def test_what_is_no_checkpoint_is_left_alone(good, tmp_path):
    """Names that only look like those of steps, a file in place of a folder, and what was half written."""
    folder = shutil.copytree(good, tmp_path / "run") / "checkpoints"
    (folder / "step-\u00b2").mkdir()
    (folder / "step-00000002").write_text("no folder")
    (tmp_path / "elsewhere").mkdir()
    (folder / ".step-00000002.writing").symlink_to(tmp_path / "elsewhere")
    (folder / ".step-00000003.writing").mkdir()
    trainer = make_trainer(tmp_path / "run", config=configure(2))
    with pytest.warns(UserWarning, match=r"step-00000002 is corrupt: .*using the checkpoint before it"):
        trainer.fit()
    found = {path.name for path in folder.iterdir()}
    assert found == {STEP, "step-00000002", "step-00000002.corrupt", "step-\u00b2"}
    assert (tmp_path / "elsewhere").is_dir()


def test_links_are_not_written_through(good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "run")
    (tmp_path / "precious").write_text("as it was")
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"metrics\.jsonl is no regular file; remove it"):
        make_trainer(folder, config=configure(2)).fit()
    (folder / ".text.tmp").symlink_to(tmp_path / "precious")
    replace_file(folder / "text", lambda path: path.write_text("new"))
    assert (tmp_path / "precious").read_text() == "as it was"
    assert (folder / "text").read_text() == "new" and not (folder / ".text.tmp").exists()
