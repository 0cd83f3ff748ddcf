"""What the files of ``bench/results`` hold, as parts of a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .. import figures
from ..experiment import ExperimentError
from ..statistics import bootstrap
from . import drawings
from .parts import Grid, Part

Content = dict[str, Any]
DIRECTIONS = ("forward", "forward and backward")


def accuracy(folder: Path) -> list[Part]:
    """Errors as shares of the budget, of every machine that has some."""
    return list(_parts(folder, {"accuracy": _errors, "gpu": _checks}))


def speed(folder: Path) -> list[Part]:
    """Times and memory, of every machine that has some."""
    found = {"cpu": _kernels, "training": _training, "finetuning": _finetuning, "gpu": _gpu}
    return list(_parts(folder, found))


def _parts(folder: Path, readers: dict[str, Callable[[str, Content], Part]]) -> Iterator[Part]:
    for machine in sorted(path for path in folder.glob("*") if path.is_dir()):
        for kind, read in readers.items():
            if (path := machine / f"{kind}.json").is_file():
                yield _read(read, f"{machine.name}-{kind}", path)


def _read(read: Callable[[str, Content], Part], name: str, path: Path) -> Part:
    try:
        with figures.style():
            return read(name, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ExperimentError(f"{path} does not hold what bench/ writes there ({error!r})") from error


# ---- CPUs ------------------------------------------------------------------------------------------------


def _cpu(content: Content) -> str:
    return content["machine"]["cpu"].replace("(R)", "")


def _conditions(content: Content) -> str:
    machine = content["machine"]
    return (
        f"{_cpu(content)}, {machine['cores']} cores, {machine['instruction_set']}, torch {machine['torch']}, "
        f"Python {machine['python']}; {machine['date']}, load average {machine['load_average_at_start']} at "
        "the start."
    )


def _errors(name: str, content: Content) -> Part:
    about = (
        "The largest error of any solver as a share of what numerics.md allows; 1 would be all of it. "
        + _conditions(content)
    )
    pictures = {
        "budget": drawings.cpu_budget(content["errors"]),
        "tolerances": drawings.tolerances(content["tolerances"]),
    }
    return Part(name, f"Errors on the CPU: {_cpu(content)}", about, pictures=pictures)


def _kernels(name: str, content: Content) -> Part:
    return Part(name, f"Kernels and generation: {_cpu(content)}", _conditions(content), _topics(content))


def _training(name: str, content: Content) -> Part:
    return Part(name, f"Training: {_cpu(content)}", _conditions(content), _topics(content))


def _topics(content: Content) -> list[Grid]:
    """A table for each topic."""
    columns = ["what", "measured", "goal", "outcome", "detail"]
    topics = dict.fromkeys(row["topic"] for row in content["rows"])
    return [Grid(t, columns, [_line(row) for row in content["rows"] if row["topic"] == t]) for t in topics]


def _line(row: dict[str, Any]) -> list[str]:
    met = {None: "", True: "met", False: "missed"}[row["met"]]
    detail = ", ".join(f"{name} {value}" for name, value in row["detail"].items())
    number = f"{row['measured']:.0f}" if row["measured"] >= 1000 else f"{row['measured']:.3g}"
    return [row["name"], number + row["unit"], row["bar"].strip("-"), met, detail]


def _finetuning(name: str, content: Content) -> Part:
    protocol = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in content["protocol"].items())
    arms = dict.fromkeys(run["arm"] for run in content["runs"])
    rows = []
    for arm in arms:
        runs = [run for run in content["runs"] if run["arm"] == arm]
        losses = (bootstrap([run[when] for run in runs]) for when in ("before", "after"))
        seconds = sum(run["seconds"] for run in runs) / len(runs)
        rows.append([arm, *map(str, losses), f"{seconds:.0f}"])
    columns = ["fine-tuned as", "loss before", "loss after", "seconds a run"]
    seeds = len({run["seed"] for run in content["runs"]})
    caption = f"Validation loss of converted models, mean and interval of 95 % over {seeds} seeds"
    about = f"Softmax models that were converted and trained on ({protocol}). {_conditions(content)}"
    return Part(name, f"Fine-tuning after conversion: {_cpu(content)}", about, [Grid(caption, columns, rows)])


# ---- GPUs ------------------------------------------------------------------------------------------------


def _device(content: Content) -> str:
    machine = content["machine"]
    return (
        f"{machine['device']}, torch {machine['torch']}, Triton {machine['triton']}, CUDA {machine['cuda']}; "
        f"{machine['date']}."
    )


def _rows(content: Content, *sections: str) -> list[dict[str, Any]]:
    """What was measured in some sections."""
    found = (row for name in sections for row in content["sections"].get(name, {"rows": []})["rows"])
    return [row for row in found if "refused" not in row and "failed" not in row]


def _checks(name: str, content: Content) -> Part:
    checks = _rows(content, "checks")
    about = (
        f"The largest error as a share of what numerics.md allows; {sum(row['passed'] for row in checks)} of "
        f"{len(checks)} checks passed, of which these are those of LLA in its plain form. {_device(content)}"
    )
    plain = [row for row in checks if row["kind"] == "lla" and row["variation"] == "plain"]
    pictures = {"budget": drawings.gpu_budget(plain)}
    return Part(name, f"Errors on the GPU: {content['machine']['device']}", about, pictures=pictures)


def _gpu(name: str, content: Content) -> Part:
    """A run may have ended before it came to some of these."""
    timed, memory, training = (
        _rows(content, *s) for s in (("speed", "more speed"), ("memory",), ("training",))
    )
    steps = [row for row in _rows(content, "decode") if "ms" in row]
    shape = f"{content['batch']} x {content['heads']} heads, causal, bfloat16"
    pictures, grids = {}, []
    if timed:
        pictures["times"] = drawings.times(timed, f"Time of a pass by PyTorch, others and us, {shape}")
        grids.append(_by_direction("Milliseconds of a pass", timed, "ms", ("d", "n")))
    if steps:
        pictures["decode"] = drawings.decoding(steps)
    if memory:
        grids.append(
            _by_direction("Memory beyond operands and results, in multiples of q", memory, "times_q")
        )
    if training:
        grids.append(_steps(training))
    about = f"{_device(content)} All rows are in docs/performance.md."
    return Part(
        f"{name}-speed", f"Kernels on the GPU: {content['machine']['device']}", about, grids, pictures
    )


def _by_direction(caption: str, rows: list[dict[str, Any]], value: str, sizes: tuple[str, ...] = ()) -> Grid:
    """A row for each contender; forward, and forward and backward, for each size."""
    cells = {(r["contender"], *(r[s] for s in sizes), r["direction"]): f"{r[value]:.3g}" for r in rows}
    across = sorted({key[1:-1] for key in cells})
    columns = [
        ", ".join((*(f"{n}={v}" for n, v in zip(sizes, size, strict=True)), way))
        for size in across
        for way in DIRECTIONS
    ]
    lines = [
        [name, *(cells.get((name, *size, way), "") for size in across for way in DIRECTIONS)]
        for name in dict.fromkeys(row["contender"] for row in rows)
    ]
    return Grid(caption, ["contender", *columns], lines)


def _steps(rows: list[dict[str, Any]]) -> Grid:
    fastest = min(row["ms"] for row in rows)
    first = rows[0]
    size = f"{first['parameters'] / 1e6:.0f} million parameters, length {first['n']}, batch {first['batch']}"
    lines = [
        [r["mixer"], f"{r['ms']:.0f}", f"{r['ms'] / fastest:.2f}", f"{r['tokens_per_second']:.0f}"]
        for r in rows
    ]
    return Grid(f"A training step, {size}", ["mixer", "ms", "over the fastest", "tokens a second"], lines)
