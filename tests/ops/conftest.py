"""Every test of this folder that takes ``backend`` runs on each of them. None is ever skipped: a compiled
extension that does not load is a failure. Triton's kernels are left to machines with a GPU;
tests/interpreter has them elsewhere.
"""

from __future__ import annotations

import pytest

BACKENDS = ("blockwise", "cpu")
ON_A_GPU = pytest.param("triton", marks=pytest.mark.gpu)
# These call through flashlla.testing.numerics.evaluate, which takes the operands to the device of the
# backend.
WITH_TRITON = ("test_budget", "test_equalities", "test_nonfinite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Triton's kernels have no direct solver (and say so, see test_rejections)."""

    def taken(item: pytest.Item) -> bool:
        values = getattr(getattr(item, "callspec", None), "params", {})
        return (values.get("backend"), values.get("solver")) != ("triton", "direct")

    items[:] = [item for item in items if taken(item)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        more = (ON_A_GPU,) if metafunc.module.__name__ in WITH_TRITON else ()
        metafunc.parametrize("backend", (*BACKENDS, *more))
