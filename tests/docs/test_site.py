"""The site: built in strict mode, whole, and readable on a phone without anything from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ELSEWHERE = re.compile(
    r'<(?:script|img|link rel="(?:stylesheet|icon|preconnect)")[^>]*(?:src|href)="(?:https?:)?//'
)
WIDE = ("index.html", "docs/performance.html", "docs/semantics.html", "experiments/barl/index.html")

pytestmark = [
    pytest.mark.xdist_group("site"),
    pytest.mark.skipif(
        importlib.util.find_spec("material") is None,
        reason="mkdocs-material is not installed: pip install 'flashlla[docs]'",
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_every_page_is_there_and_in_the_navigation(site):
    home = (site / "index.html").read_text()
    pages = [path.relative_to(ROOT) for path in ROOT.glob("docs/*.md")]
    pages += [path.relative_to(ROOT).with_name("index.md") for path in ROOT.glob("experiments/*/README.md")]
    for page in pages:
        assert (site / page.with_suffix(".html")).is_file()
        assert f'href="{page.with_suffix(".html")}"' in home, page


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        assert not ELSEWHERE.search(page.read_text()), page


def test_tables_and_lists_are_what_they_are_on_a_code_host(site):
    """Another Markdown than that of code hosts wants a blank line in front of them."""
    for page in [*site.glob("docs/*.html"), *site.glob("experiments/**/*.html")]:
        assert not re.search(r"<p>(?:[^<]*\n)?(?:\||- )", page.read_text()), page


def test_pages_fit_a_phone(site, browser):
    page = browser.new_page(viewport={"width": 360, "height": 740}, is_mobile=True)
    for name in WIDE:
        page.goto((site / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 360, name
