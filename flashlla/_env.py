"""Every environment variable that flashlla reads: its own, and what ``torchrun`` sets. Nothing else in the
package reads one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping


def backend() -> str | None:
    """``FLASHLLA_BACKEND``: the backend that ``backend="auto"`` takes, instead of choosing."""
    return os.environ.get("FLASHLLA_BACKEND") or None


def instruction_set() -> str | None:
    """``FLASHLLA_ISA``: instruction set of the CPU kernels: ``sse``, ``avx2``, ``avx512`` or ``neon``."""
    return os.environ.get("FLASHLLA_ISA") or None


def num_threads() -> int | None:
    """``FLASHLLA_NUM_THREADS``: threads of the CPU kernels; unset, they follow torch."""
    value = os.environ.get("FLASHLLA_NUM_THREADS")
    if not value:
        return None
    if not value.isdigit() or int(value) < 1:
        raise ValueError(
            f"FLASHLLA_NUM_THREADS={value!r} must be a positive integer; unset it to follow torch"
        )
    return int(value)


def tuning() -> str | None:
    """``FLASHLLA_TUNING``: folder of the configurations that ``flashlla tune`` measured; unset, heuristics
    decide.
    """
    return os.environ.get("FLASHLLA_TUNING") or None


def world_size() -> int:
    """``WORLD_SIZE``: how many processes ``torchrun`` has started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """``LOCAL_RANK``: which of those of this machine this one is."""
    return int(os.environ.get("LOCAL_RANK", 0))


def set_default(name: str, value: str) -> None:
    """A variable that another package reads, unless the user has set it."""
    os.environ.setdefault(name, value)


def set_for_process(name: str, value: str) -> None:
    """A variable that another package reads, and can be told in no other way, whatever the user has set."""
    os.environ[name] = value


def with_more(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process to be started: this one's, and more."""
    return {**os.environ, **variables}
