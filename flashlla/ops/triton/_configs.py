"""Block sizes, warps and pipeline stages of every kernel: a heuristic by head dimension and dtype."""

from __future__ import annotations

from typing import NamedTuple


class Config(NamedTuple):
    """How a kernel is cut and launched: rows and keys of a block, warps of a program, stages of its pipeline."""

    BLOCK_M: int
    BLOCK_N: int
    num_warps: int
    num_stages: int


KERNELS = ("probe_fwd", "apply_fwd", "adjoint_bwd", "rows_bwd", "keys_bwd", "covariance", "system")


def heuristic(kernel: str, block: int, wide: bool) -> Config:
    """A configuration for a kernel, the larger of both (padded) head dimensions, and operands in float64."""
    if kernel == "system":
        return Config(heuristic("covariance", block, wide).BLOCK_M, 16, 1 if block <= 64 else 4, 1)
    if wide:
        return Config(16, 16, 4, 1) if block > 128 else Config(32, 32 if block <= 64 else 16, 4, 1)
    return Config(64, 64, 4, 2)
