"""Checks of constructor arguments: what the functions would say at the first call is said at once."""

from __future__ import annotations

from flashlla import _backends, _validation


def check_sizes(**sizes: int) -> None:
    """Every size is an int of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{name} must be an int, got {type(size).__name__}")
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1")


def check_mask(causal: bool, window_size: int | None) -> None:
    """A window needs a causal mask."""
    _validation.check_options(1.0, causal, window_size, "auto", 0.5, 1)


def check_solver(solver: str, rtol: float | None, max_iters: int | None) -> None:
    """The name of the solver and its limits, None for the defaults."""
    rtol, max_iters = 0.5 if rtol is None else rtol, 1 if max_iters is None else max_iters
    _validation.check_options(1.0, True, None, solver, rtol, max_iters)


def check_backend(backend: str) -> None:
    """The name of a backend; whether it takes the operands shows at the call."""
    if backend not in _backends.NAMES:
        raise ValueError(f"backend={backend!r} is unknown; choose one of {', '.join(_backends.NAMES)}")
