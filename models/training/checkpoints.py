"""Checkpoints of a run, through ``torch.distributed.checkpoint``: loadable at any number of processes.

A checkpoint is a folder ``step-00000100``: PyTorch's shards and index, and ``manifest.json`` with the digest
of every file and an index of our own, written last. All is written aside and moved into place, so that a
folder of that name is complete, unless it was damaged later, which the digests show. Nothing that is read can
run code: PyTorch's index, a pickle, is there for other tools.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from flashlla._files import read_json, replace_file, sync, writing

from .safe_reader import SafeReader, index_of
from .world import World

MANIFEST = "manifest.json"
_FORMAT = "flashlla.training 2"
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
        found = (p for p in self.folder.glob(f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdecimal())
        return sorted(found, key=step_of)

    def save(self, step: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> Path:
        """Write ``tensors`` and ``info`` (JSON), and drop what is older than the last ``keep``.

        Raises:
            OSError: the files cannot be written; the checkpoints before are as they were.
        """
        final = self.folder / f"{_PREFIX}{step:08}"
        aside = self.folder / f".{final.name}.writing"
        if self.world.is_main:
            with writing(final):
                self.clear()
                aside.mkdir(parents=True)
        self.world.barrier()
        try:
            with writing(final):
                self._write(aside, tensors, info)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)  # for what comes next there may be room
            raise
        if self.world.is_main:
            with writing(final):
                _remove(final)  # one that was found damaged, or left by an earlier run
                os.replace(aside, final)
                sync(self.folder)
                for old in self.all()[: -self.keep]:
                    _remove(old)
        self.world.barrier()
        return final

    def _write(self, folder: Path, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
        """All files of a checkpoint, with those of the other processes."""
        contiguous = {name: t.contiguous() for name, t in tensors.items()}
        try:
            with _quiet_alone():
                writer = dcp.FileSystemWriter(folder)
                metadata = dcp.save(contiguous, storage_writer=writer, no_dist=self.world.size == 1)
        except CheckpointException as error:
            raise _system_error(error) from error
        digests: dict[str, str] = {}
        for part in self.world.gather(self._digests(folder, sorted(p.name for p in folder.iterdir()))):
            digests |= part
        if self.world.is_main:
            content = {"info": dict(info), "files": digests, "tensors": index_of(metadata)}
            _write_manifest(folder, {"format": _FORMAT, **content})

    def clear(self) -> None:
        """Remove what a process that was killed has half written."""
        for aside in self.folder.glob(f".{_PREFIX}*.writing"):
            _remove(aside)

    def load(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Load ``tensors`` in place from one that :meth:`verify` found good.

        Raises:
            CheckpointError: it holds other tensors.
        """
        try:
            with _quiet_alone():
                manifest = _read_manifest(path)
                reader = SafeReader(path, manifest["files"], manifest["tensors"])
                dcp.load(dict(tensors), storage_reader=reader, no_dist=self.world.size == 1)
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
        if self.world.is_main:
            self.clear()
        paths = self.all()
        for path in reversed(paths):
            try:
                return path, self.verify(path)
            except CheckpointError as error:
                if self.world.is_main:
                    warnings.warn(f"{error}; using the checkpoint before it", stacklevel=2)
                    aside = path.with_name(f"{path.name}.corrupt")
                    _remove(aside)
                    os.replace(path, aside)
                self.world.barrier()
        if paths:
            raise CheckpointError(f"every checkpoint in {self.folder} is corrupt; restore one from a copy")
        return None

    def _digests(self, folder: Path, names: list[str]) -> dict[str, str]:
        """Digests of this process's share of the files, which are none if they are pipes or links."""
        return {name: _digest(folder / name) for name in names[self.world.rank :: self.world.size]}


def step_of(path: Path) -> int:
    """The step of a checkpoint, by the name of its folder."""
    return int(path.name.removeprefix(_PREFIX))


def _reason(error: BaseException) -> BaseException:
    """The first of the errors that PyTorch collects from all processes; its own is no Exception."""
    failures = getattr(error, "failures", {})
    return next(iter(failures.values()))[0] if failures else error


def _system_error(error: CheckpointException) -> OSError:
    """What the system said of a write; PyTorch may have stumbled over the consequences."""
    reason = cause = _reason(error)
    while cause is not None:
        if isinstance(cause, OSError):
            return OSError(cause.errno, cause.strerror)
        cause = cause.__context__
    return OSError(str(reason))


@contextmanager
def _quiet_alone() -> Iterator[None]:
    """Without PyTorch's warning that one process saves alone, which ``no_dist`` has said already."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _digest(path: Path) -> str:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ValueError(f"{path.name} is no regular file")
    with open(path, "rb") as file:
        if hasattr(hashlib, "file_digest"):
            return hashlib.file_digest(file, "blake2b").hexdigest()
        digest = hashlib.blake2b()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def _remove(path: Path) -> None:
    """A folder and all in it, or whatever else is there; of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_manifest(folder: Path, content: dict[str, Any]) -> None:
    text = json.dumps({"digest": _digest_of_json(content), **content}, indent=1) + "\n"
    replace_file(folder / MANIFEST, lambda path: path.write_text(text))


def _read_manifest(folder: Path) -> dict[str, Any]:
    """What :func:`_write_manifest` wrote: ``info``, ``files`` and ``tensors`` are mappings."""
    try:
        manifest = read_json(folder / MANIFEST)
        intact = manifest.pop("digest") == _digest_of_json(manifest)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise ValueError(f"{MANIFEST} is damaged")
    if manifest.get("format") != _FORMAT:
        raise ValueError(
            f"{MANIFEST} has format {manifest.get('format')!r}, this version of flashlla reads {_FORMAT!r}"
        )
    if not all(isinstance(manifest.get(name), dict) for name in ("info", "files", "tensors")):
        raise ValueError(f"{MANIFEST} has not all that its format has")
    if any(Path(name).name != name for name in manifest["files"]):
        raise ValueError(f"{MANIFEST} names files outside the checkpoint")
    return manifest


def _digest_of_json(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode()).hexdigest()
