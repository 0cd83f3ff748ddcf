"""The command ``flashlla``: ``demo`` trains a small model, ``doctor`` says what this installation can do,
``tune`` measures launch configurations on the GPU that is there; ``run``, ``list`` and ``report`` are for the
experiments.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from flashlla import __version__

DEMO_NEEDS = ("rich", "matplotlib", "safetensors")
EXPERIMENTS_NEED = (*DEMO_NEEDS, "pandas", "pyarrow", "sklearn", "statsmodels", "tyro", "jinja2")
EXPERIMENT_COMMANDS = {
    "run": "run an experiment, or go on with it",
    "list": "name the experiments",
    "report": "write one page with the results of all experiments",
}
SIZES = {
    "dim": "width of the model",
    "depth": "number of blocks",
    "heads": "attention heads",
    "context": "bytes in one sequence",
    "batch": "sequences in one step",
}
FAILED, INTERRUPTED = 1, 130
MAX_HEAD_DIM = 256  # as in flashlla._validation, without the import of torch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        code: int = options.command(options)
        return code
    except KeyboardInterrupt:
        print("\nflashlla: interrupted", file=sys.stderr)
        return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """One line for an error; the usage is a ``--help`` away."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


_Commands = argparse._SubParsersAction  # has no public name


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="flashlla", description="Local linear attention for PyTorch.")
    parser.add_argument("--version", action="version", version=f"flashlla {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_doctor(commands)
    _add_tune(commands)
    _add_experiments(commands)
    return parser


# ---- demo -------------------------------------------------------------------------------------------


def _add_demo(commands: _Commands[_Parser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="train a small language model with LLA and with softmax, and compare",
        description="Train a byte-level language model on the sources of Python's standard library, with LLA "
        "and then, from the same seed and on the same data, with softmax attention. Ctrl-C saves the state; "
        "the same command goes on.",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--steps",
        type=_whole(1),
        metavar="N",
        help="training steps of each mixer; the default takes about three minutes on two CPU cores",
    )
    length.add_argument(
        "--minutes",
        type=_positive,
        metavar="M",
        help="time a few steps of each mixer, then train both with as many "
        "equal steps as take about M minutes",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="folder of the results"
    )
    before = parser.add_mutually_exclusive_group()
    before.add_argument("--resume", action="store_true", help="go on with an unfinished run or fail")
    before.add_argument("--fresh", action="store_true", help="start anew, whatever the folder holds")
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda; without it a GPU if there is one")
    parser.add_argument("--seed", type=_whole(0), metavar="N", help="decides weights and order of the data")
    parser.add_argument("--ridge", type=_ridge, metavar="R", help="of LLA: a positive number, or 'learned'")
    for name, what in SIZES.items():
        parser.add_argument(f"--{name}", type=_whole(1), metavar="N", help=what)
    parser.set_defaults(command=_demo)


def _demo(options: argparse.Namespace) -> int:
    if missing := [name for name in DEMO_NEEDS if importlib.util.find_spec(name) is None]:
        return _fail(f"flashlla demo needs {', '.join(missing)}: pip install 'flashlla[experiments]'")
    import torch

    from flashlla.experiments import demo

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    named = {name: getattr(options, name) for name in ("steps", "minutes", "seed", "ridge", *SIZES)}
    chosen = {name: value for name, value in named.items() if value is not None}
    if options.minutes:
        chosen["steps"] = None  # to be found out
    settings = demo.Settings(device=device, **chosen)
    mode = "resume" if options.resume else "fresh" if options.fresh else "auto"
    try:
        code: int = demo.run(settings, options.out, mode)
        return code
    except (demo.DemoError, OSError) as error:
        return _fail(f"flashlla demo: {error}")


# ---- doctor -----------------------------------------------------------------------------------------


def _add_doctor(commands: _Commands[_Parser]) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say what this installation can do, and which backend a call would take",
        description="Report versions, the compiled extension, devices and environment variables, try every "
        "backend, and say which one a call takes by default, and why. Exit code 1 if something is wrong.",
    )
    parser.add_argument(
        "--shape",
        type=_shape,
        default=(1, 1024, 8, 64),
        metavar="B,T,H,D",
        help="of the call: batch, sequence, heads and head dimension",
    )
    parser.add_argument("--dtype", default="float32", metavar="NAME", help="of the call; float32 by default")
    parser.add_argument("--device", metavar="NAME", help="of the call; without it a GPU if there is one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from flashlla import _doctor

    try:
        report = _doctor.examine(options.shape, options.dtype, options.device)
    except ValueError as error:
        return _fail(f"flashlla doctor: {error}")
    print(json.dumps(report, indent=1) if options.json else _doctor.as_text(report))
    return FAILED if report["problems"] else 0


# ---- tune -------------------------------------------------------------------------------------------


def _add_tune(commands: _Commands[_Parser]) -> None:
    parser = commands.add_parser(
        "tune",
        help="measure the fastest launch configurations of the Triton kernels on this GPU",
        description="Measure block sizes, warps and stages of every Triton kernel on this GPU, and write the "
        "fastest to a JSON file named after it. Calls use it when FLASHLLA_TUNING names its folder.",
    )
    parser.add_argument(
        "--head-dim",
        type=_whole(1),
        nargs="+",
        default=[64, 128],
        metavar="D",
        help="head dimensions: 64 128",
    )
    parser.add_argument("--length", type=_whole(1), default=4096, metavar="T", help="of the sequence: 4096")
    parser.add_argument("--heads", type=_whole(1), default=16, metavar="H", help="batch times heads: 16")
    parser.add_argument(
        "--out", type=Path, default=Path("~/.cache/flashlla"), metavar="DIR", help="folder: ~/.cache/flashlla"
    )
    parser.set_defaults(command=_tune)


def _tune(options: argparse.Namespace) -> int:
    import torch

    if not torch.cuda.is_available():
        return _fail("flashlla tune: torch finds no GPU, and there is nothing else to tune for")
    from flashlla._files import WriteError, check_writable
    from flashlla.ops.triton import tune, tuning

    folder, device = options.out.expanduser(), tuning.device_name(torch.device("cuda"))
    try:
        check_writable(folder)
        for head_dim in options.head_dim:
            if head_dim > MAX_HEAD_DIM:
                return _fail(f"flashlla tune: --head-dim {head_dim} is above the limit of {MAX_HEAD_DIM}")
            configs = tune.tune(head_dim, options.length, options.heads, report=print)
            path = tuning.save(folder, device, configs)
    except WriteError as error:
        return _fail(f"flashlla tune: {error}")
    print(f"wrote {path}; to use it: export FLASHLLA_TUNING={folder}")
    return 0


# ---- experiments ------------------------------------------------------------------------------------


def _add_experiments(commands: _Commands[_Parser]) -> None:
    """Their options depend on the experiment: the words go on as they are."""
    for name, what in EXPERIMENT_COMMANDS.items():
        parser = commands.add_parser(name, help=what, add_help=False, prefix_chars="\0")
        parser.add_argument("words", nargs="*")
        parser.set_defaults(command=_experiments, name=name)


def _experiments(options: argparse.Namespace) -> int:
    if missing := [name for name in EXPERIMENTS_NEED if importlib.util.find_spec(name) is None]:
        return _fail(
            f"flashlla {options.name} needs {', '.join(missing)}: pip install 'flashlla[experiments]'"
        )
    from flashlla.experiments.common import commands

    call = {"run": commands.run, "list": commands.list_experiments, "report": commands.report}
    code: int = call[options.name](options.words)
    return code


# ---- values of options ------------------------------------------------------------------------------


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least {least}")
        return value

    return parse


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number greater than 0")
    return value


def _ridge(text: str) -> str | float:
    return text if text == "learned" else _positive(text)


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) != 4 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be four positive whole numbers, such as 2,1024,8,64")
    return sizes


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return FAILED
