"""What is computed in the pages: tables from committed results, and drawings of masks.

    .venv/bin/python docs/computed [--check]

writes it between the markers of the pages, or with ``--check`` names what differs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import highlights  # noqa: E402
import masks  # noqa: E402
import tables  # noqa: E402

RESULTS = ("nvidia-h200/gpu.json", "amd-epyc-2-cores/cpu.json")  # whose numbers the pages show


def main() -> int:
    """Write or check; how many differ."""
    parser = argparse.ArgumentParser(prog="python docs/computed", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, name what differs")
    check = parser.parse_args().check
    differ = []
    results = [json.loads((ROOT / "bench" / "results" / name).read_text()) for name in RESULTS]
    computed = {**highlights.highlights(*results), **tables.tables(*results), **masks.drawings()}
    for page in sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))):
        before = text = page.read_text()
        for marker, content in computed.items():
            begin, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
            text = re.sub(f"{begin}.*?{end}", f"{begin}\n\n{content}\n\n{end}", text, flags=re.DOTALL)
        if text != before:
            differ.append(page.name)
            if not check:
                page.write_text(text)
    if differ:
        print(f"{'differ' if check else 'written'}: {', '.join(differ)}")
    return len(differ) if check else 0


if __name__ == "__main__":
    sys.exit(main())
