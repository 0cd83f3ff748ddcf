"""Text that every machine has: sources and documentation of the running Python's standard library."""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .settings import DemoError

SUFFIXES = (".py", ".rst", ".txt")
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
MAX_BYTES = 8 << 20
MIN_BYTES = 1 << 18
VALIDATION_ONE_IN = 16
VALIDATION_WINDOWS = 64


class Corpus(NamedTuple):
    """Bytes to train on and to validate with, from different files."""

    train: Tensor  # uint8
    validation: Tensor  # uint8
    files: int
    digest: str


def load_corpus() -> Corpus:
    """Collect the text, the same on every machine with the same Python.

    Files are ordered by the hash of their content, which also decides the side: equal files never stand on
    both. Taken in this order the cap keeps a mixture of all modules.

    Raises:
        DemoError: this Python comes without the sources of its library.
    """
    contents = {hashlib.sha256(data).digest(): data for data in map(Path.read_bytes, _text_files())}
    sides: tuple[list[bytes], list[bytes]] = ([], [])
    total, everything = 0, hashlib.sha256()
    for key in sorted(contents):
        if total + len(contents[key]) > MAX_BYTES:
            break
        total += len(contents[key])
        everything.update(key)
        # The order follows the first bytes of the hash, so the side must follow others.
        sides[key[-1] % VALIDATION_ONE_IN == 0].append(contents[key])
    if total < MIN_BYTES or not all(sides):
        raise DemoError(
            f"found only {total} bytes of text under {sysconfig.get_path('stdlib')}: this Python lacks the "
            "sources of its library; use one that has them"
        )
    train, validation = (torch.frombuffer(bytearray(b"".join(side)), dtype=torch.uint8) for side in sides)
    return Corpus(train, validation, len(sides[0]) + len(sides[1]), everything.hexdigest()[:16])


def _text_files() -> Iterator[Path]:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    roots = (Path(sysconfig.get_path("stdlib")), Path(sys.base_prefix, "share", "doc", f"python{version}"))
    for root in roots:
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = sorted(set(subfolders) - SKIPPED_FOLDERS)
            paths = (Path(folder, name) for name in sorted(names) if name.endswith(SUFFIXES))
            yield from (path for path in paths if path.is_file() and os.access(path, os.R_OK))


def random_batch(text: Tensor, batch: int, context: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and targets at random places, int64 ``[batch, context]`` each."""
    starts = torch.randint(len(text) - context, (batch,), generator=generator)
    return _windows(text, starts, context)


def validation_batches(text: Tensor, batch: int, context: int) -> Iterator[tuple[Tensor, Tensor]]:
    """``VALIDATION_WINDOWS`` evenly spread windows, the same at every call."""
    starts = torch.linspace(0, len(text) - context - 1, VALIDATION_WINDOWS, dtype=torch.float64).long()
    for some in starts.split(batch):
        yield _windows(text, some, context)


def _windows(text: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    rows = text[starts[:, None] + torch.arange(context + 1)].long()
    return rows[:, :-1], rows[:, 1:]
