"""Every Python block of the README and of docs/ runs; commands, links and make targets in them exist.

The pages that add something to the library are in test_tutorials.py.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flashlla import cli, models

ROOT = Path(__file__).parents[2]
NAMES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language):
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [
        pytest.param(code, id=f"{page.name}-{number}")
        for page in PAGES
        if language != "python" or not page.name.startswith("adding-")
        for number, code in enumerate(fence.findall(page.read_text()), 1)
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("code", blocks("python"))
def test_python_block_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "<documentation>", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("script", blocks("shell"))
def test_shell_block_names_what_exists(script):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in script.splitlines():
        command, *arguments = shlex.split(line, comments=True)
        if command == "make":
            assert {a for a in arguments if "=" not in a} <= targets, line
        elif command == "flashlla":
            cli._parser().parse_args(arguments)  # exits if the command or an option is unknown
        elif command == "pytest":
            assert all((ROOT / a).exists() for a in arguments if a.startswith("tests")), line
        elif command == "torchrun":
            assert arguments == ["--nproc-per-node=2", "train.py"], line  # run below
        else:
            assert (command, arguments[0]) == ("pip", "install"), line


@pytest.mark.slow  # tests/models/training/test_parallel.py holds two processes to one in every form
def test_the_example_for_two_processes_gives_what_one_process_gives(tmp_path):
    page = (ROOT / "docs" / "examples.md").read_text()
    code, command = re.search(
        r"^```python\n((?:(?!```).)*?)^```\n+```shell\n(torchrun .*?)\n```", page, re.MULTILINE | re.DOTALL
    ).groups()
    weights = {}
    for name, start in (("one", []), ("two", ["-m", "torch.distributed.run", *shlex.split(command)[1:-1]])):
        (folder := tmp_path / name).mkdir()
        (folder / "train.py").write_text(code)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PET_STANDALONE": "1"}  # its own port
        run = subprocess.run(
            [sys.executable, *start, "train.py"], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        weights[name] = models.load_model(folder / "run" / "model").state_dict()
    for name, t in weights["one"].items():
        torch.testing.assert_close(weights["two"][name], t, atol=1e-3, rtol=0)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mentioned_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", page.read_text())) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = [*re.findall(r"\]\(([^)#]+)\)", text), *re.findall(r'(?:src|srcset)="([^"]+)"', text)]
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing
