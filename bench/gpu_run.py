"""Everything that the GPU kernels promise, measured by one command.

    python bench/gpu_run.py [--out FOLDER] [--quick] [--minutes 9] [--device cuda] [--sections NAME ...]

Checks come first: what fails them is not timed. Results are saved after every section, under
``bench/results/<device>`` unless ``--out`` names a folder, and the table of bars is printed last. The run
watches its clock: what no longer fits is left out and says so, and ``--sections`` measures it another time
(several names; the other sections of the file stay). flashlla need not be installed.

Without a GPU, ``TRITON_INTERPRET=1 python bench/gpu_run.py --device cpu --quick`` runs every section at tiny
sizes in Triton's interpreter, to see that all of it works; it saves only where ``--out`` says.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from gpu.tree import make_importable

STARTED = time.monotonic()
SECTIONS = {  # in their order, and the seconds that each needs at least
    "matmul": 0.0,
    "checks": 0.0,
    "speed": 0.0,
    "decode": 30.0,
    "training": 20.0,
    "accuracy": 0.0,
    "memory": 0.0,
    "long": 0.0,
    "kernels": 0.0,
    "more speed": 0.0,
}


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, every value checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for gpu.json and gpu.png")
    parser.add_argument("--quick", action="store_true", help="few and small sizes")
    parser.add_argument("--minutes", type=float, default=9.0, help="how long it may take (default: 9)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ..., or cpu (interpreted)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, metavar="NAME", help=", ".join(SECTIONS))
    parser.add_argument("--check", help=argparse.SUPPRESS)  # one group of checks, in a process of its own
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes {options.minutes:g} must be greater than 0")
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        parser.error(f"--out {options.out} is a file; name a folder")
    try:
        options.device = checked_device(options.device, options.quick)
    except ValueError as error:
        parser.error(str(error))
    return options


def checked_device(name: str, quick: bool):
    """The device as torch knows it.

    Raises:
        ValueError: it is not there, or the kernels could not run on it.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name} is no device; use cuda, cuda:1, ..., or cpu") from None
    interpreted = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                f"--device {name}: torch finds no GPU; "
                "TRITON_INTERPRET=1 with --device cpu --quick does without one"
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, counted from 0")
        if interpreted:
            raise ValueError(f"--device {name} wants compiled kernels; unset TRITON_INTERPRET")
        torch.cuda.set_device(device.index or 0)
    elif device.type == "cpu":
        if not interpreted:
            raise ValueError("--device cpu needs Triton's interpreter; set TRITON_INTERPRET=1")
        if not quick:
            raise ValueError("--device cpu needs --quick: the interpreter is far too slow for anything else")
    else:
        raise ValueError(f"--device {name} is not supported; use cuda, cuda:1, ..., or cpu")
    return device


def run(options: argparse.Namespace) -> None:
    """All sections, the most important ones first."""
    from gpu import accuracy, bars, checks, decode, kernels, machine, memory, plot, speed, training
    from gpu.session import Session

    session = Session(options.device, options.quick, options.minutes, options.out, STARTED)
    print("  ".join(f"{name}: {value}" for name, value in session.machine.items()), flush=True)

    def yardstick(session: Session) -> None:
        row = machine.matmul_rate(session.timer, session.device)
        session.shrink(row["operations_per_second"])
        session.add("matmul", row)

    def check(session: Session) -> None:
        for row in checks.run_all(session):
            session.add("checks", row)

    measures = {
        "matmul": yardstick,
        "checks": check,
        "speed": speed.measure_first,
        "decode": decode.measure,
        "training": training.measure,
        "accuracy": accuracy.measure,
        "memory": memory.measure,
        "long": memory.run_long,
        "kernels": kernels.measure,
        "more speed": speed.measure_rest,
    }
    if options.sections:
        session.keep_others({"matmul", *options.sections})
    for name, seconds in SECTIONS.items():
        if name not in session.results:
            session.section(name, measures[name], seconds)
    bars.compute(session)
    session.save()
    if session.path is not None:
        no_picture = plot.plot(session, session.path.with_suffix(".png"))
        print(f"results in {session.path.parent}" + (f", no picture: {no_picture}" if no_picture else ""))
    print(bars.table(session.bars), flush=True)


def main() -> None:
    options = parse_options()
    make_importable()
    if options.check is not None:
        from gpu.checks import run_group

        run_group(options.check, options.quick, options.device, options.out)
    else:
        run(options)


if __name__ == "__main__":
    sys.exit(main())
