"""Reading what an earlier run has left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .settings import DemoError


def read_json(path: Path) -> Any:
    """The JSON in a file, or None if there is no such file.

    Raises:
        DemoError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DemoError(f"{path} is damaged ({error}); start anew with --fresh") from error
