"""Files on disk: written aside and moved into place, with errors that name the file and a remedy."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class WriteError(OSError):
    """Something cannot be written; the message says where, why, and what to do."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says of a write, often without a name, becomes a :class:`WriteError` for ``path``."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise WriteError(
            f"{path} cannot be written: {reason}; make room or give permission, or choose another folder"
        ) from error


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` a file next to ``path``, see it on the disk, and move it into place.

    Raises:
        WriteError: that failed, and ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            temporary.unlink(missing_ok=True)  # of a process that was killed, or a link that leads elsewhere
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode  # as the umask wants it; safetensors would leave the file private
            write(temporary)
            temporary.chmod(mode)
            sync(temporary)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync(path.parent)  # the move itself


def sync(path: Path) -> None:
    """See a file, or what a folder lists, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(folder: Path) -> None:
    """Whether files can be written into ``folder``, or into the folder where it would be made.

    Said by writing some bytes that have no name: modes alone say too little of disks and users.

    Raises:
        WriteError: they cannot.
    """
    place = Path(folder).absolute()
    while not os.path.lexists(place):
        place = place.parent
    with writing(folder), tempfile.TemporaryFile(dir=place) as probe:
        probe.write(bytes(4096))


def read_json(path: Path) -> Any:
    """The JSON in a regular file; a pipe would be waited for, a device read without an end.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it holds something else.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file")
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """``json.loads``, for which nesting without an end is no JSON either.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
