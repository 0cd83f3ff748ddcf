"""The one place where kernels are launched, so that a tool can see what a call launches
(flashlla.testing.offline).
"""

from __future__ import annotations


def run(kernel, grid: int, *arguments, **constants) -> None:
    """Every launch of this backend goes through here."""
    kernel[(grid,)](*arguments, **constants)
