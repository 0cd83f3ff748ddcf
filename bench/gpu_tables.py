"""Tables of docs/performance.md from the results of ``bench/gpu_run.py``.

python bench/gpu_tables.py bench/results/nvidia-h200/gpu.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from _common import ROOT, replace_between_markers
from _tables import markdown_table

PAGE = ROOT / "docs" / "performance.md"
DIRECTIONS = ("forward", "forward and backward")


def main() -> None:
    """Replace the tables of the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="the file of a run")
    path = parser.parse_args().results
    if not path.is_file():
        parser.error(f"{path} is no file; bench/gpu_run.py writes one on a machine with a GPU")
    content = json.loads(path.read_text())
    if content["interpreted"] or content["quick"]:
        parser.error(f"{path} is of an interpreted or a quick run, whose times mean nothing")
    for marker, table in (("gpu-speed", speed), ("gpu-memory", memory), ("gpu-decode", decode)):
        replace_between_markers(PAGE, marker, table(content))


def rows(content: dict, *sections: str) -> list[dict]:
    """What was measured in some sections."""
    found = (row for name in sections for row in content["sections"].get(name, {"rows": []})["rows"])
    return [row for row in found if "refused" not in row and "failed" not in row]


def speed(content: dict) -> str:
    """Milliseconds, contenders down; head dimensions, lengths and directions across."""
    timed = rows(content, "speed", "more speed")
    cells = {(row["contender"], row["d"], row["n"], row["direction"]): f"{row['ms']:.2f}" for row in timed}
    sizes = sorted({(row["d"], row["n"]) for row in timed})
    lines = [
        [name, *(" / ".join(cells.get((name, *size, way), "-") for way in DIRECTIONS) for size in sizes)]
        for name in dict.fromkeys(row["contender"] for row in timed)
    ]
    return markdown_table(["ms", *(f"d={dim}, n={n}" for dim, n in sizes)], lines)


def memory(content: dict) -> str:
    """Bytes at the peak beyond operands and results, in multiples of q."""
    cells = {(row["contender"], row["direction"]): row["times_q"] for row in rows(content, "memory")}
    lines = [
        [name, *(f"{cells[name, way]:.2f}" for way in DIRECTIONS)]
        for name in dict.fromkeys(name for name, _ in cells)
    ]
    return markdown_table(["times q", *DIRECTIONS], lines)


def decode(content: dict) -> str:
    """Microseconds of a step, shapes down and contenders across, over softmax by PyTorch in brackets."""
    timed = [row for row in rows(content, "decode") if "ms" in row]
    names = list(dict.fromkeys(row["contender"] for row in timed))
    shapes = sorted({(row["heads"], row["batch"], row["length"]) for row in timed})
    cells = {(row["heads"], row["batch"], row["length"], row["contender"]): row for row in timed}
    lines = []
    for heads, batch, length in shapes:
        found = (cells.get((heads, batch, length, name)) for name in names)
        text = ["-" if row is None else _microseconds(row) for row in found]
        lines.append([f"{heads}/8", str(batch), str(length), *text])
    return markdown_table(["heads", "batch", "keys", *names], lines)


def _microseconds(row: dict) -> str:
    us, ratio = row["ms"] * 1e3, row["over_sdpa"]
    time = f"{us:.1f}" if us < 100 else f"{us:.0f}"
    return time if row["contender"] == "sdpa" else f"{time} ({ratio:.1f})"


if __name__ == "__main__":
    main()
