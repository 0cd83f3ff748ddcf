"""The bars: goals that were set beforehand, and what was measured of each."""

from __future__ import annotations

from collections.abc import Callable

from _tables import markdown_table

from gpu import speed
from gpu.counts import USEFUL
from gpu.speed import BOTH, FORWARD

HEADER = ["what", "measured", "bar", ""]


def bar(what: str, measured: float | None, bound: float, at_least: bool, unit: str = "") -> dict:
    """One row; ``met`` is None where nothing was measured."""
    sign = ">=" if at_least else "<="
    met = None if measured is None else (measured >= bound if at_least else measured <= bound)
    return {"what": what, "measured": measured, "bar": f"{sign} {bound:g}{unit}", "unit": unit, "met": met}


def compute(session) -> None:
    """All bars, each at the longest sequence at which everything it needs was timed.

    The interpreter says nothing of speed, so what it measures is not judged.
    """
    dims = speed.sizes(session)[0]
    session.bars = [row for dim in dims for row in (*_published(session, dim), *_rates(session, dim))]
    session.bars += [*_memory(session), *_decode(session)]
    if session.interpreted:
        session.bars = [{**row, "met": None} for row in session.bars]


def table(bars: list[dict]) -> str:
    """What is printed last."""
    verdict = {True: "met", False: "MISSED", None: "not judged"}
    rows = []
    for row in bars:
        missing = row["measured"] is None
        measured = "-" if missing else f"{row['measured']:.3g}{row['unit']}"
        rows.append([row["what"], measured, row["bar"], "not measured" if missing else verdict[row["met"]]])
    return markdown_table(HEADER, rows)


# ---- speed -----------------------------------------------------------------------------------------------


def _longest(session, dim: int, direction: str, *names: str) -> tuple[int | None, list[dict]]:
    """The longest length at which all these contenders were timed, and their rows there."""
    rows = {
        (row["contender"], row["n"]): row
        for row in speed.rows(session)
        if row["d"] == dim and row["direction"] == direction and "ms" in row and "failed" not in row
    }
    common = [n for _, n in rows if all((name, n) in rows for name in names)]
    return (max(common), [rows[name, max(common)] for name in names]) if common else (None, [])


def _at(dim: int, n: int | None) -> str:
    return f"d={dim}" if n is None else f"d={dim}, n={n}"


def _published(session, dim: int) -> list[dict]:
    """Time over ours, at the tolerance by default, and error over ours."""
    bars = []
    for ridge, bound in ((1.0, 5.0), (0.1, 2.0)):
        n, rows = _longest(session, dim, BOTH, "published", f"lla, ridge {ridge:g}")
        ratio = rows[0]["ms"] / rows[1]["ms"] if rows else None
        what = f"published / ours, time, forward and backward, ridge {ridge:g}, {_at(dim, n)}"
        bars.append(bar(what, ratio, bound, True, "x"))
    out = {
        row["way"]: row.get("out")
        for row in session.rows("accuracy")
        if row["d"] == dim and row["ridge"] == 0.1
    }
    known = out.get("published") is not None and out.get("lla")
    ratio = out["published"] / out["lla"] if known else None
    bars.append(bar(f"published / ours, error, forward, ridge 0.1, d={dim}", ratio, 100.0, True, "x"))
    return bars


def _rates(session, dim: int) -> list[dict]:
    """Time over that of PyTorch's flash kernel, as a multiple of the products; share of the matmul rate."""
    bars = []
    for name in ("softmax", "parallax", "lla, ridge 1", "lla, ridge 0.1"):
        n, rows = _longest(session, dim, FORWARD, "sdpa flash", name)
        for count in ("executed", "useful"):
            ratio = None
            if rows:
                more = rows[1][f"products_{count}"] / USEFUL["softmax"][0]
                ratio = rows[1]["ms"] / rows[0]["ms"] / more
            what = f"{name} / sdpa flash, time over products {count}, forward, {_at(dim, n)}"
            bars.append(bar(what, ratio, 1.5, False, "x"))
    for name in ("lla, ridge 1", "lla, ridge 0.1"):
        n, rows = _longest(session, dim, BOTH, name)
        for count in ("executed", "useful"):
            share = 100 * rows[0][f"share_{count}"] if rows else None
            what = (
                f"{name}, products {count} as a share of the matmul rate, forward and backward, {_at(dim, n)}"
            )
            bars.append(bar(what, share, 40.0, True, " %"))
    return bars


# ---- decoding ---------------------------------------------------------------------------------------------


def _decode(session) -> list[dict]:
    """The worst of all shapes that a bar is about, for every kernel for exact LLA."""
    timed = [row for row in session.rows("decode") if "ms" in row and "failed" not in row]
    bars = []
    for name in dict.fromkeys(row["contender"] for row in timed if row["contender"].startswith("lla")) or [
        "lla"
    ]:
        own = [row for row in timed if row["contender"] == name]
        for heads in (8, 32):
            ratios = [row["over_sdpa"] for row in own if row["heads"] == heads and row["length"] >= 4096]
            what = f"{name} / sdpa, time of a step, {heads}/8 heads, worst from 4096 keys on"
            bars.append(bar(what, max(ratios, default=None), 1.5, False, "x"))
        shares = [
            100 * row["bandwidth_share"]
            for row in own
            if row["batch"] * row["heads"] >= 256 and row["length"] == 16384
        ]
        what = f"{name}, share of copy bandwidth, batch * heads >= 256, 16384 keys, worst"
        bars.append(bar(what, min(shares, default=None), 60.0, True, " %"))
    solves = [1e3 * row["kernels"]["solve"] for row in timed if row["batch"] == 1 and "kernels" in row]
    bars.append(bar("solve of one step, batch 1", max(solves, default=None), 10.0, False, " us"))
    return bars


# ---- memory ----------------------------------------------------------------------------------------------


def _first(rows: list[dict], wanted: Callable[[dict], bool]) -> dict:
    return next((row for row in rows if wanted(row)), {})


def _memory(session) -> list[dict]:
    bars = []
    for name in ("softmax", "parallax", "lla, ridge 1"):
        ours, flash = (
            _first(session.rows("memory"), lambda r, c=c: (r["contender"], r["direction"]) == (c, BOTH)).get(
                "bytes"
            )
            for c in (name, "sdpa flash")
        )
        ratio = ours / flash if ours is not None and flash else None
        what = f"{name} / sdpa flash, peak memory beyond operands and results, forward and backward"
        bars.append(bar(what, ratio, 3.0, False, "x"))
    long = _first(session.rows("long"), lambda row: "refused" not in row)
    ran = float("ms" in long) if long else None
    bars.append(
        bar(
            f"lla, forward and backward at n={long.get('n', 131072)} runs and is right (1 is yes)",
            ran,
            1.0,
            True,
        )
    )
    return bars
