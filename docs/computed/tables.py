"""Tables that follow from committed results: shares of the error budget, predictions beside measurements, and
tokens a second.
"""

from __future__ import annotations

from _tables import markdown_table
from decode import lower_bounds
from gpu.decode import Shape
from gpu_tables import DIRECTIONS, rows

LENGTH = 4096
WAYS = {
    "no cache": "a forward pass over the whole text for every token",
    "static": '`cache="static"`',
    "growing": '`cache="growing"`',
    "paged": '`cache="paged"`',
    "static, compiled": '`cache="static"`, `compile=True`, compiled before',
}


def tables(content: dict, of_cpu: dict) -> dict[str, str]:
    """Tables by their markers, from a GPU run and from ``make bench``."""
    return {
        "generation": generation(of_cpu),
        "gpu-budget": budget(content),
        "predicted-rate": rate(content),
        "predicted-iterations": iterations(content),
        "predicted-decode": decoding(content),
    }


def generation(content: dict) -> str:
    """Tokens a second by kind of cache and of step."""
    timed = (row for row in content["rows"] if row["topic"] == "Generation, tokens a second")
    found = {row["name"]: row["measured"] for row in timed}
    lines = [
        [what, *(f"{found[f'{mixer}, {way}']:.0f}" for mixer in ("lla", "softmax"))]
        for way, what in WAYS.items()
    ]
    return markdown_table(["tokens a second", "LLA", "softmax"], lines)


def budget(content: dict) -> str:
    """The largest share of the budget that a check of exact LLA took, by dtype, ridge and data."""
    checks = [row for row in rows(content, "checks") if row["kind"] == "lla" and row["variation"] == "plain"]
    data = list(dict.fromkeys(row["data"] for row in checks))
    lines = []
    for dtype, ridge in dict.fromkeys((row["dtype"], row["ridge"]) for row in checks):
        own = [row for row in checks if (row["dtype"], row["ridge"]) == (dtype, ridge)]
        cells = [_worst([row["over_ceiling"] for row in own if row["data"] == kind]) for kind in data]
        lines.append([dtype, f"{ridge:g}", *cells])
    return markdown_table(["dtype", "ridge", *data], lines)


def _worst(shares: list[dict[str, float]]) -> str:
    """Of the output, and of any gradient."""
    gradients = (share for found in shares for name, share in found.items() if name != "out")
    return f"{max(found['out'] for found in shares):.2g} / {max(gradients):.2g}"


def rate(content: dict) -> str:
    """Time that the products of a pass take at the rate of a matrix product, and the time of the pass."""
    lines = []
    for row in rows(content, "speed"):
        if row["n"] != LENGTH or "share_executed" not in row or row.get("rtol"):
            continue
        predicted = row["ms"] * row["share_executed"]
        lines.append(
            [
                row["contender"],
                str(row["d"]),
                row["direction"],
                f"{row['products_executed']:.1f}",
                f"{predicted:.2f}",
                f"{row['ms']:.2f}",
                f"{row['ms'] / predicted:.1f}",
            ]
        )
    return markdown_table(["", "d", "pass", "products", "predicted ms", "measured ms", "ratio"], lines)


def iterations(content: dict) -> str:
    """Iterations until a tile of rows has converged, d=64: by length."""
    found = {
        (row["ridge"], row["rtol"] or 1e-4, row["n"]): row["iterations"]["tiles"]
        for row in rows(content, "speed")
        if row["kind"] == "lla" and row["d"] == 64 and row["direction"] == DIRECTIONS[0]
    }
    lengths = sorted({n for *_, n in found})
    lines = []
    for (ridge, rtol), predicted in PREDICTED_ITERATIONS.items():
        cells = [f"{found[ridge, rtol, n]:.1f}" for n in lengths]
        lines.append([f"{ridge:g}", f"{rtol:.0e}", f"{predicted:.1f}", *cells])
    measured = (f"measured, n={n}" for n in lengths)
    return markdown_table(["ridge", "rtol", "predicted, n=512", *measured], lines)


# Of the slowest row of a tile of 64, iid, two terms: the table of bench/rounding.py in docs/numerics.md.
PREDICTED_ITERATIONS = {(1.0, 1e-3): 8.4, (1.0, 1e-4): 10.6, (0.1, 1e-3): 18.1, (0.1, 1e-4): 23.3}


def decoding(content: dict) -> str:
    """Microseconds of a step of decoding: the lower bound, and what was measured over it in brackets."""
    timed = [row for row in rows(content, "decode") if "ms" in row]
    found = {(row["heads"], row["batch"], row["length"], row["contender"]): 1e3 * row["ms"] for row in timed}
    lines = []
    for heads, batch, length in sorted({key[:3] for key in found}):
        if length < LENGTH:
            continue
        bounds = lower_bounds(Shape(batch, heads, 8, length))
        softmax, lla = 1e6 * bounds["softmax"], 1e6 * max(bounds["memory"], bounds["products"])
        cells = [f"{softmax:.1f}", _over(found[heads, batch, length, "sdpa"], softmax), f"{lla:.1f}"]
        cells += [_over(found[heads, batch, length, f"lla, {name}"], lla) for name in ("triton", "cuda")]
        lines.append([f"{heads}/8", str(batch), str(length), *cells])
    header = ["heads", "batch", "keys", "softmax, bound", "PyTorch", "lla, bound", "lla, triton", "lla, cuda"]
    return markdown_table(header, lines)


def _over(measured: float, bound: float) -> str:
    return f"{measured:.0f} ({measured / bound:.1f})"
