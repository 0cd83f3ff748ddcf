"""``flashlla run``, ``list`` and ``report``."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import flashlla.experiments
from flashlla._files import WriteError, check_writable

from . import executors, figures, registry
from .experiment import PRESETS, Experiment, ExperimentConfig, ExperimentError, TrialsFailed
from .files import write_text
from .report import Section, benchmarks, render
from .sweep import Sweep
from .table import Table, as_text, read_table, write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAD_INPUT, FAILED = 2, 1
RESULTS = "results"  # folder in the package of an experiment, one folder a preset in it
BENCHMARKS = Path(next(iter(flashlla.experiments.__path__))).parent / "bench" / "results"  # of a checkout


class _Parser(argparse.ArgumentParser):
    """One line for an error, as all commands of flashlla give."""

    def error(self, message: str) -> NoReturn:
        raise ExperimentError(f"{message} (see {self.prog} --help)")


@dataclass(frozen=True)
class _Options:
    """What ``flashlla run`` was asked for, but for the fields of the configuration."""

    experiment: Experiment
    preset: str
    config: ExperimentConfig
    out: Path
    workers: int
    ray: str | None
    publish: bool


def run(words: Sequence[str]) -> int:
    """``flashlla run EXPERIMENT ...``: compute a sweep and say what came out; the exit code."""
    try:
        options = _parse_run(words)
        if options.publish:
            check_writable(_published(options))
        sweep = Sweep(options.experiment, options.config, options.out)
        table = _compute(sweep, options)
        _show(options.experiment, table)
        print(f"\ntable    {options.out / 'table.parquet'}")
        drawn = figures.draw(options.experiment, table)
        for path in _save(drawn, options.out):
            print(f"figure   {path}")
        if options.publish:
            print(f"results  {_publish(options, table, drawn)}")
    except (ExperimentError, WriteError) as error:
        return _fail("run", error)
    return 0


def list_experiments(words: Sequence[str]) -> int:
    """``flashlla list``: names, titles and presets."""
    parser = _Parser(prog="flashlla list", description="The experiments there are.")
    try:
        parser.parse_args(words)
        experiments = [registry.load(name) for name in registry.names()]
    except ExperimentError as error:
        return _fail("list", error)
    width = max(map(len, registry.names()))
    for experiment in experiments:
        print(f"{experiment.name:{width}}  {experiment.title}  ({experiment.paper})")
    print("\npresets: " + "; ".join(f"{name}, {what}" for name, what in PRESETS.items()))
    return 0


def report(words: Sequence[str]) -> int:
    """``flashlla report``: one page with the results of all experiments and benchmarks."""
    parser = _Parser(
        prog="flashlla report",
        description="Write one page with tables, figures and claims of all experiments and with what was "
        "measured of speed and accuracy, from the results of the repository or from runs of yours.",
    )
    parser.add_argument("--runs", type=Path, metavar="DIR", help="take results from DIR/EXPERIMENT/PRESET")
    parser.add_argument("--preset", default="small", choices=PRESETS, help="whose results: small")
    parser.add_argument(
        "--bench", type=Path, default=BENCHMARKS, metavar="DIR", help="of benchmarks: the repository's"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/report.html"), metavar="FILE", help="the page")
    try:
        options = parser.parse_args(words)
        check_writable(options.out.parent)
        sections = [_section(registry.load(name), options.preset, options.runs) for name in registry.names()]
        measured = (read(options.bench) for read in (benchmarks.accuracy, benchmarks.speed))
        write_text(options.out, render(sections, *measured))
    except (ExperimentError, WriteError) as error:
        return _fail("report", error)
    print(options.out)
    return 0


def _fail(command: str, error: Exception) -> int:
    """Say it in one line; the exit code."""
    print(f"flashlla {command}: {error}", file=sys.stderr)
    return FAILED if isinstance(error, (TrialsFailed, WriteError)) else BAD_INPUT


# ---- what is asked for ------------------------------------------------------------------------------


def _parse_run(words: Sequence[str]) -> _Options:
    parser = _Parser(
        prog="flashlla run",
        usage="flashlla run EXPERIMENT [options] [fields of its configuration]",
        description="Compute the trials of an experiment that are not there yet, and judge its claims.",
        epilog="flashlla run EXPERIMENT --help lists the fields of its configuration as well.",
        add_help=False,
    )
    parser.add_argument("experiment", nargs="?", metavar="EXPERIMENT", help="a name from flashlla list")
    parser.add_argument("--preset", default="small", choices=PRESETS, help="values to start from: small")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the sweep: runs/EXPERIMENT/PRESET")
    parser.add_argument("--workers", type=int, metavar="N", help="processes: one a core")
    parser.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster to run on; 'local' starts one here")
    parser.add_argument("--publish", action="store_true", help="put table and figures into the package")
    parser.add_argument("-h", "--help", action="store_true", help="show this")
    known, fields = parser.parse_known_args(words)
    if known.experiment is None:
        if known.help:
            parser.print_help()
            raise SystemExit(0)
        raise ExperimentError(f"name an experiment: one of {', '.join(registry.names())}")
    experiment = registry.load(known.experiment)
    if known.help:
        parser.print_help()
        print()
        fields = ["--help"]
    config = _configuration(experiment, known.preset, fields)
    workers = known.workers if known.workers is not None else len(os.sched_getaffinity(0))
    if workers < 1:
        raise ExperimentError(f"--workers {workers} must be at least 1")
    if known.ray and known.workers is not None:
        raise ExperimentError(
            "--workers is for processes of this machine, and --ray for a cluster; leave one out"
        )
    out = known.out or Path("runs", experiment.name, known.preset)
    return _Options(experiment, known.preset, config, out, workers, known.ray, known.publish)


def _configuration(experiment: Experiment, preset: str, fields: Sequence[str]) -> ExperimentConfig:
    """The preset with the fields of the command line."""
    import tyro

    said = io.StringIO()
    try:
        with contextlib.nullcontext() if "--help" in fields else contextlib.redirect_stderr(said):
            return tyro.cli(
                experiment.config,
                default=experiment.presets[preset],
                args=list(fields),
                prog=f"flashlla run {experiment.name}",
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ExperimentError(f"{_without_frame(said.getvalue())} (see --help)") from stop
    except (TypeError, ValueError) as error:
        raise ExperimentError(str(error)) from error


def _without_frame(message: str) -> str:
    """What tyro says between two rules, or between the title and the rule of a box, in one line."""
    lines = [line.strip(" │") for line in message.splitlines()]
    rules = [i for i, line in enumerate(lines) if line and (line[0] == "╭" or not line.strip("-─ "))]
    inside = lines[rules[0] + 1 : rules[1]] if len(rules) > 1 else lines
    return " ".join(line for line in inside if line)


# ---- computing --------------------------------------------------------------------------------------


def _compute(sweep: Sweep, options: _Options) -> Table:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console, pending = Console(stderr=True), len(sweep.pending())
    done = len(sweep.trials) - pending
    print(f"{options.experiment.title}: {len(sweep.trials)} trials, {done} of them done before")
    submit = executors.ray(options.ray) if options.ray else executors.processes(options.workers)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=pending)

        def show(key: str, error: str | None) -> None:
            bar.advance(task)
            if error:
                bar.console.print(f"trial {key} failed: {error}", markup=False, soft_wrap=True)

        return sweep.run(submit, show)


def _show(experiment: Experiment, table: Table) -> None:
    from rich.console import Console
    from rich.table import Table as Grid

    console, summary = Console(), experiment.summary(table)
    grid = Grid(*map(str, summary.columns), box=None, pad_edge=False, header_style="bold")
    for row in as_text(summary):
        grid.add_row(*row)
    console.print(grid)
    for claim in experiment.claims:
        verdict = claim.judge(table)
        effect = f": {verdict.effect} {verdict.unit}" if verdict.unit else ""
        console.print(f"\n{verdict.outcome.upper()}  {claim.statement}", markup=False, highlight=False)
        console.print(f"    {verdict.detail}{effect}", markup=False, highlight=False)


# ---- results that are kept --------------------------------------------------------------------------


def _package(experiment: Experiment) -> Path:
    return Path(next(iter(flashlla.experiments.__path__)), experiment.name)


def _published(options: _Options) -> Path:
    return _package(options.experiment) / RESULTS / options.preset


def _save(drawn: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write figures into a folder; their files."""
    paths = {folder / f"{name}.png": figure for name, figure in drawn.items()}
    for path, figure in paths.items():
        figures.save_png(figure, path)
    return list(paths)


def _publish(options: _Options, table: Table, drawn: Mapping[str, Figure]) -> Path:
    """Table, figures and the command into the package."""
    folder = _published(options)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(table, folder / "table.parquet")
    _save(drawn, folder)
    write_text(
        folder / "command.txt", shlex.join(["flashlla", *sys.argv[1:]]).replace(" --publish", "") + "\n"
    )
    return folder


def _section(experiment: Experiment, preset: str, runs: Path | None) -> Section:
    kept = _package(experiment) / RESULTS / preset
    folder = kept if runs is None else runs / experiment.name / preset
    command = f"flashlla run {experiment.name} --preset {preset}"
    if (folder / "command.txt").is_file():
        command = (folder / "command.txt").read_text(errors="replace").strip()
    table: Any = read_table(folder / "table.parquet") if (folder / "table.parquet").exists() else None
    return Section(experiment, table, command)
