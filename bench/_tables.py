"""Markdown tables, and JSON files that are either the old ones or the new ones, never half of one."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table whose columns line up."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    cells = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def finite(value: object) -> object:
    """The same with the numbers that JSON does not know, NaN and infinity, in words."""
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def save_json(path: Path, content: dict) -> None:
    """Write a file beside its place, then put it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(descriptor, "w") as file:
        file.write(json.dumps(finite(content), indent=1) + "\n")
    os.replace(temporary, path)
