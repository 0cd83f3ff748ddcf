"""Specialisations of the kernels, and the resources that each of them takes.

The sizes repeat those of ``csrc/cuda``; ``tests/cuda`` holds one against the other.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import flashlla

BLOCK = 64  # keys that are in shared memory at a time
MIN_SPLIT = 1024  # keys of the smallest split
MAX_SPLIT = 4  # the largest split, in smallest ones
MOST_SPLITS = 8  # of rows whose splits have not reached their largest size
ROWS = 16  # query rows that share the keys of a block of threads, unless the probe is solved for
MAX_DIM = 256


class Kernel(NamedTuple):
    """One specialisation.

    ``probe`` is ``"solved"``, ``"given"`` or ``"zero"``; ``pad`` is 64, 128 or 256 and no smaller than both
    head dimensions; ``aligned`` says that keys and values can be copied 16 bytes at a time; ``stages``
    blocks of keys are under way at once; where the probe is solved for, half of the threads prepare blocks of
    operands that the other half multiplies, and with two ``buffers`` for them both do so at the same time.
    """

    probe: str
    bf16: bool
    pad: int
    aligned: bool
    stages: int
    buffers: int = 1

    @property
    def source(self) -> str:
        """The file in ``csrc/cuda``."""
        return "decode_solved.cu" if self.probe == "solved" else "decode_given.cu"

    @property
    def name(self) -> str:
        """The name of the function."""
        return "lla_decode_solved_kernel" if self.probe == "solved" else "lla_decode_given_kernel"

    @property
    def macros(self) -> tuple[str, ...]:
        """Definitions for the preprocessor."""
        values = {
            "BF16": self.bf16,
            "PAD": self.pad,
            "ALIGNED": self.aligned,
            "STAGES": self.stages,
            "BUFFERS": self.buffers,
            "HAS_PROBE": self.probe != "zero",
            "MIN_SPLIT": MIN_SPLIT,
        }
        return tuple(f"-DFLASHLLA_{name}={int(value)}" for name, value in values.items())

    @property
    def slabs(self) -> int:
        """Blocks of threads that share the moments of a row."""
        return self.pad // 64 if self.probe == "solved" and self.pad > 128 else 1

    @property
    def threads(self) -> int:
        """Threads of a block."""
        if self.probe != "solved":
            return 128
        return 512 if self.pad > 64 else 256

    @property
    def state_floats(self) -> int:
        """Floats that a block of threads leaves in scratch memory."""
        if self.probe != "solved":
            return ROWS * (4 + self.pad * (2 if self.probe == "given" else 1))
        tiles, halves = self.pad // 16, 2 if self.slabs > 1 else 1
        fragments = (tiles // 2 // halves + 1 + tiles // halves) * 8 * (self.threads // 2)
        return fragments + 2 * self.pad + 2 * self.pad // self.slabs + 4

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        warps, rows = self.threads // 32, self.pad // self.slabs
        stage = 2 * BLOCK * (self.pad + 8 + rows + 8)
        if self.probe != "solved":
            vectors, weights = 2 * 2 * ROWS * (self.pad + 8), 2 * ROWS * (BLOCK + 4)
            return self.stages * stage + vectors + 4 * (weights + (3 * warps + 4) * ROWS + BLOCK + 4)
        numbers = self.pad + BLOCK + 3 * (warps // 2) + 2 * self.buffers + 4
        sweep = (self.stages + self.buffers) * stage + 4 * numbers
        tiles, halves = self.pad // 16, 2 if self.slabs > 1 else 1
        system = 256 * (tiles * (tiles + 1) // 2 + tiles)
        return max(sweep, 4 * (system + 4 * self.pad + halves * rows))


def choose(probe: str, bf16: bool, dim: int, aligned: bool, shared_limit: int) -> Kernel:
    """The kernel for head dimensions up to ``dim``, with as many stages and buffers as ``shared_limit`` bytes
    hold.

    Raises:
        NotImplementedError: the head dimension is too large, for any device or for this one.
    """
    if dim > MAX_DIM:
        raise NotImplementedError(f"backend 'cuda' takes head dimensions up to {MAX_DIM}, not {dim}")
    pad = next(size for size in (64, 128, 256) if size >= dim)
    for stages, buffers in ((3, 2), (2, 2), (2, 1), (1, 1)) if probe == "solved" else ((2, 1), (1, 1)):
        kernel = Kernel(probe, bf16, pad, aligned, stages, buffers)
        if kernel.shared_bytes <= shared_limit:
            return kernel
    raise NotImplementedError(
        f"backend 'cuda' needs {kernel.shared_bytes} bytes of shared memory for a head dimension of {dim}; "
        f"this device has {shared_limit}"
    )


def most_splits(keys: int) -> int:
    """The most splits that a row has which sees ``keys`` keys or fewer; at least 1."""
    largest = MIN_SPLIT * MAX_SPLIT
    return max(1, min(-(-keys // MIN_SPLIT), max(MOST_SPLITS, -(-keys // largest))))


def folder() -> Path:
    """Where the sources are: in the package, or beside it in a checkout."""
    package = Path(flashlla.__file__).resolve().parent
    return next(path for path in (package / "_csrc", package.parent / "csrc") if path.is_dir())


@cache
def source_text(name: str) -> str:
    """A source file with the project's headers in it, each once: what is compiled is what caches see."""
    seen: set[str] = set()

    def expand(path: Path) -> str:
        lines = []
        for line in path.read_text().splitlines():
            if line.startswith('#include "flashlla/'):
                header = line.split('"')[1]
                if header not in seen:
                    seen.add(header)
                    lines.append(expand(folder() / "include" / header))
            elif line != "#pragma once":
                lines.append(line)
        return "\n".join(lines) + "\n"

    return expand(folder() / "cuda" / name)
