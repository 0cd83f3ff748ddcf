"""Decoding: the table of one step over caches of many shapes.

    python bench/decode.py [--out FOLDER] [--quick] [--minutes 9] [--device cuda]
    python bench/decode.py --predict

On a GPU it measures the Triton and the CUDA kernels against PyTorch's softmax attention and a copy, and saves
``decode.json`` under ``bench/results/<device>``. ``--predict`` needs none: it derives lower bounds from bytes
and operations, and writes them into docs/performance.md as what they are. Where the kernels stand on a CPU is
measured by ``make bench``.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

from _tables import markdown_table
from gpu.tree import ROOT, make_importable

STARTED = time.monotonic()
PAGE = ROOT / "docs" / "performance.md"
# H200 SXM by its data sheet: bytes a second, and operations a second of dense float16 tensor cores.
BANDWIDTH, RATE = 4.8e12, 9.89e14
HEADER = ["heads", "batch", "keys", "softmax us", "lla us", "lla / softmax", "bound by"]


def split_size(keys: int) -> int:
    """The rule of ``flashlla.ops.triton.cached``."""
    size = 1024
    while size * 8 < keys and size < 4096:
        size *= 2
    return size


def lower_bounds(shape) -> dict[str, float]:
    """Seconds that a step cannot go below: softmax, and LLA by memory and by tensor cores.

    LLA writes and reads the state of every split (``2 d^2`` float32 numbers), and takes ``2 d^2``
    multiply-adds a key and query head: the moments of keys with keys and of values with keys.
    """
    d, rows = shape.dim, shape.batch * shape.heads
    splits = math.ceil(shape.length / split_size(shape.length))
    state = 2 * 4 * 2 * d * d * rows * splits
    return {
        "softmax": shape.bytes / BANDWIDTH,
        "memory": (shape.bytes + state) / BANDWIDTH,
        "products": 4 * d * d * rows * shape.length / RATE,
    }


def predictions() -> str:
    """The table of lower bounds."""
    from gpu.decode import Shape

    lines = []
    for heads in (8, 32):
        for batch in (1, 8, 32, 128):
            for length in (4096, 16384, 65536):
                bounds = lower_bounds(Shape(batch, heads, 8, length))
                lla = max(bounds["memory"], bounds["products"])
                by = "memory" if bounds["memory"] == lla else "tensor cores"
                cells = [f"{heads}/8", str(batch), str(length), f"{bounds['softmax'] * 1e6:.1f}"]
                lines.append([*cells, f"{lla * 1e6:.1f}", f"{lla / bounds['softmax']:.2f}", by])
    return markdown_table(HEADER, lines)


def measured(session) -> str:
    """The table of a run."""
    from gpu.decode import PUBLISHED

    lines = []
    for row in session.rows("decode"):
        if "length" not in row:
            continue
        published = PUBLISHED.get((row["batch"], row["length"])) if row["heads"] == 8 else None
        us = "-" if "ms" not in row else f"{row['ms'] * 1e3:.1f}"
        ratio, share = row.get("over_sdpa"), row.get("bandwidth_share")
        lines.append(
            [
                row["contender"],
                f"{row['heads']}/{row['kv_heads']}",
                str(row["batch"]),
                str(row["length"]),
                us,
                "-" if ratio is None else f"{ratio:.2f}",
                "-" if share is None else f"{100 * share:.0f} %",
                "-" if published is None else " / ".join(f"{t:g}" for t in published),
                row.get("refused") or row.get("failed") or "",
            ]
        )
    head = [
        "contender",
        "heads",
        "batch",
        "keys",
        "us",
        "/ sdpa",
        "of copy",
        "published FA2 / FA3 / Parallax",
        "",
    ]
    return markdown_table(head, lines)


def main() -> None:
    """Measure or predict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predict", action="store_true", help="lower bounds from counts, on any machine")
    parser.add_argument("--out", type=Path, help="folder for decode.json")
    parser.add_argument("--quick", action="store_true", help="few shapes")
    parser.add_argument("--minutes", type=float, default=9.0, help="how long it may take (default: 9)")
    parser.add_argument(
        "--device", default="cuda", help="cuda, cuda:1, ..., or cpu (interpreted, with --quick)"
    )
    options = parser.parse_args()
    make_importable()
    if options.predict:
        from _common import replace_between_markers

        table = predictions()
        replace_between_markers(PAGE, "decode-bounds", table)
        print(table)
        return
    from gpu_run import checked_device

    try:
        device = checked_device(options.device, options.quick)
    except ValueError as error:
        parser.error(f"{error}; --predict needs no GPU")
    from gpu import decode
    from gpu.session import Session

    session = Session(device, options.quick, options.minutes, options.out, STARTED)
    if session.path is not None:
        session.path = session.path.with_name("decode_quick.json" if options.quick else "decode.json")
    session.section("decode", decode.measure)
    print(measured(session))


if __name__ == "__main__":
    main()
