"""Checkpoints of a run, through ``torch.distributed.checkpoint``: loadable at any number of processes.

A checkpoint is a folder ``step-00000100``: PyTorch's shards, and ``manifest.json`` with the digest of every
file, written last. All is written aside and moved into place, so that a folder of that name is complete,
unless it was damaged later, which the digests show. Nothing that is read can run code: tensors are loaded
with ``weights_only``, and PyTorch's index, a pickle, with the few classes of plain data that it needs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from ..checkpoint import replace_file, sync
from .safe_reader import SafeReader
from .world import World

MANIFEST = "manifest.json"
_FORMAT = "flashlla.training 1"
_PREFIX = "step-"


class CheckpointError(ValueError):
    """A checkpoint that is damaged, incomplete, or of another run; the message names it."""


class Checkpoints:
    """The checkpoints in ``folder``, which the processes of ``world`` share.

    Args:
        folder: made at the first save.
        world: all its processes call every method together.
        keep: how many are kept, at least 2: while the last one is written the one before is there.
    """

    def __init__(self, folder: str | os.PathLike, world: World, keep: int = 2):
        self.folder, self.world, self.keep = Path(folder), world, keep

    def all(self) -> list[Path]:
        """Complete ones, the oldest first."""
        found = (p for p in self.folder.glob(f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdigit())
        return sorted(found, key=lambda p: int(p.name.removeprefix(_PREFIX)))

    def save(self, step: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> Path:
        """Write ``tensors`` and ``info`` (JSON), and drop what is older than the last ``keep``.

        Raises:
            OSError: the files cannot be written; the checkpoints before are as they were.
        """
        final = self.folder / f"{_PREFIX}{step:08}"
        aside = self.folder / f".{final.name}.writing"
        if self.world.is_main:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        self.world.barrier()
        try:
            with _quiet_alone():
                writer = dcp.FileSystemWriter(aside)
                dcp.save(dict(tensors), storage_writer=writer, no_dist=self.world.size == 1)
        except CheckpointException as error:
            raise OSError(f"{final} could not be written: {_reason(error)}") from error
        digests: dict[str, str] = {}
        for part in self.world.gather(self._digests(aside, sorted(p.name for p in aside.iterdir()))):
            digests |= part
        if self.world.is_main:
            _write_manifest(aside, {"format": _FORMAT, "info": dict(info), "files": digests})
            if final.exists():  # one that was found damaged, or left by an earlier run
                shutil.rmtree(final)
            os.replace(aside, final)
            sync(self.folder)
            for old in self.all()[: -self.keep]:
                shutil.rmtree(old)
        self.world.barrier()
        return final

    def load(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Load ``tensors`` in place from one that :meth:`verify` found good.

        Raises:
            CheckpointError: it holds other tensors.
        """
        try:
            with _quiet_alone():
                dcp.load(dict(tensors), storage_reader=SafeReader(path), no_dist=self.world.size == 1)
        except (CheckpointException, Exception) as error:
            raise CheckpointError(f"{path} does not fit this run: {_reason(error)}") from error

    def verify(self, path: Path) -> dict[str, Any]:
        """Hold all files against their digests, each process its share; returns the info.

        Raises:
            CheckpointError: in all processes, if one of them found a difference.
        """
        problem, manifest = "", {}
        try:
            manifest = _read_manifest(path)
            names = sorted(manifest["files"])
            found = self._digests(path, names)
            problem = "; ".join(
                f"{n} is damaged" for n, digest in found.items() if digest != manifest["files"][n]
            )
        except FileNotFoundError as error:
            problem = f"{Path(error.filename).name} is missing"
        except (OSError, ValueError) as error:
            problem = str(error)
        problems = [p for p in self.world.gather(problem) if p]
        if problems:
            raise CheckpointError(f"{path} is corrupt: {'; '.join(problems)}")
        return manifest["info"]

    def last_good(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest that is as it was saved, and its info; None if there is none at all.

        A corrupt one is named in a warning and set aside as ``*.corrupt``.

        Raises:
            CheckpointError: all are corrupt.
        """
        paths = self.all()
        for path in reversed(paths):
            try:
                return path, self.verify(path)
            except CheckpointError as error:
                if self.world.is_main:
                    warnings.warn(f"{error}; using the checkpoint before it", stacklevel=2)
                    aside = path.with_name(f"{path.name}.corrupt")
                    shutil.rmtree(aside, ignore_errors=True)
                    os.replace(path, aside)
                self.world.barrier()
        if paths:
            raise CheckpointError(f"every checkpoint in {self.folder} is corrupt; restore one from a copy")
        return None

    def _digests(self, folder: Path, names: list[str]) -> dict[str, str]:
        """Digests of this process's share of the files."""
        return {name: _digest(folder / name) for name in names[self.world.rank :: self.world.size]}


def _reason(error: BaseException) -> str:
    """The first of the errors that PyTorch collects from all processes; its own is no Exception."""
    failures = getattr(error, "failures", {})
    return str(next(iter(failures.values()))[0] if failures else error)


@contextmanager
def _quiet_alone() -> Iterator[None]:
    """Without PyTorch's warning that one process saves alone, which ``no_dist`` has said already."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        if hasattr(hashlib, "file_digest"):
            return hashlib.file_digest(file, "blake2b").hexdigest()
        digest = hashlib.blake2b()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def _write_manifest(folder: Path, content: dict[str, Any]) -> None:
    text = json.dumps({"digest": _digest_of_json(content), **content}, indent=1) + "\n"
    replace_file(folder / MANIFEST, lambda path: path.write_text(text))


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        intact = manifest.pop("digest") == _digest_of_json(manifest)
    except (ValueError, KeyError, AttributeError, TypeError):
        intact = False
    if not intact:
        raise ValueError(f"{MANIFEST} is damaged")
    if manifest["format"] != _FORMAT:
        raise ValueError(
            f"{MANIFEST} has format {manifest['format']!r}, this version of flashlla reads {_FORMAT!r}"
        )
    if any(Path(name).name != name for name in manifest["files"]):
        raise ValueError(f"{MANIFEST} names files outside the checkpoint")
    return manifest


def _digest_of_json(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode()).hexdigest()
