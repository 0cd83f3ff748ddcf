"""The table of backends and the choice that ``backend="auto"`` makes, with its reason in words."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch

from flashlla import _env
from flashlla.ops.types import MAX_DECODE_QUERIES

HALF_OR_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
FLOATING = (*HALF_OR_SINGLE, torch.float64)
OLDEST_TRITON = (3, 6)


class Backend(NamedTuple):
    """One implementation: where it lives, what it takes, and why it may be missing."""

    module: str
    devices: tuple[str, ...] | None  # None: any device
    dtypes: tuple[torch.dtype, ...]
    missing: Callable[[], str | None]  # the reason why it cannot be loaded, or None
    summary: str
    named_only: tuple[str, ...] = ()  # devices where "auto" does not take it
    decodes_only: bool = False  # takes a few new queries over a cache, and nothing else
    solvers: tuple[str, ...] = ("auto", "cg", "direct")  # of all calls but decoding
    least_dim: int = 1  # of head dimensions; smaller ones get zeros


def _nothing_missing() -> None:
    return None


def _extension_missing() -> str | None:
    try:
        importlib.import_module("flashlla._C")
    except ImportError as error:
        return f"the compiled extension does not load ({error}); reinstall where a C++17 compiler is found"
    return None


def _triton_missing() -> str | None:
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        return f"Triton does not load ({error}); pip install 'triton>=3.6'"
    if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST_TRITON:
        return f"Triton {triton.__version__} is too old; newer builds of torch bring 3.6 or later"
    if not triton.knobs.runtime.interpret and not torch.cuda.is_available():
        return "Triton kernels need a GPU that torch finds; TRITON_INTERPRET=1 interprets them, for tests"
    return None


def _cuda_missing() -> str | None:
    reason: str | None = importlib.import_module("flashlla.ops.cuda").missing()
    return reason


# In the order in which "auto" tries them. The reference is only taken by name: it is quadratic in memory.
BACKENDS: dict[str, Backend] = {
    "cpu": Backend("flashlla.ops.cpu", ("cpu",), HALF_OR_SINGLE, _extension_missing, "compiled C++ kernels"),
    "triton": Backend(
        "flashlla.ops.triton",
        ("cuda", "cpu"),
        FLOATING,
        _triton_missing,
        "Triton kernels, on the CPU interpreted",
        named_only=("cpu",),
        solvers=("auto", "cg"),
        least_dim=2,  # Triton 3.6 does not compile products of rows that lie next to each other
    ),
    "cuda": Backend(
        "flashlla.ops.cuda",
        ("cuda",),
        (torch.bfloat16, torch.float16),
        _cuda_missing,
        "CUDA C++ kernels for decoding",
        named_only=("cuda",),
        decodes_only=True,
    ),
    "blockwise": Backend(
        "flashlla.ops.blockwise",
        None,
        FLOATING,
        _nothing_missing,
        "tiled PyTorch, any device, memory linear in length",
    ),
}
NAMES = ("auto", *BACKENDS, "reference")


class Choice(NamedTuple):
    """A backend, and why it was taken."""

    name: str
    reason: str


def rejection(
    name: str, device_type: str, dtype: torch.dtype, decoding: bool = False, solver: str = "auto"
) -> str | None:
    """Why a backend cannot take these operands, or None if it can."""
    backend = BACKENDS[name]
    if backend.devices is not None and device_type not in backend.devices:
        return f"backend {name!r} runs on {' or '.join(backend.devices)}, not on {device_type}"
    if dtype not in backend.dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in backend.dtypes)
        return f"backend {name!r} takes {names}, not {str(dtype).removeprefix('torch.')}"
    if backend.decodes_only and not decoding:
        return f"backend {name!r} takes only up to {MAX_DECODE_QUERIES} queries a sequence, over a cache"
    if solver not in backend.solvers and not decoding:
        return f"backend {name!r} has no solver {solver!r}, only {' and '.join(map(repr, backend.solvers))}"
    return backend.missing()


def choose(
    requested: str, device_type: str, dtype: torch.dtype, decoding: bool = False, solver: str = "auto"
) -> Choice:
    """The backend for operands of this device and dtype, a solver, and a call that decodes or does not.

    A backend that the caller names is taken or refused, never replaced; ``"auto"`` follows
    ``FLASHLLA_BACKEND`` if that is set, and takes the first backend that fits otherwise.

    Raises:
        ValueError: the name is unknown.
        NotImplementedError: the named backend does not take these operands.
    """
    reason = "named by the caller"
    if requested == "auto" and (named := _env.backend()):
        requested, reason = named, "named by FLASHLLA_BACKEND"
    if requested not in NAMES:
        raise ValueError(f"backend={requested!r} is unknown; choose one of {', '.join(NAMES)}")
    if requested == "reference":
        return Choice(requested, reason)
    if requested != "auto":
        why_not = rejection(requested, device_type, dtype, decoding, solver)
        if why_not:
            raise NotImplementedError(f"{why_not}; use backend='auto'")
        return Choice(requested, reason)
    passed_over: list[str] = []
    for name, backend in BACKENDS.items():
        why_not = rejection(name, device_type, dtype, decoding, solver)
        if why_not is None and device_type in backend.named_only:
            why_not = f"{name!r} is taken on {device_type} only by name"
        if why_not is None:
            return Choice(name, "; ".join([*passed_over, f"{name!r} fits: {backend.summary}"]))
        passed_over.append(why_not)
    raise NotImplementedError(f"no backend takes {dtype} on {device_type}: {'; '.join(passed_over)}")


@cache  # no backend comes or goes while a process runs
def _chosen_name(requested: str, device_type: str, dtype: torch.dtype, decoding: bool, solver: str) -> str:
    return choose(requested, device_type, dtype, decoding, solver).name


def choose_name(
    requested: str, device_type: str, dtype: torch.dtype, decoding: bool = False, solver: str = "auto"
) -> str:
    """The name alone, as a constant to compilers: the choice imports modules, which they cannot trace."""
    if requested == "auto":
        requested = _env.backend() or requested
    return _chosen_name(str(requested), device_type, dtype, decoding, solver)


# What torch.compiler.assume_constant_result sets, without the import of the whole compiler that it costs.
choose_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def load(name: str) -> ModuleType:
    """Import the module of a backend; kernels load on first use."""
    return importlib.import_module(BACKENDS[name].module)
