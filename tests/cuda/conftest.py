"""Fixtures that put the emulation in the place of a GPU."""

from __future__ import annotations

import shutil

import pytest
from emulated import FEW_KEYS, SHARED, Emulation

from flashlla.ops.cuda import _kernels, _runtime


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> Emulation:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed here")
    return Emulation(tmp_path_factory.mktemp("emulation"))


@pytest.fixture
def emulation(compiled, monkeypatch) -> Emulation:
    compiled.order, compiled.shared, compiled.launched = 1, SHARED, []
    monkeypatch.setattr(_runtime, "launch", compiled.launch)
    monkeypatch.setattr(_runtime, "shared_limit", compiled.shared_limit)
    monkeypatch.setattr(_kernels, "MIN_SPLIT", FEW_KEYS)
    return compiled
