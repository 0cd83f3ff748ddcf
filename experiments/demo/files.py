"""Results on disk: every file is written aside and moved into place, so that none is ever half there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flashlla.models.checkpoint import replace_file

from .settings import DemoError


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """What :func:`write_json` wrote, or None if there is no such file.

    Raises:
        DemoError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DemoError(f"{path} is damaged ({error}); start anew with --fresh") from error
