"""What is computed in the pages, and what project files say of the package."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import flashlla

ROOT = Path(__file__).parents[2]


def test_tables_and_drawings_are_those_of_the_results_and_of_the_code():
    command = [sys.executable, str(ROOT / "docs" / "computed"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_citation_names_this_version_and_the_papers_of_the_readme():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert str(citation["version"]) == flashlla.__version__
    papers = (ROOT / "README.md").read_text().partition("## Papers")[2]
    titles = " ".join(papers.split())
    for paper in citation["references"]:
        assert f"*{paper['title']}*" in titles and f"({paper['url']})" in papers
    assert len(citation["references"]) == len(set(re.findall(r"arxiv\.org/abs/([\d.]+)", papers)))
