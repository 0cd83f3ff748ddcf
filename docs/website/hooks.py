"""The site is made of files where they lie in the repository, under the same paths.

So links between pages need no rewriting and work on a code host as well. What is left to do here: a page for
every experiment, and links that lead to a folder or to a file which is no page.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
INCLUDED = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    *("docs/*.md", "docs/images/*.png", "docs/website/*.css", "docs/website/*.svg"),
    *("experiments/*/README.md", *(f"experiments/*/results/small/*.{kind}" for kind in ("png", "gif"))),
)
OVERVIEW = "experiments/README.md"
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[([^\[\]]+)\]\(([^)\s#:]+)\)")
CELL = re.compile(r"<td>(.*?)</td>", re.DOTALL)
SHORT = 36  # letters of a cell that stays on one line
PICTURE = re.compile(r'<picture>.*?srcset="([^"]+)".*?src="([^"]+)"\s+alt="([^"]*)".*?</picture>', re.DOTALL)


def on_config(config):
    """A list of all experiments in place of the word in the navigation."""
    config.nav = [{k: papers() if v == "experiments" else v for k, v in item.items()} for item in config.nav]
    return config


def on_files(files, *, config):
    """The files of the repository in place of those of docs/; those of the theme stay."""
    found = Files([file for file in files if file.src_dir != config.docs_dir])
    for path in sorted(path for pattern in INCLUDED for path in ROOT.glob(pattern)):
        uri = path.relative_to(ROOT).as_posix()
        found.append(File(uri, str(ROOT), config.site_dir, config.use_directory_urls))
    found.append(File.generated(config, OVERVIEW, content=overview()))
    return found


def on_page_markdown(markdown, *, page, config, files):
    """Links and pictures of a page as the site needs them; code stays as it is."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]
    parts = FENCE.split(markdown)
    for i in range(0, len(parts), 2):
        parts[i] = PICTURE.sub(_two_pictures, parts[i])
        parts[i] = LINK.sub(lambda found: _link(found, page.file.src_uri, files), parts[i])
    return "".join(parts)


def on_page_content(html, *, page, config, files):
    """Short cells of tables with numbers stay on one line, long ones get some width: others scroll then."""
    return CELL.sub(_cell, html)


def _cell(found: re.Match) -> str:
    words = re.sub(r"<[^>]+>", "", found[1])
    kind = "long" if len(words) > SHORT else "number" if re.search(r"\d", words) else ""
    return f'<td class="{kind}">{found[1]}</td>' if kind else found[0]


def _link(found: re.Match, source: str, files: Files) -> str:
    """To the page of a folder; the name in place of a link to a file that is not part of the site."""
    text, target = found.groups()
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if files.get_file_from_path(f"{path}/README.md"):
        return f"[{text}]({target.rstrip('/')}/README.md)"
    if files.get_file_from_path(path) or not (ROOT / path).exists():
        return found[0]  # what leads nowhere is left to the strict mode
    name = text.strip("`")
    return f"`{path}`" if path.endswith(name) else f"{text} (`{path}`)"


def _two_pictures(found: re.Match) -> str:
    """By the palette of the site, which a reader may have chosen against that of the system."""
    dark, light, words = found.groups()
    alt = " ".join(words.split())
    return f"![{alt}]({light}#only-light)\n![{alt}]({dark}#only-dark)"


# ---- experiments -----------------------------------------------------------------------------------------


class Description(NamedTuple):
    """What an experiment says of itself in ``__init__.py``."""

    uri: str
    title: str
    paper: str
    question: str


def papers() -> list:
    """The navigation: a page an experiment, those of one paper together."""
    entries: list = [{"Overview": OVERVIEW}]
    for paper, group in by_paper():
        pages = [{entry.title: entry.uri} for entry in group]
        entries += pages if len(group) == 1 else [{paper: pages}]
    described = {entry.uri for _, group in by_paper() for entry in group}
    readmes = (path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("experiments/*/README.md")))
    return entries + [uri for uri in readmes if uri not in described]


def overview() -> str:
    """A page that lists them with what each asks."""
    lines = ["# Papers", "", "`flashlla run NAME` computes one anew, `flashlla report` shows all.", ""]
    for paper, group in by_paper():
        number = _arxiv(group[0].paper)
        link = f"[arXiv {number}](https://arxiv.org/abs/{number})" if number else group[0].paper
        lines += [f"## {paper}", "", link, ""]
        for entry in group:
            folder = entry.uri.split("/")[1]
            lines += [f"- [{entry.title}]({folder}/README.md) (`{folder}`): {entry.question}"]
        lines += [""]
    return "\n".join(lines)


def by_paper() -> list[tuple[str, list[Description]]]:
    """Experiments by the paper that each names first: the paper with most of them, then by number."""
    groups = defaultdict(list)
    for entry in descriptions():
        groups[_arxiv(entry.paper) or entry.paper].append(entry)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [(_name(group), group) for _, group in ordered]


def descriptions() -> list[Description]:
    """Read without an import, which would need torch."""
    found = []
    for init in sorted(ROOT.glob("experiments/*/__init__.py")):
        readme = init.with_name("README.md")
        calls = (node for node in ast.walk(ast.parse(init.read_text())) if isinstance(node, ast.Call))
        described = next((call for call in calls if getattr(call.func, "id", "") == "Experiment"), None)
        if described and readme.exists():
            said = {k.arg: k.value for k in described.keywords if k.arg in Description._fields}
            said = {name: ast.literal_eval(value) for name, value in said.items()}
            found.append(Description(readme.relative_to(ROOT).as_posix(), **said))
    return found


def _arxiv(paper: str) -> str:
    """The first number that a paper has there, "" if it has none."""
    found = re.search(r"\d{4}\.\d{5}", paper)
    return found[0] if found else ""


def _name(group: list[Description]) -> str:
    """The words in front of the number, or what its only experiment is called."""
    return group[0].paper.partition("arXiv")[0].rstrip(", ") or group[0].title
