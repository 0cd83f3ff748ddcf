"""What is asked of CuPy, and what is said when it is not there."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from flashlla.ops.cuda import _kernels, _runtime

KERNEL = _kernels.Kernel("solved", True, 128, True, 3)
DEVICE = torch.device("cuda", 1)


class FakeCuPy(SimpleNamespace):
    """Writes down what is compiled and launched, and in which context."""

    def __init__(self):
        self.inside, self.compiled, self.launches = [], [], []
        self.cuda = SimpleNamespace(Device=self.context("device"), ExternalStream=self.context("stream"))

    def context(self, name):
        @contextlib.contextmanager
        def enter(*arguments):
            self.inside.append((name, *arguments))
            yield
            self.inside.pop()

        return enter

    def RawModule(self, code, options):
        self.compiled.append((code, options))
        return SimpleNamespace(get_function=self.function)

    def function(self, name):
        class Function:
            def __call__(_, grid, block, arguments, shared_mem):
                self.launches.append((name, grid, block, arguments, shared_mem, list(self.inside)))

        self.last = Function()
        return self.last


@pytest.fixture
def cupy(monkeypatch):
    fake = FakeCuPy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    _runtime._function.cache_clear()
    yield fake
    _runtime._function.cache_clear()


def test_a_launch(cupy):
    for _ in range(2):
        _runtime.launch(KERNEL, b"12345678", 5, DEVICE)
    assert len(cupy.compiled) == 1 and len(cupy.launches) == 2  # compiled once
    code, options = cupy.compiled[0]
    assert code == _kernels.source_text("decode_solved.cu") and '#include "' not in code
    assert {"-DFLASHLLA_PAD=128", "-DFLASHLLA_BF16=1", "-DFLASHLLA_STAGES=3"} < set(options)
    assert cupy.last.max_dynamic_shared_size_bytes == KERNEL.shared_bytes > _runtime.DEFAULT_SHARED_BYTES
    name, grid, block, (argument,), shared, inside = cupy.launches[0]
    assert (name, grid, block, shared) == (KERNEL.name, (5,), (KERNEL.threads,), KERNEL.shared_bytes)
    assert argument.size == 1 and argument.tobytes() == b"12345678"
    assert inside == [("device", 1), ("stream", 77, 1)]


def test_missing_names_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'flashlla[cuda]'" in _runtime.missing.__wrapped__()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "GPU" in _runtime.missing.__wrapped__()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    assert _runtime.missing.__wrapped__() is None


def test_old_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(NotImplementedError, match=r"8\.0 or higher, not 7\.5"):
        _runtime.shared_limit.__wrapped__(DEVICE)
