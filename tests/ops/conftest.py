"""Every test of this folder that takes ``backend`` runs on each of them. None is ever skipped: a compiled
extension that does not load is a failure."""

from __future__ import annotations

import pytest

BACKENDS = ("blockwise", "cpu")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param
