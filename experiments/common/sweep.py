"""Sweeps: the trials of a configuration, each computed once, whatever interrupts.

A sweep has a folder::

    config.json             the configuration, versions, revision, machine
    trials/<key>/           one a trial: trial.json, and rows.json when it is done
    table.parquet           the rows of all trials of the configuration

The key of a trial follows from all that it depends on, so that a larger sweep goes on from a smaller one.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from flashlla._files import WriteError, check_writable, read_json, writing

from . import provenance
from .experiment import (
    Experiment,
    ExperimentConfig,
    ExperimentError,
    TrialsFailed,
    trial_from_json,
    trial_json,
    trial_key,
)
from .files import write_json, write_text
from .table import Table, write_table


class Sweep:
    """One configuration of an experiment, and what is computed of it in ``folder``.

    Raises:
        ExperimentError: the configuration has no trials.
    """

    def __init__(self, experiment: Experiment, config: ExperimentConfig, folder: Path):
        self.experiment, self.config, self.folder = experiment, config, Path(folder)
        self.trials = {trial_key(trial): trial for trial in experiment.trials(config)}
        if not self.trials:
            raise ExperimentError(f"{experiment.name}: this configuration has no trials; give more values")

    def folder_of(self, key: str) -> Path:
        return self.folder / "trials" / key

    def pending(self) -> list[str]:
        """Keys of the trials that are to be computed."""
        return [key for key in self.trials if self._rows(key) is None]

    def run(
        self,
        submit: Callable[[str, list[tuple[str, str, str]]], Iterator[tuple[str, Any]]],
        report: Callable[[str, str | None], None] = lambda key, error: None,
    ) -> Table:
        """Compute what is pending and write the table.

        Args:
            submit: one of :mod:`flashlla.experiments.common.executors`.
            report: called behind each trial with its key and, if it failed, with the last line of the error.

        Raises:
            TrialsFailed: some ended with an error; the others are in the table.
            ExperimentError: another process is at work in the folder.
            OSError: it cannot be written; said before the first trial where it shows there.
        """
        with self._alone():
            write_json(self.folder / "config.json", self._description())
            failed = []
            jobs = [(key, trial_json(self.trials[key]), str(self.folder_of(key))) for key in self.pending()]
            for _, trial, folder in jobs:
                write_text(Path(folder) / "trial.json", trial + "\n")
            for key, outcome in submit(self.experiment.name, jobs):
                error = self._finish(key, outcome)
                failed += [key] if error else []
                report(key, error)
            table = self.table()
            if len(table):
                write_table(table, self.folder / "table.parquet")
        if failed:
            raise TrialsFailed(
                f"{len(failed)} of {len(self.trials)} trials failed, the first with what is in "
                f"{self.folder_of(failed[0]) / 'error.txt'}; the same command tries them again"
            )
        return table

    def table(self) -> Table:
        """The rows of the trials that are done, in the order of the trials."""
        import pandas

        done = [rows for key in self.trials if (rows := self._rows(key)) is not None]
        return pandas.DataFrame([row for rows in done for row in rows])

    def _rows(self, key: str) -> list[dict] | None:
        try:
            rows = read_json(self.folder_of(key) / "rows.json")
        except (OSError, ValueError):
            return None
        good = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
        return rows if good else None  # a damaged file is computed again

    def _finish(self, key: str, outcome: Any) -> str | None:
        """Keep the rows of a trial, or what went wrong; the last line of that."""
        if isinstance(outcome, str):
            write_text(self.folder_of(key) / "error.txt", outcome)
            return outcome.strip().splitlines()[-1]
        (self.folder_of(key) / "error.txt").unlink(missing_ok=True)  # of an earlier try
        write_json(self.folder_of(key) / "rows.json", outcome)
        return None

    def _description(self) -> dict[str, Any]:
        return {
            "experiment": self.experiment.name,
            "config": dataclasses.asdict(self.config),
            "trials": len(self.trials),
            "revision": provenance.revision(),
            "versions": provenance.versions(),
            "machine": provenance.device_name(self.config.device),
        }

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two sweeps in one folder would compute the same trials."""
        check_writable(self.folder)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with open(handle, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ExperimentError(
                    f"another process is at work in {self.folder}; wait for it, or choose another --out"
                ) from error
            yield


def compute(name: str, trial: str, folder: str) -> list[dict[str, Any]] | str:
    """One trial, in the process that calls: its rows and where they come from, or a traceback.

    Raises:
        OSError: the trial cannot write into its folder.
    """
    from . import registry

    experiment = registry.load(name)
    decoded = trial_from_json(experiment, trial)
    begun = time.perf_counter()
    try:
        rows: Sequence = experiment.run(decoded, Path(folder))
    except WriteError:  # a full disk is so for the other trials too
        raise
    except Exception:
        return traceback.format_exc()
    versions = provenance.versions()
    common = {
        **json.loads(trial),
        "trial": trial_key(decoded),
        "seconds": time.perf_counter() - begun,
        "revision": provenance.revision(),
        "flashlla": versions["flashlla"],
        "torch": versions["torch"],
        "machine": provenance.device_name(getattr(decoded, "device", "cpu")),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    return [{**common, **row} for row in rows]
