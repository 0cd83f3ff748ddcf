"""Who computes the trials of a sweep: processes of this machine, or a Ray cluster.

Each takes the name of the experiment and jobs, ``(key, trial, folder)``, and yields ``(key, outcome)`` as
they are done; the outcome is what :func:`flashlla.experiments.common.sweep.compute` returns.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from flashlla import _env

from .experiment import ExperimentError
from .sweep import compute

Jobs = list[tuple[str, str, str]]
PATIENCE = 5.0  # seconds that an address has to answer


def processes(workers: int) -> Callable[[str, Jobs], Iterator[tuple[str, Any]]]:
    """In ``workers`` processes with one thread each: more would wait for one another."""

    def submit(name: str, jobs: Jobs) -> Iterator[tuple[str, Any]]:
        count = min(workers, len(jobs))
        if count == 0:
            return
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(count, mp_context=context, initializer=_prepare_worker)
        try:
            futures = {pool.submit(compute, name, trial, folder): key for key, trial, folder in jobs}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise ExperimentError(
                "a worker process ended abruptly, for lack of memory perhaps; the same command goes on, "
                "with fewer --workers if need be"
            ) from error
        finally:
            for process in list((pool._processes or {}).values()):
                process.terminate()  # those still at work after an interruption; their trials are done again
            pool.shutdown(wait=False, cancel_futures=True)

    return submit


def ray(address: str) -> Callable[[str, Jobs], Iterator[tuple[str, Any]]]:
    """As tasks of one CPU each on the Ray cluster at ``address``, ``"local"`` for one on this machine.

    A trial on ``cuda`` takes a GPU as well. The folder of a trial is a temporary one on the node, which need
    not share a disk with this machine: a trial that is interrupted starts anew. One whose worker dies is
    tried again by Ray, three times.
    """
    _env.set_default("RAY_USAGE_STATS_ENABLED", "0")  # or a cluster started here would call home
    try:
        import ray as cluster
    except ModuleNotFoundError as error:
        raise ExperimentError("--ray needs the package ray: pip install 'flashlla[cluster]'") from error

    def submit(name: str, jobs: Jobs) -> Iterator[tuple[str, Any]]:
        if not jobs:
            return
        with _connect(cluster, address):
            needs = {key: _needs(trial) for key, trial, _ in jobs}
            if any(need["num_gpus"] for need in needs.values()) and "GPU" not in cluster.cluster_resources():
                raise ExperimentError(f"--ray {address}: the trials need a GPU, and this cluster has none")
            task = cluster.remote(_compute_elsewhere)
            waiting = {task.options(**needs[key]).remote(name, trial): key for key, trial, _ in jobs}
            while waiting:
                (done, *_), _ = cluster.wait(list(waiting))
                try:
                    outcome = cluster.get(done)
                except cluster.exceptions.RayError as error:  # its worker died, or lacks what it needs
                    outcome = str(error)
                yield waiting.pop(done), outcome

    return submit


def _connect(cluster: ModuleType, address: str) -> AbstractContextManager:
    """A connection to the cluster at ``address``. Where nobody listens Ray itself would try for minutes."""
    try:
        place = urlsplit(f"//{address}")
        if place.port:
            socket.create_connection((place.hostname, place.port), timeout=PATIENCE).close()
        return cluster.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ExperimentError(f"--ray {address}: no cluster can be used there: {reason}") from error


def _needs(trial: str) -> dict[str, int]:
    return {"num_cpus": 1, "num_gpus": int(json.loads(trial).get("device", "cpu").startswith("cuda"))}


def _compute_elsewhere(name: str, trial: str) -> Any:
    _use_one_thread()
    with tempfile.TemporaryDirectory() as folder:
        return compute(name, trial, folder)


def _prepare_worker() -> None:
    """One thread for its sums, and an end with its parent: one that was killed terminates nobody."""

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    _use_one_thread()


def _use_one_thread() -> None:
    import torch

    torch.set_num_threads(1)
