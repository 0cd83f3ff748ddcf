"""The pages that add something: their files become part of the package, their other blocks run in order."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from flashlla.experiments.common import figures, registry
from flashlla.experiments.common.sweep import Sweep, compute

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"(?:^`([\w/]+\.py)`\n\n)?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PACKAGES = {  # that the files of a page join
    "flashlla/ops": "flashlla.ops",
    "models/mixers": "flashlla.models.mixers",
    "experiments": "flashlla.experiments",
}


@pytest.fixture
def joined(tmp_path, monkeypatch):
    """The blocks of a page that are no files; those that are have joined the package."""
    before = set(sys.modules)

    def join(page: str) -> list[str]:
        rest = []
        for name, code in BLOCK.findall((DOCS / page).read_text()):
            if name:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(code)
            else:
                rest.append(code)
        for folder, package in PACKAGES.items():
            module = importlib.import_module(package)
            monkeypatch.setattr(module, "__path__", [*module.__path__, str(tmp_path / folder)])
        importlib.invalidate_caches()
        return rest

    yield join
    for name in sorted(set(sys.modules) - before, reverse=True):  # what is in a package before the package
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
            parent, _, child = name.rpartition(".")
            vars(sys.modules[parent]).pop(child, None)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("adding-*.md")))
def test_a_page_runs_from_top_to_bottom(page, joined):
    namespace = {"__name__": "__main__"}
    for number, code in enumerate(joined(page), 1):
        exec(compile(code, f"<{page}, block {number}>", "exec"), namespace)


def test_the_experiment_of_the_page_is_found_computed_and_judged(joined, tmp_path):
    joined("adding-an-experiment.md")
    assert "boundary" in registry.names()
    experiment = registry.load("boundary")
    sweep = Sweep(experiment, experiment.presets["smoke"], tmp_path / "sweep")
    table = sweep.run(lambda name, jobs: ((key, compute(name, *job)) for key, *job in jobs))
    assert len(sweep.trials) == 16 and len(table) == 32 and sweep.pending() == []
    assert list(experiment.summary(table)["mixer"]) == ["lla", "softmax"]
    assert set(figures.draw(experiment, table)) == {"error"}
    (claim,) = experiment.claims
    assert claim.judge(table).outcome == "supported"
    assert claim.judge(table[table["mixer"] == "lla"]).outcome == "inconclusive"
    assert claim.judge(table.assign(error=1.0)).outcome == "not supported"
