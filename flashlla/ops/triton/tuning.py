"""Measured configurations: a JSON file a GPU, written by ``flashlla tune``, read where ``FLASHLLA_TUNING``
names its folder.

Nothing is ever tuned behind a call: without the variable every launch takes the heuristic of ``_configs``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from flashlla._files import read_json, replace_file, writing


class Config(NamedTuple):
    """How a kernel is cut and launched: rows and keys of a block, warps of a program, stages of its
    pipeline.
    """

    BLOCK_M: int
    BLOCK_N: int
    num_warps: int
    num_stages: int


LIMITS = (
    (16, 256),
    (16, 256),
    (1, 32),
    (1, 16),
)  # of the numbers of a Config; powers of two but for the last

# What is tried. A candidate that does not fit the GPU is passed over.
CANDIDATES = tuple(
    Config(m, n, warps, stages)
    for m, n, warps in (
        (16, 64, 4),
        (32, 64, 4),
        (32, 64, 8),
        (64, 16, 4),
        (64, 32, 4),
        (64, 32, 8),
        (64, 64, 4),
        (64, 64, 8),
        (64, 128, 8),
        (128, 32, 8),
        (128, 64, 8),
        (16, 128, 8),
        (32, 128, 8),
    )
    for stages in (1, 2, 3)
)


# For a step of decoding, where BLOCK_M is the rows of the second moments that one program sums.
DECODING_CANDIDATES = tuple(
    Config(m, n, warps, stages)
    for m in (32, 64, 128)
    for n in (16, 32, 64)
    for warps in (4, 8)
    for stages in (2, 3)
)


def device_name(device: torch.device) -> str:
    """The name of a device as it goes into a file name."""
    if device.type != "cuda":
        return device.type
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def key(kernel: str, block: int) -> str:
    """The entry of a kernel for a padded head dimension."""
    return f"{kernel}/{block}"


@lru_cache
def load(folder: str, device: str) -> dict[str, Config]:
    """The configurations of a device, none if there is no file.

    Raises:
        ValueError: the file is not one that :func:`save` wrote.
    """
    path = Path(folder) / f"{device}.json"
    try:
        return {name: _config(name, values) for name, values in read_json(path)["configs"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is no file of tuned configurations ({error}); remove it, or unset FLASHLLA_TUNING"
        ) from error


def _config(name: str, values: list[int]) -> Config:
    """What a file says of a kernel, if it can be compiled with that."""
    config = Config(*values)
    fits = all(type(n) is int and low <= n <= high for n, (low, high) in zip(config, LIMITS, strict=True))
    if not fits or any(n & (n - 1) for n in config[:3]):
        raise ValueError(f"{name} has {values}, which no kernel takes")
    return config


def save(folder: str | Path, device: str, configs: dict[str, Config]) -> Path:
    """Add configurations to the file of a device; it is replaced at once or not at all.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(folder) / f"{device}.json"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    merged = {**load(str(folder), device), **configs}
    content = {
        "triton": triton.__version__,
        "configs": {name: list(config) for name, config in sorted(merged.items())},
    }
    replace_file(path, lambda aside: aside.write_text(json.dumps(content, indent=1) + "\n"))
    load.cache_clear()
    return path


def fastest(
    measure: Callable[[Config], float], candidates: Iterable[Config], start: Config
) -> tuple[Config, float]:
    """The candidate with the least time, and that time; start unless one is faster.

    Args:
        measure: milliseconds of a configuration; raises ``OutOfResources`` where it does not fit.
    """
    best, least = start, measure(start)
    for config in candidates:
        try:
            time = measure(config)
        except triton.runtime.errors.OutOfResources:
            continue
        if time < least:
            best, least = config, time
    return best, least
