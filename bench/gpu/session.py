"""One run: its clock, its rows, and what becomes of a section that fails or no longer fits."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from _tables import save_json

from gpu import machine
from gpu.timing import Timer
from gpu.tree import ROOT

SLOW_RATE = 1.5e14  # operations a second below which the batch shrinks
OVERHEAD = 6  # calls that a measurement makes at least, warm-up included
EFFICIENCY = 0.2  # share of the matmul rate that is assumed to foresee a time
# Entries of a row that are saved and not printed.
SILENT = {"kind", "dtype", "head_dim", "heads", "variation", "data", "calls", "method", "rtol", "vocab"}


class Refused(Exception):
    """A measurement that is not made, and why."""


class LostDevice(Exception):
    """An earlier kernel has left the device unusable for this process."""


class Session:
    """What sections share.

    Attributes:
        device, quick, interpreted, minutes: of the command.
        timer: measures calls.
        batch, heads: of the calls that are timed.
        rate: operations a second of a matrix product, the yardstick.
        results: sections by name, each with ``status``, ``commit``, ``seconds``, ``notes`` and ``rows``.
    """

    def __init__(self, device: torch.device, quick: bool, minutes: float, out: Path | None, started: float):
        self.device, self.quick, self.minutes, self.started = device, quick, minutes, started
        self.interpreted = device.type != "cuda"
        self.timer = Timer(device)
        self.machine = machine.describe(device)
        self.path = self._path(out)
        self.results: dict[str, dict] = {}
        self.bars: list[dict] = []
        self.published: dict = {}  # configurations of the baseline by head dimension, once they are searched
        self.batch, self.heads, self.rate = (1, 1, 0.0) if self.interpreted else (4, 16, 0.0)

    def _path(self, out: Path | None) -> Path | None:
        if out is not None:
            return out / "gpu.json"
        if self.interpreted:
            return None
        folder = ROOT / "bench" / "results" / machine.slug(self.machine)
        return folder / ("gpu_quick.json" if self.quick else "gpu.json")

    # ---- the clock ----

    def left(self) -> float:
        """Seconds until the run has to be over."""
        return self.minutes * 60 - (time.monotonic() - self.started)

    def require_time(self, seconds: float) -> None:
        """Refuse what takes longer than is left."""
        self.require(
            seconds <= self.left(), f"no time left: {seconds:.0f} s foreseen, {self.left():.0f} s left"
        )

    def require_time_for(self, operations: float) -> None:
        """The same for a measurement whose call takes so many operations."""
        self.require_time(OVERHEAD * operations / (EFFICIENCY * self.rate) if self.rate else 0.0)

    @staticmethod
    def require(condition: bool, why: str) -> None:
        if not condition:
            raise Refused(why)

    # ---- rows ----

    def rows(self, section: str) -> list[dict]:
        return self.results.get(section, {}).get("rows", [])

    def note(self, section: str, text: str) -> None:
        print(f"  {section}: {text}", flush=True)
        self.results[section]["notes"].append(text)

    def add(self, section: str, row: dict) -> None:
        """Keep a row and print it."""
        self.results[section]["rows"].append(row)
        shown = {name: value for name, value in row.items() if name not in SILENT and value is not None}
        cells = (f"{name}={_short(value)}" for name, value in shown.items())
        print(f"  {section}: " + " ".join(cells), flush=True)

    @contextlib.contextmanager
    def attempt(self, section: str, **row) -> Iterator[dict]:
        """A row to be filled in; ``refused`` says why it is not measured, ``failed`` why that went wrong."""
        try:
            yield row
        except Refused as refusal:
            row["refused"] = str(refusal)
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            traceback.print_exc(limit=-2)
            self.check_device()
        self.add(section, row)

    def trusted(
        self, kind: str, head_dim: int, ridge: float | None = None, variations: tuple = ("plain", "timed")
    ) -> bool:
        """Whether all checks of bfloat16 calls of this kind were passed, and there was one."""
        passed = [
            row["passed"]
            for row in self.rows("checks")
            if (row["kind"], row["dtype"], row["head_dim"]) == (kind, "bfloat16", head_dim)
            and row["variation"] in variations
            and ridge in (None, row["ridge"])
        ]
        return bool(passed) and all(passed)

    def require_trusted(self, *args, **kwargs) -> None:
        """Refuse what :meth:`trusted` does not vouch for."""
        self.require(self.trusted(*args, **kwargs), "failed a check")

    def require_no_crash(self, kind: str, head_dim: int) -> None:
        """Refuse what ended in an error, be it out of its budget or not."""
        crashed = any(
            "error" in row
            for row in self.rows("checks")
            if (row["kind"], row["dtype"], row["head_dim"]) == (kind, "bfloat16", head_dim)
        )
        self.require(not crashed, "a check of it ended in an error")

    # ---- sections ----

    def keep_others(self, names: set[str]) -> None:
        """Take over all sections but these from the file of an earlier run on this kind of device.

        Raises:
            SystemExit: there is no such file, or it is of other sizes or another device.
        """
        if self.path is None or not self.path.exists():
            raise SystemExit(f"--sections adds to the results of an earlier run, but there is no {self.path}")
        found = json.loads(self.path.read_text())
        for what, here, there in (
            ("device", self.machine["device"], found["machine"]["device"]),
            ("size", "quick" if self.quick else "full", "quick" if found["quick"] else "full"),
        ):
            if here != there:
                raise SystemExit(f"--sections: {self.path} is of another {what}, {there}; this run is {here}")
        self.results = {name: rows for name, rows in found["sections"].items() if name not in names}

    def section(self, name: str, measure: Callable[[Session], None], seconds: float = 0.0) -> None:
        """Run a section that needs so many seconds at least, and save what there is."""
        self.results[name] = {
            "status": "done",
            "commit": self.machine["commit"],
            "seconds": 0.0,
            "notes": [],
            "rows": [],
        }
        start = time.monotonic()
        print(f"{name}  ({self.left():.0f} s left)", flush=True)
        try:
            self.require_time(seconds)
            self.check_device()
            measure(self)
        except Refused as refusal:
            self.results[name]["status"] = "skipped"
            self.note(name, str(refusal))
        except LostDevice as error:
            self.results[name]["status"] = "failed"
            self.note(name, str(error))
        except Exception as error:  # one section must not cost the others
            traceback.print_exc()
            self.results[name]["status"] = "failed"
            self.note(name, f"{type(error).__name__}: {error}"[:500])
        self.results[name]["seconds"] = round(time.monotonic() - start, 1)
        self.save()

    def check_device(self) -> None:
        """Raise if an earlier kernel broke the device for this process; free what a failed call left."""
        if self.interpreted:
            return
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            raise LostDevice(f"a kernel left the device unusable: {error}".splitlines()[0]) from error
        torch.cuda.empty_cache()

    def shrink(self, rate: float) -> None:
        """Set the yardstick, and on a slow or small device a smaller batch."""
        self.rate = rate
        if not self.interpreted and (rate < SLOW_RATE or self.machine["memory_gib"] < 30):
            self.batch = 1

    def content(self) -> dict:
        """Everything, for the file."""
        return {
            "machine": self.machine,
            "interpreted": self.interpreted,
            "quick": self.quick,
            "seconds": round(time.monotonic() - self.started, 1),
            "batch": self.batch,
            "heads": self.heads,
            "sections": self.results,
            "bars": self.bars,
        }

    def save(self) -> None:
        if self.path is not None:
            save_json(self.path, self.content())


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + " ".join(f"{name}:{_short(v)}" for name, v in value.items()) + "}"
    return str(value)
