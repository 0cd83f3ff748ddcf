"""Results on disk: every file is written aside and moved into place, so that none is ever half there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flashlla._files import replace_file, writing


def write_text(path: Path, text: str) -> None:
    """Write ``text``, and the folders above it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` so that people can read it."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")
