"""From settings to results: both mixers trained, checked, sampled from and written down."""

from __future__ import annotations

import math
import platform
import shutil
import signal
import statistics
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import flashlla
from flashlla import _backends, models
from flashlla._files import check_writable

from ..common.files import write_json, write_text
from . import figures, sampling, training
from .data import VALIDATION_WINDOWS, Corpus, load_corpus
from .files import read_run
from .settings import MIXERS, DemoError, Settings

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


@dataclass
class Result:
    """One mixer at the end of its run; losses in nats a byte."""

    curves: training.Curves
    losses: torch.Tensor  # of every validation window
    parameters: int
    check: sampling.DecodeCheck
    text: str


def run(settings: Settings, out: Path, mode: str = "auto") -> int:
    """Train both mixers into ``out`` and report; returns the exit code.

    Args:
        settings: ``corpus`` is filled in here.
        out: folder of the results, made if it is not there.
        mode: ``"resume"`` goes on with an unfinished run and needs one, ``"fresh"`` starts anew,
            ``"auto"`` goes on if there is one.

    Raises:
        DemoError: the run cannot start or go on.
    """
    console = Console(highlight=False)
    backend = _choose_backend(settings)
    corpus = load_corpus()
    settings = replace(settings, corpus=corpus.digest)
    _check_sizes(settings, corpus)
    check_writable(out)
    settings = _prepare(settings, corpus, out, mode, console)
    _introduce(settings, corpus, backend, console)
    try:
        with _interrupts() as should_stop:
            curves = _train_all(settings, corpus, out, console, should_stop)
    except training.Stopped:
        console.print(f"stopped; the state is in {out}. The same command goes on, --fresh starts anew.")
        return INTERRUPTED
    console.print("checking the saved models, and writing some text with them")
    results = {mixer: _finish(mixer, curves[mixer], settings, corpus, out) for mixer in MIXERS}
    metrics = _write_results(settings, corpus, backend, results, out)
    _report(metrics, results, out, console)
    return 0


# ---- before -----------------------------------------------------------------------------------------


def _choose_backend(settings: Settings) -> _backends.Choice:
    try:
        torch.empty(1, device=settings.device)
        return _backends.choose("auto", torch.device(settings.device).type, torch.float32)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        raise DemoError(f"device {settings.device}: {str(error).splitlines()[0]}") from error


def _check_sizes(settings: Settings, corpus: Corpus) -> None:
    """Complain about sizes that do not fit together before anything is written."""
    longest = len(corpus.validation) - 1
    if settings.context > longest:
        raise DemoError(
            f"context {settings.context} is longer than the validation text; use at most {longest}"
        )
    try:
        with torch.device("meta"):
            for mixer in MIXERS:
                models.LanguageModel(settings.model_config(mixer))
    except ValueError as error:
        raise DemoError(str(error)) from error


def _prepare(settings: Settings, corpus: Corpus, out: Path, mode: str, console: Console) -> Settings:
    """Settle what is in ``out`` already, and the number of steps; what is left there fits the settings."""
    stored = None if mode == "fresh" else read_run(out / "run.json")
    if mode == "resume" and (stored is None or stored["finished"]):
        raise DemoError(f"{out} holds no unfinished run to resume; leave --resume out to start one")
    if stored is not None:
        if different := settings.differences(stored["settings"]):
            kind = "a finished" if stored["finished"] else "an unfinished"
            raise DemoError(
                f"{out} holds {kind} run with other settings ({'; '.join(different)}); "
                "pass --fresh to replace it, or another --out"
            )
        if not stored["finished"]:
            console.print(f"going on with the unfinished run in {out}")
            return replace(settings, steps=stored["settings"]["steps"])
        console.print(f"the finished run in {out} is replaced")
    if settings.steps is None:
        console.print(f"timing a few steps of each mixer: how many fit in {settings.minutes:g} minutes?")
        settings = replace(settings, steps=training.steps_in(settings.minutes, settings, corpus))
    _drop_checkpoints(out)  # results of an earlier run stay until they are replaced
    write_json(out / "run.json", {"settings": settings.to_dict(), "finished": False})
    return settings


def _drop_checkpoints(out: Path) -> None:
    """Without them a run starts anew."""
    for mixer in MIXERS:
        if (folder := out / mixer / "checkpoints").exists():
            shutil.rmtree(folder)


def _introduce(settings: Settings, corpus: Corpus, backend: _backends.Choice, console: Console) -> None:
    size = (len(corpus.train) + len(corpus.validation)) / 2**20
    console.print(
        f"text     {corpus.files} files of Python {platform.python_version()}'s library, {size:.1f} MiB\n"
        f"         validation on {VALIDATION_WINDOWS * settings.context} bytes of files kept apart"
    )
    console.print(
        f"model    {settings.depth} blocks of width {settings.dim}, {settings.heads} heads, "
        f"context {settings.context} bytes\n"
        f"run      {settings.steps} steps of {settings.batch * settings.context} bytes, seed {settings.seed}"
    )
    console.print(f"machine  {_device_name(settings.device)}, backend {backend.name}\n")


def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device}, {torch.get_num_threads()} threads"


# ---- training ---------------------------------------------------------------------------------------


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C is an answer that the training asks for after every step; a second one ends it."""
    asked = False

    def on_interrupt(*_) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _train_all(
    settings: Settings, corpus: Corpus, out: Path, console: Console, should_stop: Callable[[], bool]
) -> dict[str, training.Curves]:
    columns = (
        TextColumn("{task.description:8}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as bars, _warnings_as_lines(console):
        tasks = {
            mixer: bars.add_task(figures.LABELS[mixer], total=settings.steps, start=False, state="waiting")
            for mixer in MIXERS
        }
        curves = {}
        for mixer, task in tasks.items():
            on_log = _follow(bars, task, mixer, settings)
            curves[mixer] = training.train(
                mixer, settings, corpus, out / mixer, on_log=on_log, should_stop=should_stop
            )
    return curves


@contextmanager
def _warnings_as_lines(console: Console) -> Iterator[None]:
    """What the library warns of, such as a damaged checkpoint, without the place in the code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: console.print(str(message), markup=False, soft_wrap=True)
        yield


def _follow(
    bars: Progress, task: TaskID, mixer: str, settings: Settings
) -> Callable[[list[dict[str, Any]]], None]:
    """What to show of new lines of the log: the bar, and a line for every validation loss."""
    label, last = figures.LABELS[mixer], deque(maxlen=20)
    bars.start_task(task)

    def on_log(records: list[dict[str, Any]]) -> None:
        for record in records:
            if "loss" in record:
                last.append(record)
            else:
                bits = _bits(record["validation_loss"])
                bars.console.print(f"{label:8} step {record['step']:4}  validation {bits:.3f} bits per byte")
        loss = statistics.fmean(record["loss"] for record in last)
        speed = settings.batch * settings.context / statistics.median(record["seconds"] for record in last)
        state = f"loss {loss:.3f}  {speed:,.0f} tokens/s"
        bars.update(task, completed=records[-1]["step"], state=state)

    return on_log


# ---- after ------------------------------------------------------------------------------------------


def _finish(mixer: str, curves: training.Curves, settings: Settings, corpus: Corpus, out: Path) -> Result:
    """Everything from here on uses the model as it comes back from the disk."""
    model = models.load_model(out / mixer, settings.device).eval()
    losses = training.validation_losses(model, settings, corpus)
    trained = curves.validation[-1][1]
    if abs(losses.mean().item() - trained) > 1e-3:
        raise DemoError(
            f"the model read back from {out / mixer} has validation loss {losses.mean():.4f}, but it had "
            f"{trained:.4f} before it was saved; please report this"
        )
    return Result(
        curves=curves,
        losses=losses,
        parameters=model.num_parameters(),
        check=sampling.check_decoding(model, settings.device),
        text=sampling.sample(model, settings.seed, settings.device),
    )


def _write_results(
    settings: Settings, corpus: Corpus, backend: _backends.Choice, results: dict[str, Result], out: Path
) -> dict[str, Any]:
    """Write all files; what ``metrics.json`` has."""
    # In bits per byte; the windows are paired.
    differences = (results["lla"].losses - results["softmax"].losses).double() / math.log(2)
    metrics = {
        "settings": settings.to_dict(),
        "versions": {
            "flashlla": flashlla.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "device": _device_name(settings.device),
        "backend": {"name": backend.name, "reason": backend.reason},
        "corpus": {
            "digest": corpus.digest,
            "files": corpus.files,
            "train_bytes": len(corpus.train),
            "validation_bytes": len(corpus.validation),
            "validated_bytes": VALIDATION_WINDOWS * settings.context,
        },
        "mixers": {mixer: _metrics(result, settings, mixer) for mixer, result in results.items()},
        "difference": {
            "lla_minus_softmax_bits_per_byte": differences.mean().item(),
            "standard_error_over_windows": differences.std().item() / len(differences) ** 0.5,
            "seeds": 1,
        },
    }
    write_json(out / "metrics.json", metrics)
    title = f"Text of Python's library, {results['lla'].parameters:,} parameters, one seed"
    figures.loss_figure({m: r.curves for m, r in results.items()}, title, out / "loss.png")
    samples = [f"=== {figures.LABELS[m]} ===\n{result.text}\n" for m, result in results.items()]
    write_text(out / "sample.txt", "\n".join(samples))
    write_json(out / "run.json", {"settings": settings.to_dict(), "finished": True})
    _drop_checkpoints(out)
    return metrics


def _metrics(result: Result, settings: Settings, mixer: str) -> dict[str, Any]:
    curves, loss = result.curves, result.losses.mean().item()
    return {
        "model": settings.model_config(mixer).to_dict(),
        "parameters": result.parameters,
        "steps": len(curves.train_losses),
        "seed": settings.seed,
        "validation_loss": loss,
        "bits_per_byte": _bits(loss),
        "train_tokens_per_second": settings.batch * settings.context / statistics.median(curves.step_seconds),
        "train_seconds": sum(curves.step_seconds),
        "evaluation_seconds": curves.evaluation_seconds,
        "decoding": asdict(result.check),
        "validation_curve": [{"step": step, "loss": loss} for step, loss in curves.validation],
        "train_curve": curves.train_losses,
    }


def _report(metrics: dict[str, Any], results: dict[str, Result], out: Path, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "validation loss", "bits per byte", "parameters", "tokens/s", "seconds"):
        table.add_column(name, justify="right" if name else "left")
    for mixer, found in metrics["mixers"].items():
        table.add_row(
            figures.LABELS[mixer],
            f"{found['validation_loss']:.4f}",
            f"{found['bits_per_byte']:.3f}",
            f"{found['parameters']:,}",
            f"{found['train_tokens_per_second']:,.0f}",
            f"{found['train_seconds'] + found['evaluation_seconds']:.0f}",
        )
    console.print("\n", table, "\n", sep="")
    difference = metrics["difference"]["lla_minus_softmax_bits_per_byte"]
    error = metrics["difference"]["standard_error_over_windows"]
    console.print(
        f"LLA minus softmax after equal steps: {difference:+.3f} bits per byte "
        f"(standard error over the validation windows {error:.3f}).\n"
        "This is one seed of one small model; another seed gives another difference."
    )
    for mixer, result in results.items():
        console.print(f"decoding of {figures.LABELS[mixer]}: {result.check}")
    console.print(Text(f"\n{results['lla'].text}\n"), style="dim")
    console.print(f"written to {out}: metrics.json, loss.png, sample.txt, and models in lla/ and softmax/")


def _bits(loss: float) -> float:
    return loss / math.log(2)
