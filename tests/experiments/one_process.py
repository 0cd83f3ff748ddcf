"""``flashlla run`` whose trials are computed in the process of the command, so that one kill ends all."""

import contextlib
import os

import torch

from flashlla import cli
from flashlla.experiments.common import executors
from flashlla.experiments.common.sweep import compute


def submit(name, jobs):
    for key, trial, folder in jobs:
        yield key, compute(name, trial, folder)


def run(words):
    """The command, and nothing that it prints."""
    torch.set_num_threads(1)
    executors.processes = lambda workers: submit
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        code = cli.main(words)
    if code:
        raise SystemExit(code)
