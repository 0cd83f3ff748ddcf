"""What a stranger gets: the sdist, the wheel that is built from it, and that wheel installed elsewhere."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("distribution")]

ROOT = Path(__file__).parents[2]
NO_SOURCES = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "*.so", "__pycache__")
PACKAGES = {
    "flashlla": "flashlla",
    "models": "flashlla/models",
    "experiments": "flashlla/experiments",
    "csrc": "flashlla/_csrc",
}
PACKED = (
    *("*.py", "_C.pyi", "py.typed"),
    *("*.cu", "include/flashlla/*"),
    *("report/*", "table.parquet", "command.txt"),
)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    ran = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    source = shutil.copytree(ROOT, folder / "source", ignore=NO_SOURCES)
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    run(sys.executable, "-c", build, cwd=source)
    (path,) = folder.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def built(sdist):
    """The wheel, and how many seconds of processors it took: other tests may run beside it."""
    pip = (sys.executable, "-m", "pip", "wheel", "--no-index", "--no-build-isolation", "--no-deps")
    before = os.times()
    run(*pip, "--wheel-dir", sdist.parent, sdist, cwd=sdist.parent)
    after = os.times()
    (path,) = sdist.parent.glob("*.whl")
    return path, sum(after[2:4]) - sum(before[2:4])


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Runs ``python`` in an empty folder, with the wheel in front of all that is installed here."""
    target, elsewhere = tmp_path_factory.mktemp("target"), tmp_path_factory.mktemp("elsewhere")
    pip = (sys.executable, "-m", "pip", "install", "--no-index", "--no-deps")
    run(*pip, "--target", target, built[0], cwd=elsewhere)

    def python(*words: str) -> str:
        return run(sys.executable, *words, cwd=elsewhere, PYTHONPATH=str(target))

    assert Path(python("-c", "import flashlla; print(flashlla.__file__)").strip()).is_relative_to(target)
    return python


def test_sdist_has_the_sources_and_no_more(sdist):
    with tarfile.open(sdist) as opened:
        files = {Path(*Path(member.name).parts[1:]) for member in opened if member.isfile()}
    assert {path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*") if path.is_file()} <= files
    assert {path.parts[0] for path in files if len(path.parts) > 1} == {*PACKAGES, "flashlla.egg-info"}


def test_wheel_has_what_is_imported_compiled_or_reported_and_no_more(built):
    with zipfile.ZipFile(built[0]) as opened:
        packed = {name for name in opened.namelist() if ".dist-info/" not in name}
    expected = {
        f"{package}/{path.relative_to(ROOT / folder)}"
        for folder, package in PACKAGES.items()
        for pattern in PACKED
        for path in (ROOT / folder).rglob(pattern)
        if path.is_file()
    }
    assert {"flashlla/py.typed", "flashlla/_C.pyi"} <= packed
    assert packed == {*expected, f"flashlla/_C{sysconfig.get_config_var('EXT_SUFFIX')}"}


def test_wheel_is_small_and_soon_built(built):
    path, seconds = built
    assert path.stat().st_size < 5e6
    assert seconds < 60


def test_installed_alone_it_computes(installed):
    installed(
        "-c",
        """
import torch, flashlla
q = torch.randn(1, 40, 2, 16, requires_grad=True)
flashlla.lla_attention(q, q, q, ridge=1.0, causal=True, backend="cpu").sum().backward()
assert q.grad.isfinite().all()
""",
    )


def test_installed_alone_its_commands_work(installed):
    report = installed("-m", "flashlla", "doctor")
    assert report.split("problems")[1].split() == ["none"]
    assert "transport" in installed("-m", "flashlla", "list")
