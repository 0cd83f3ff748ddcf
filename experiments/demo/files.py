"""Reading what an earlier run has left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flashlla._files import read_json

from .settings import DemoError


def read_run(path: Path) -> dict[str, Any] | None:
    """What ``run.json`` says of a run, its ``settings`` and if it is ``finished``; None if there is none.

    Raises:
        DemoError: the file is damaged.
    """
    try:
        run = read_json(path)
        steps = run["settings"]["steps"]
        if not isinstance(run["finished"], bool) or type(steps) is not int or steps < 1:
            raise ValueError("it lacks what it should say")
        return run
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DemoError(f"{path} is damaged ({error}); start anew with --fresh") from error
