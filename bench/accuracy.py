"""Measured errors, and what a looser tolerance buys: the tables of docs/numerics.md.

    .venv/bin/python bench/accuracy.py

Writes ``bench/results/<machine>/accuracy.json`` and the tables between the markers of the page.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings

import torch
from _common import (
    HEAD_DIM,
    ROOT,
    describe,
    machine,
    markdown_table,
    replace_between_markers,
    results_folder,
    save_json,
)

from flashlla import lla_attention, lla_attention_with_stats
from flashlla.functional import DEFAULT_RTOL
from flashlla.testing.numerics import ceiling, error_norm_ratio, evaluate, exact
from flashlla.testing.problems import DATA, random_operands

PAGE = ROOT / "docs" / "numerics.md"
RIDGES = (10.0, 1.0, 0.1, 0.01)
BEYOND = 0.001  # a ridge without a budget
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SOLVERS = ("cg", "direct", "auto")
BACKENDS = ("cpu", "blockwise")
TOLERANCES = tuple(10.0**-digits for digits in range(1, 8))
ROUNDS = 11


def worst_gradient(errors: dict[str, float]) -> float:
    """The largest error of a gradient."""
    return max(error for name, error in errors.items() if name != "out")


def compare(actual: dict, exact: dict) -> tuple[float, float]:
    """Error norm ratio of the output, and the worst one of the gradients."""
    errors = {name: error_norm_ratio(actual[name], exact[name]) for name in exact}
    return errors["out"], worst_gradient(errors)


def within_budget(forward: float, gradient: float, dtype: torch.dtype, ridge: float) -> bool | None:
    """Whether both errors are within the budget; None where there is none."""
    if ridge < min(RIDGES):
        return None
    return forward <= ceiling(dtype, ridge) and gradient <= ceiling(dtype, ridge, gradient=True)


def measure_errors(n: int) -> list[dict]:
    """One entry for every data set, ridge, dtype, solver and backend."""
    entries = []
    for data, ridge, dtype in itertools.product(DATA, (*RIDGES, BEYOND), DTYPES):
        operands, do = random_operands(data, q_len=n, head_dim=HEAD_DIM, dtype=dtype, ridge=ridge)
        truth = exact(lla_attention, operands, do)
        for solver, backend in itertools.product(SOLVERS, BACKENDS):
            result = evaluate(lla_attention, operands, do, solver=solver, backend=backend)
            forward, gradient = compare(result, truth)
            entries.append(
                {
                    "data": data,
                    "ridge": ridge,
                    "dtype": str(dtype).removeprefix("torch."),
                    "solver": solver,
                    "backend": backend,
                    "forward": forward,
                    "gradient": gradient,
                    "within_budget": within_budget(forward, gradient, dtype, ridge),
                }
            )
        print(data, ridge, dtype, flush=True)
    return entries


def error_table(entries: list[dict]) -> str:
    """Rows by data, ridge and solver; a column for every backend and dtype."""
    columns = list(dict.fromkeys((e["backend"], e["dtype"]) for e in sorted(entries, key=_backend_order)))
    cells: dict[tuple, dict[tuple, str]] = {}
    for e in entries:
        row = cells.setdefault((e["data"], f"{e['ridge']:g}", e["solver"]), {})
        mark = " **over**" if e["within_budget"] is False else ""
        row[e["backend"], e["dtype"]] = f"{e['forward']:.1e} / {e['gradient']:.1e}{mark}"
    header = ["data", "ridge", "solver", *(f"{backend}, {dtype}" for backend, dtype in columns)]
    return markdown_table(header, [[*key, *(row[c] for c in columns)] for key, row in cells.items()])


def _backend_order(entry: dict) -> int:
    return BACKENDS.index(entry["backend"])


def measure_tolerances(n: int, heads: int) -> list[dict]:
    """One entry for every ridge and tolerance: time over that of the default, iterations, errors."""
    entries = []
    for ridge in RIDGES:
        operands, do = random_operands(
            "iid", q_len=n, heads=heads, head_dim=HEAD_DIM, ridge=ridge, gate=False
        )
        wide = {name: t.double() for name, t in operands.items()}
        truth = evaluate(lla_attention, wide, do.double(), backend="blockwise", rtol=1e-10)
        seconds = time_tolerances(operands)
        for rtol in TOLERANCES:
            options = {"rtol": rtol, "backend": "cpu"}
            forward, gradient = compare(evaluate(lla_attention, operands, do, **options), truth)
            iterations = lla_attention_with_stats(**operands, **options).iterations
            entries.append(
                {
                    "ridge": ridge,
                    "rtol": rtol,
                    "iterations": float(iterations[iterations > 0].double().mean()),
                    "time_over_default": seconds[rtol] / seconds[None],
                    "forward": forward,
                    "gradient": gradient,
                }
            )
        print("tolerances at ridge", ridge, flush=True)
    return entries


def time_tolerances(operands: dict) -> dict[float | None, float]:
    """Fastest time of a forward pass for every tolerance and for the default (None), taken in turn."""
    times: dict[float | None, list[float]] = {rtol: [] for rtol in (None, *TOLERANCES)}
    for _, rtol in itertools.product(range(1 + ROUNDS), times):
        start = time.perf_counter()
        evaluate(lla_attention, operands, rtol=rtol, backend="cpu")
        times[rtol].append(time.perf_counter() - start)
    return {rtol: min(measured[1:]) for rtol, measured in times.items()}


def tolerance_table(entries: list[dict]) -> str:
    """Rows by ridge and tolerance."""
    header = ["ridge", "rtol", "iterations", "time over default", "error, forward", "error, gradients"]
    rows = [
        [
            f"{e['ridge']:g}",
            f"{e['rtol']:.0e}",
            f"{e['iterations']:.1f}",
            f"{e['time_over_default']:.2f}",
            f"{e['forward']:.1e}",
            f"{e['gradient']:.1e}",
        ]
        for e in entries
    ]
    return markdown_table(header, rows)


def error_section(entries: list[dict], n: int, this: dict) -> str:
    """The table of errors and what was measured."""
    budgeted = [e["within_budget"] for e in entries if e["within_budget"] is not None]
    return (
        f"\nn={n}, one head, d={HEAD_DIM}, a gate of its own for every row; forward / worst gradient. "
        f"{sum(budgeted)} of the {len(budgeted)} with a budget are within it.\n"
        f"{describe(this)}\n\n{error_table(entries)}\n"
    )


def tolerance_section(entries: list[dict], n: int, heads: int, this: dict) -> str:
    """The table of tolerances and what was measured."""
    return (
        f"\nn={n}, {heads} heads, d={HEAD_DIM}, iid, float32, backend `cpu`, solver `auto`, one thread; the "
        f"default is {DEFAULT_RTOL[torch.float32]:g}.\n{describe(this)}\n\n{tolerance_table(entries)}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short sequences; tables are printed, not saved")
    quick = parser.parse_args().quick
    warnings.filterwarnings("ignore", "Converting a tensor with requires_grad=True to a scalar")
    torch.set_num_threads(1)
    this = machine()
    n, timed = (96, (128, 1)) if quick else (512, (1024, 4))
    tolerances = measure_tolerances(*timed)
    errors = measure_errors(n)
    sections = {
        "accuracy": error_section(errors, n, this),
        "tolerances": tolerance_section(tolerances, *timed, this),
    }
    if quick:
        print(*sections.values())
        return
    path = results_folder() / "accuracy.json"
    save_json(path, {"machine": this, "errors": errors, "tolerances": tolerances})
    for marker, text in sections.items():
        replace_between_markers(PAGE, marker, text)


if __name__ == "__main__":
    main()
