"""What all tests share: one thread, a seeded generator, poisoned memory, and the size of the fuzzing run."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# Before Triton is imported. What needs compiled kernels without a GPU runs in a process of its own.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

DEFAULT_FUZZ_CASES = 2000
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-cases",
        type=int,
        default=None,
        help=f"random calls in tests/fuzz, from a fresh seed (default: {DEFAULT_FUZZ_CASES} fixed ones)",
    )


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    if not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
        _prepare_language_once_a_launch()
    asked = config.getoption("--fuzz-cases")
    settings.register_profile(
        "fuzz",
        max_examples=asked or DEFAULT_FUZZ_CASES,
        derandomize=asked is None,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class SmallDisk:
    """A file system of its own, of four MiB."""

    def __init__(self, folder: Path):
        self.folder, self._ballast = folder, folder / "ballast"

    def fill(self, spare: int = 0) -> None:
        """Leave no more than some bytes free."""
        self.empty()
        found = os.statvfs(self.folder)
        self._ballast.write_bytes(bytes(found.f_bavail * found.f_frsize - spare))

    def fill_at(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Be full from the moment on when a file of this name, or with this ending, is to be replaced."""
        from flashlla import _files

        writing = _files.writing

        def fill_first(path: Path):
            if path.name.endswith(name):
                self.fill()
            return writing(path)

        monkeypatch.setattr(_files, "writing", fill_first)

    def empty(self) -> None:
        """Make room again."""
        self._ballast.unlink(missing_ok=True)

    def protect(self) -> None:
        """Let nothing be written from now on."""
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk that can be full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system can only be mounted by root, outside of a container")
    yield SmallDisk(folder)
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def generator() -> torch.Generator:
    """A generator with a fixed seed: tests draw from it, never from the global one."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def browser():
    """Chromium without a screen, for pages that are looked at."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("there is no browser: apt-get install chromium-headless-shell")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised memory holds NaN (floats) or a huge number (integers), so that reading it shows."""

    def poison(allocate):
        def allocate_and_fill(*args, **kwargs):
            t = allocate(*args, **kwargs)
            return t.fill_(torch.nan if t.is_floating_point() else torch.iinfo(t.dtype).max)

        return allocate_and_fill

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))


def _prepare_language_once_a_launch() -> None:
    """Keep Triton's interpreter from replacing ``triton.language`` anew for every call of a device function.

    Once a launch is enough; most of the time of small kernels went into it.
    """
    import triton
    from triton.runtime import interpreter

    prepare, prepared = interpreter._patch_lang, set()

    class Scope(interpreter._LangPatchScope):
        def restore(self) -> None:
            super().restore()
            prepared.clear()

    @functools.cache
    def languages(fn) -> frozenset[int]:
        known = (triton.language, triton.language.core)
        return frozenset(id(value) for value in fn.__globals__.values() if any(value is m for m in known))

    def prepare_once(fn) -> Scope:
        scope = Scope()
        if languages(fn) not in prepared:
            prepared.add(languages(fn))
            scope._changes = prepare(fn)._changes
        return scope

    interpreter._patch_lang = prepare_once
