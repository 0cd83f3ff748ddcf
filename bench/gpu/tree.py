"""Make flashlla importable from this checkout where it is not installed, without its compiled CPU kernels."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("models", "experiments")  # packages under flashlla whose folders lie beside it


def importable() -> bool:
    """Whether ``import flashlla.models`` would succeed; nothing is imported to find out."""
    package = importlib.util.find_spec("flashlla")
    if package is None:
        return False
    places = package.submodule_search_locations
    return any(finder.find_spec("flashlla.models", places) for finder in sys.meta_path)


def make_importable() -> None:
    """If need be, join the folders as the packages they are, by links in ``build/tree``."""
    if importable():
        return
    package = ROOT / "build" / "tree" / "flashlla"
    package.mkdir(parents=True, exist_ok=True)
    sources = [path for path in (ROOT / "flashlla").iterdir() if path.name != "__pycache__"]
    for source in [*sources, *(ROOT / name for name in FOLDERS)]:
        link = package / source.name
        if not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(source)
    sys.path.insert(0, str(package.parent))
    importlib.invalidate_caches()
