"""Processes that are killed at random moments and started again, and processes that have little memory."""

import multiprocessing
import random
import resource
import time
import warnings
from collections import Counter
from pathlib import Path

import torch

# A server that has loaded torch forks every process: a start costs little, and the moments fall into work.
PRELOADED = [
    "flashlla.experiments.common.commands",
    "flashlla.experiments.state_tracking",
    "flashlla.ops.cpu",
    "matplotlib.backends.backend_agg",
    "pandas",
    "PIL.Image",
    "pyarrow.parquet",
    "rich.progress",
    "tyro",
]


def start(target, *arguments):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def seconds_of(target, *arguments):
    """How long an undisturbed process takes."""
    start(int).join()  # the server is there
    began = time.perf_counter()
    process = start(target, *arguments)
    process.join()
    assert process.exitcode == 0
    return time.perf_counter() - began


def kill_and_go_on(target, *arguments, moments, duration, seed, where=lambda: "work"):
    """Kill ``target(*arguments)`` at ``moments`` moments over its whole ``duration``, then let it end.

    A process lives for a share of the duration that is drawn from ``seed``, on average one part in
    ``moments``, and the next one goes on with what it has left behind.

    Args:
        where: says, of what a killed process has left behind, what it was about.

    Returns:
        How many moments fell where.
    """
    draw, found = random.Random(seed), Counter()
    for _ in range(moments):
        process = start(target, *arguments)
        process.join(draw.uniform(0, 2 * duration / moments))
        if process.exitcode is None:
            process.kill()
            process.join()
            found[where()] += 1
        assert process.exitcode in (0, -9), "it ended by itself, with an error"
        found["end"] += process.exitcode == 0
    process = start(target, *arguments)
    process.join()
    assert process.exitcode == 0
    return found


def left_over(folder):
    """Files and folders that were on their way, which a run that has ended must not leave."""
    found = (path for end in ("tmp", "writing") for path in folder.rglob(f".*.{end}"))
    return sorted(str(path.relative_to(folder)) for path in found)


# ---- with little memory ---------------------------------------------------------------------------------

MEMORY = 192 << 20  # bytes more than a process has at its start
PATIENCE = 60  # seconds


def outcomes(call, folders):
    """What ``call(folder)`` says of each, in a process that has little memory: an error, or "accepted".

    One that the process does not survive, or that takes long, has no answer, nor have those behind it.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = start(_answer, call, folders, sender)
    sender.close()
    found = []
    while len(found) < len(folders) and receiver.poll(PATIENCE):
        try:
            found.append(receiver.recv())
        except EOFError:
            break
    process.kill()
    process.join()
    return found + ["no answer"] * (len(folders) - len(found))


def _answer(call, folders, sender):
    torch.set_num_threads(1)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    warnings.simplefilter("ignore")
    for folder in folders:
        try:
            call(folder)
            sender.send("accepted")
        except Exception as error:
            sender.send(f"{type(error).__name__}: {error}")
