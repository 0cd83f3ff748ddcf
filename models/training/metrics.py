"""Measured numbers, one JSON object a line; what a crash leaves behind is mended when the run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flashlla._files import parse_json, sync, writing


class MetricsLog:
    """Appends to ``metrics.jsonl``; every line names the steps done, ``step``, which never fall.

    Args:
        path: the file, made when the first line comes.
        tensorboard: also write TensorBoard's events, into the folder ``tensorboard`` next to it.

    Raises:
        ImportError: TensorBoard is wanted and not installed.
    """

    def __init__(self, path: str | os.PathLike, *, tensorboard: bool = False):
        self.path = Path(path)
        self._events = _tensorboard_writer(self.path.parent / "tensorboard") if tensorboard else None

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write the lines in one piece.

        Raises:
            ValueError: a number that JSON does not know (NaN, infinity).
            OSError: the lines cannot be written; one of them may then be cut short.
        """
        records = list(records)
        lines = "".join(json.dumps(dict(record), allow_nan=False) + "\n" for record in records)
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(lines.encode())
        for record in records if self._events else ():
            for name, value in record.items():
                if name != "step":
                    self._events.add_scalar(name, value, record["step"])

    def sync(self) -> None:
        """See the lines on the disk."""
        if self.path.exists():
            with writing(self.path):
                sync(self.path)
        if self._events:
            self._events.flush()

    def cut(self, step: int) -> None:
        """Drop the lines of later steps, and a line that a crash cut short.

        Raises:
            OSError: the log is a link, which may lead anywhere, or no file.
        """
        if not os.path.lexists(self.path):
            return
        if self.path.is_symlink() or not self.path.is_file():
            raise OSError(f"{self.path} is no regular file; remove it")
        kept = 0
        with open(self.path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n") or not _is_until(line, step):
                    break
                kept += len(line)
        os.truncate(self.path, kept)


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a log; one that a crash cut short is left out."""
    return [
        json.loads(line) for line in Path(path).read_text().splitlines(keepends=True) if line.endswith("\n")
    ]


def _is_until(line: bytes, step: int) -> bool:
    try:
        return parse_json(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def _tensorboard_writer(folder: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard=True needs TensorBoard: pip install tensorboard") from error
    return SummaryWriter(folder)
