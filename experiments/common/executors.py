"""Who computes the trials of a sweep: processes of this machine, or a Ray cluster.

Each takes the name of the experiment and jobs, ``(key, trial, folder)``, and yields ``(key, outcome)`` as
they are done; the outcome is what :func:`flashlla.experiments.common.sweep.compute` returns.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from .experiment import ExperimentError
from .sweep import compute

Jobs = list[tuple[str, str, str]]


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

    The folder of a trial is a temporary one on the node, which need not share a disk with this machine: a
    trial that is interrupted starts anew.
    """
    try:
        import ray as cluster
    except ModuleNotFoundError as error:
        raise ExperimentError("--ray needs the package ray: pip install 'flashlla[cluster]'") from error

    def submit(name: str, jobs: Jobs) -> Iterator[tuple[str, Any]]:
        ours = not cluster.is_initialized()
        if ours:
            try:
                cluster.init(address=address, log_to_driver=False, logging_level="error")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ExperimentError(f"--ray {address}: {str(error).splitlines()[0]}") from error
        task = cluster.remote(num_cpus=1)(_compute_elsewhere)
        try:
            waiting = {task.remote(name, trial): key for key, trial, _ in jobs}
            while waiting:
                (done, *_), _ = cluster.wait(list(waiting))
                yield waiting.pop(done), cluster.get(done)
        finally:
            if ours:
                cluster.shutdown()

    return submit


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
