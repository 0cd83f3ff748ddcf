"""Metadata, contents and documentation of the package."""

import ast
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import flashlla
from flashlla import _doctor, _env

ROOT = Path(__file__).parents[2]
PUBLIC_MODULES = (
    "flashlla",
    "flashlla.nn",
    "flashlla.models",
    "flashlla.functional",
    "flashlla.testing.numerics",
)
SOURCES = [
    path for top in ("flashlla", "models", "experiments") for path in sorted((ROOT / top).rglob("*.py"))
]


def test_one_version():
    assert importlib.metadata.version("flashlla") == flashlla.__version__
    assert f"## [{flashlla.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_metadata():
    metadata = importlib.metadata.metadata("flashlla")
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    required = [Requirement(text) for text in importlib.metadata.requires("flashlla")]
    needed = {r.name for r in required if r.marker is None or "extra" not in str(r.marker)}
    assert needed == {"torch", "einops", "numpy", "triton"}
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="flashlla")
    assert command.value == "flashlla.cli:main"


def test_every_source_belongs_to_a_package():
    folders = {path.parent for path in SOURCES}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_every_package_imports():
    for name in ("flashlla.models", "flashlla.experiments"):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            importlib.import_module(module.name)


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_public_names_are_documented(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module)
    own = [
        n for n, thing in vars(module).items() if getattr(thing, "__module__", None) == name and n[0] != "_"
    ]
    public = [getattr(module, n) for n in getattr(module, "__all__", own)]
    classes_and_functions = [thing for thing in public if inspect.isclass(thing) or inspect.isroutine(thing)]
    assert classes_and_functions
    assert not [thing.__name__ for thing in classes_and_functions if not thing.__doc__]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_one_module_reads_the_environment(path):
    if path.name == "_env.py":
        return
    reads = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"))
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and {"environ", "getenv"} & {a.name for a in node.names}
        )
    ]
    assert not reads


def test_every_variable_is_documented_and_reported():
    variables = set(re.findall(r"FLASHLLA_[A-Z_]+", Path(_env.__file__).read_text()))
    documented = {
        name for page in ("backends", "install") for name in re.findall(r"FLASHLLA_[A-Z_]+", page_text(page))
    }
    assert variables == documented == set(_doctor.VARIABLES)


def page_text(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()
