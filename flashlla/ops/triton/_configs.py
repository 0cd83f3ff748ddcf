"""Block sizes, warps and pipeline stages of every kernel, by architecture and head dimension.

The table was made with ``flashlla.testing.offline``: the largest blocks whose inner loops spill no
register, within the shared memory of the architecture. ``flashlla.ops.triton.tuning`` can measure better
ones on the GPU that is there.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton

from flashlla import _env
from flashlla.ops.triton import tuning
from flashlla.ops.triton.tuning import Config

KERNELS = ("probe_fwd", "apply_fwd", "adjoint_bwd", "rows_bwd", "keys_bwd")
DECODING = ("moments", "weighted")

# Half precision operands; head dimensions are padded to a power of two and at least 16.
HOPPER = {  # and sm_100
    64: {
        "probe_fwd": Config(64, 64, 4, 2),
        "apply_fwd": Config(64, 64, 4, 3),
        "adjoint_bwd": Config(64, 64, 4, 2),
        "rows_bwd": Config(64, 32, 4, 3),
        "keys_bwd": Config(32, 64, 4, 3),
    },
    128: {
        "probe_fwd": Config(64, 64, 4, 2),
        "apply_fwd": Config(64, 32, 4, 2),
        "adjoint_bwd": Config(64, 64, 4, 2),
        "rows_bwd": Config(64, 32, 4, 3),
        "keys_bwd": Config(16, 64, 4, 3),
    },
    256: {
        "probe_fwd": Config(64, 32, 8, 2),
        "apply_fwd": Config(64, 32, 8, 2),
        "adjoint_bwd": Config(64, 32, 8, 2),
        "rows_bwd": Config(64, 16, 8, 1),
        "keys_bwd": Config(16, 32, 8, 1),
    },
}
AMPERE = {
    64: {**HOPPER[64], "apply_fwd": Config(64, 32, 4, 3)},
    128: {
        "probe_fwd": Config(64, 64, 4, 2),
        "apply_fwd": Config(64, 32, 8, 2),
        "adjoint_bwd": Config(64, 64, 4, 2),
        "rows_bwd": Config(64, 32, 8, 2),
        "keys_bwd": Config(16, 32, 4, 2),
    },
    256: {**HOPPER[256], "rows_bwd": Config(32, 16, 4, 1)},
}
SMALL = {  # 99 KiB of shared memory: sm_86, sm_89, sm_120; 64 KiB: gfx9
    64: {
        "probe_fwd": Config(64, 32, 4, 2),
        "apply_fwd": Config(64, 32, 4, 2),
        "adjoint_bwd": Config(64, 32, 4, 2),
        "rows_bwd": Config(64, 32, 4, 1),
        "keys_bwd": Config(32, 64, 4, 1),
    },
    128: {
        "probe_fwd": Config(64, 32, 8, 1),
        "apply_fwd": Config(64, 32, 8, 1),
        "adjoint_bwd": Config(64, 32, 8, 1),
        "rows_bwd": Config(32, 32, 4, 1),
        "keys_bwd": Config(16, 32, 4, 1),
    },
    256: {
        "probe_fwd": Config(32, 16, 4, 1),
        "apply_fwd": Config(32, 16, 4, 1),
        "adjoint_bwd": Config(32, 16, 4, 1),
        "rows_bwd": Config(16, 16, 4, 1),
        "keys_bwd": Config(16, 16, 4, 1),
    },
}
TABLES = {"sm_80": AMPERE, "sm_90": HOPPER, "sm_100": HOPPER, "gfx9": SMALL, "small": SMALL}


def padded(dim: int) -> int:
    """A head dimension as tiles have it: the next power of two, at least 16."""
    return max(16, 1 << (dim - 1).bit_length())


def architecture(device: torch.device) -> str:
    """The entry of ``TABLES`` for a device; the small blocks for unknown ones and the interpreter."""
    if device.type != "cuda" or triton.knobs.runtime.interpret:
        return "small"
    if torch.version.hip:
        return "gfx9"
    return _capability_name(torch.cuda.get_device_capability(device))


@lru_cache
def _capability_name(capability: tuple[int, int]) -> str:
    name = {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}
    return name.get(capability, "small")


def choose(kernel: str, device: torch.device, block: int, wide: bool) -> Config:
    """The configuration of a launch: a tuned one if there is one, else the heuristic's.

    Args:
        kernel: one of ``KERNELS`` or ``DECODING``.
        block: the larger of both padded head dimensions.
        wide: operands in float64.
    """
    if (folder := _env.tuning()) and not wide:
        tuned = tuning.load(folder, tuning.device_name(device)).get(tuning.key(kernel, block))
        if tuned is not None:
            return tuned
    return heuristic(kernel, architecture(device), block, wide)


def heuristic(kernel: str, architecture: str, block: int, wide: bool) -> Config:
    """The configuration for an :func:`architecture`; other arguments as for :func:`choose`."""
    if kernel in DECODING:
        rows = 32 if block > 128 else block  # of the second moments; the other kernel has no use for it
        if architecture == "sm_90" and block <= 128:  # measured on an H200
            return Config(rows, 64, 8 if kernel == "moments" and block > 64 else 4, 3)
        return Config(rows, 32, 4, 3) if block <= 64 else Config(rows, 16, 8, 3)
    if wide:
        if block > 64:
            return Config(16, 16, 8 if block > 128 else 4, 1)
        return Config(32, 16, 8, 1) if kernel == "keys_bwd" else Config(32, 32, 4, 1)
    table = TABLES[architecture]
    return table[min(size for size in table if size >= block)][kernel]
