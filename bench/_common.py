"""What all benchmarks share: the machine, operands, checked results, interleaved timing, tables.

A benchmark compares contenders that ran in turn within one run, so that whatever else the machine does meets
all of them alike, and only after their results were held against float64.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import torch
from _tables import markdown_table, save_json
from torch import Tensor

from flashlla.ops import cpu
from flashlla.testing.numerics import ceiling, error_norm_ratio, evaluate
from flashlla.testing.problems import random_operands

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
THREADS = [n for n in (1, 2) if n <= CORES]
HEAD_DIM = 64


# ---- the machine ---------------------------------------------------------------------------------------


def cpu_model() -> str:
    """The processor as the system names it."""
    try:
        names = re.findall(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> dict:
    """What a number depends on, besides the code."""
    return {
        "cpu": cpu_model(),
        "cores": CORES,
        "instruction_set": cpu.describe()["instruction_set"],
        "threads": cpu.describe()["threads"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "date": datetime.date.today().isoformat(),
    }


def results_folder() -> Path:
    """``bench/results/<machine>``, named after the processor and its cores."""
    slug = re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")
    return RESULTS / f"{slug}-{CORES}-cores"


def describe(machine: dict) -> str:
    """One sentence for the head of a table."""
    kind = f"{machine['cpu']}, {machine['cores']} cores, {machine['instruction_set']}"
    return (
        f"{kind}, torch {machine['torch']}; "
        f"{machine['date']}, load average {machine['load_average_at_start']} at the start."
    )


# ---- rows ----------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One measured number, and the bar that it is held against, if any.

    Attributes:
        better: ``"larger"`` or ``"smaller"``; a row with a bar need not say it.
        spread: how far a typical round lies from the one that counts, relative to it.
    """

    topic: str
    name: str
    measured: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    better: str = ""
    spread: float = 0.0
    detail: dict = field(default_factory=dict)
    load_average: float = 0.0

    def __post_init__(self) -> None:
        if not self.better and self.bar != "-":
            self.better = "smaller" if self.at_least is None else "larger"
        if self.better not in ("larger", "smaller"):
            raise ValueError(f"{self.topic}, {self.name}: give a bar, or better='larger' or 'smaller'")

    @property
    def bar(self) -> str:
        """The bar in words."""
        if self.at_least is not None:
            return f">= {self.at_least:g}{self.unit}"
        return f"<= {self.at_most:g}{self.unit}" if self.at_most is not None else "-"

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without one."""
        if self.bar == "-":
            return None
        low = -float("inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return low <= self.measured <= high

    def cells(self) -> list[str]:
        """The row of a printed table."""
        verdict = {None: "", True: "met", False: "**missed**"}[self.met]
        detail = ", ".join(f"{name} {value}" for name, value in self.detail.items())
        return [
            self.name,
            f"{self.measured:.3g}{self.unit}",
            self.bar,
            verdict,
            detail,
            f"{self.load_average:.1f}",
        ]


def load_rows(path: Path) -> list[Row]:
    """The rows of a results file, none if it does not exist."""
    if not path.exists():
        return []
    return [
        Row(**{name: row[name] for name in Row.__dataclass_fields__ if name in row})
        for row in json.loads(path.read_text())["rows"]
    ]


def save_rows(path: Path, machine: dict, rows: list[Row]) -> None:
    """Write a results file."""
    entries = [{**asdict(row), "bar": row.bar, "met": row.met} for row in rows]
    save_json(path, {"machine": machine, "rows": entries})


# ---- tables --------------------------------------------------------------------------------------------


def rows_as_tables(rows: list[Row], heading: str = "###") -> str:
    """A markdown table for every topic."""
    header = ["what", "measured", "bar", "", "detail", "load"]
    topics = dict.fromkeys(row.topic for row in rows)
    return "\n\n".join(
        f"{heading} {topic}\n\n" + markdown_table(header, [row.cells() for row in rows if row.topic == topic])
        for topic in topics
    )


def machines_as_sections(paths: list[Path]) -> str:
    """A section for every results file: what the machine is, and its tables."""
    sections = []
    for path in paths:
        machine = json.loads(path.read_text())["machine"]
        head = f"### {machine['cpu']}, {machine['cores']} cores\n\n{describe(machine)}"
        sections.append(f"{head}\n\n{rows_as_tables(load_rows(path), heading='####')}")
    return "\n\n".join(sections)


def replace_between_markers(page: Path, marker: str, text: str) -> None:
    """Put ``text`` between ``<!-- marker -->`` and ``<!-- /marker -->`` of a page."""
    begin, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    before, rest = page.read_text().split(begin)
    _, after = rest.split(end)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def in_threads(count: int) -> str:
    """``1 thread`` or ``2 threads``."""
    return f"{count} thread{'' if count == 1 else 's'}"


# ---- operands and exact results ------------------------------------------------------------------------


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch and the compiled kernels with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def problem(
    n: int, heads: int, kind: str = "ridge", ridge: float = 1.0, head_dim: int = HEAD_DIM
) -> tuple[dict[str, Tensor], Tensor]:
    """Standard normal operands of one causal float32 call, and a gradient of its output.

    ``kind`` is ``"ridge"`` (LLA), ``"probe"`` (Parallax) or ``"softmax"``.
    """
    return random_operands(
        "iid",
        q_len=n,
        heads=heads,
        head_dim=head_dim,
        ridge=ridge if kind == "ridge" else None,
        probe=kind == "probe",
        gate=False,
    )


def first_and_last_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Heads do not meet in what is computed, so two of them stand for all in a check."""
    return {name: t[:, :, [0, -1]] if t.shape[2] > 2 else t for name, t in tensors.items()}


def check(
    function: Callable[..., Tensor],
    operands: dict[str, Tensor],
    do: Tensor | None = None,
    *,
    loosest: float = 0.0,
    exact_options: dict | None = None,
    **options,
) -> dict[str, float]:
    """Hold a call against the blockwise backend in float64; return the error norm ratio of every result.

    Args:
        loosest: the largest error that an ``rtol`` in the options allows, three times that for gradients;
            the budget of ``flashlla.testing.numerics`` holds where it is larger.
        exact_options: options of the float64 call where they are not those of the call.
    """
    actual = first_and_last_head(evaluate(function, operands, do, **options))
    exact_options = {"rtol": 1e-9} if exact_options is None and "ridge" in operands else exact_options or {}
    with threads(1):
        wide = {name: t.double() for name, t in first_and_last_head(operands).items()}
        wide_do = None if do is None else first_and_last_head({"do": do})["do"].double()
        exact = evaluate(function, wide, wide_do, backend="blockwise", **exact_options)
    ridge = float(operands["ridge"].min()) if "ridge" in operands else None
    errors = {name: error_norm_ratio(actual[name], exact[name]) for name in exact}
    for name, error in errors.items():
        budget = max(ceiling(torch.float32, ridge), loosest) * (1 if name == "out" else 3)
        assert error <= budget, (
            f"{name}: error norm ratio {error:.2e} over {budget:.2e}; no speed is reported"
        )
    return errors


# ---- timing --------------------------------------------------------------------------------------------


def interleave(benchmark, contenders: dict[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Fastest time in seconds of every contender, which run in turn: A B C, A B C, ...

    The first one is what pytest-benchmark sees; the first round of all is a warm-up. The report takes the
    spread of its rows from here: the largest one of a contender.
    """
    subject, *rivals = contenders
    times: dict[str, list[float]] = {name: [] for name in contenders}

    def run(name: str) -> None:
        start = time.perf_counter()
        contenders[name]()
        times[name].append(time.perf_counter() - start)

    def run_rivals() -> None:
        for name in rivals:
            run(name)

    with torch.no_grad():
        benchmark.pedantic(lambda: run(subject), setup=run_rivals, rounds=rounds, warmup_rounds=1)
    counted = {name: measured[1:] for name, measured in times.items()}
    benchmark.extra_info["spread"] = max(statistics.median(t) / min(t) - 1 for t in counted.values())
    return {name: min(measured) for name, measured in counted.items()}


def backward_of(
    function: Callable[..., Tensor], operands: dict[str, Tensor], do: Tensor, **options
) -> Callable:
    """The backward pass alone, as a call that can be repeated."""
    leaves = {name: t.detach().requires_grad_() for name, t in operands.items()}
    out = function(**leaves, **options)
    return lambda: torch.autograd.grad(out, list(leaves.values()), do, retain_graph=True)


def forward_and_backward_of(
    function: Callable[..., Tensor], operands: dict[str, Tensor], do: Tensor, **options
) -> Callable:
    """Forward and backward pass, as a call that can be repeated."""
    leaves = {name: t.detach().requires_grad_() for name, t in operands.items()}

    def run() -> None:
        with torch.enable_grad():
            out = function(**leaves, **options)
        torch.autograd.grad(out, list(leaves.values()), do)

    return run
