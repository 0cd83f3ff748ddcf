"""A server that decodes for hours: does memory stay where it was, and every page come back?

    python bench/soak.py [--minutes 60] [--seed 0]

Requests of random lengths come and go in the pages of one table: they start as forks of a shared prefix, some
are cut back and go on, some fork, all are released. Between them the same prompts are continued over every
kind of cache, and the tokens have to be those of the first time. Memory, files and threads are sampled on
the way. The samples are saved as ``soak.json`` under ``bench/results/<machine>``, with a figure beside
docs/reliability.md, whose table is rewritten; with ``--minutes`` below 10 they are only printed.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import psutil
import torch
from _common import (
    ROOT,
    describe,
    machine,
    markdown_table,
    replace_between_markers,
    results_folder,
    save_json,
)

from flashlla.models import LanguageModel, LanguageModelConfig, generate
from flashlla.nn import PageTable
from flashlla.nn.cache import KINDS

PAGE = ROOT / "docs" / "reliability.md"
FIGURE = ROOT / "docs" / "images" / "soak.png"
SETTLED = 0.1  # share of the run behind which memory has to stay where it is
SHORTEST = 10  # minutes of a run that is saved
MIXERS = ("lla", "softmax", "parallax")
PAGES, PAGE_SIZE, PREFIX, MOST_RUNNING, LONGEST = 640, 16, 200, 12, 600


@dataclass(frozen=True)
class Sample:
    """The process at one moment; memory in MiB."""

    seconds: float
    tokens: int
    requests: int
    resident: float
    files: int
    threads: int


@dataclass
class Request:
    """A sequence of the table, its last token, and how many more it wants."""

    token: int
    left: int


class Server:
    """Requests that decode together over the pages of one table."""

    def __init__(self, model: LanguageModel, seed: int):
        self.model, self.random = model, random.Random(seed)
        self.table = PageTable(PAGES, PAGE_SIZE)
        self.states = model.make_paged_states(self.table)
        self.prefix = self.table.admit()
        self.read([self.prefix], [self.draw(PREFIX)])
        self.running: dict[int, Request] = {}
        self.tokens = self.requests = 0

    def draw(self, length: int) -> list[int]:
        return [self.random.randrange(self.model.config.vocab_size) for _ in range(length)]

    def read(self, sequences: list[int], rows: list[list[int]]) -> list[int]:
        """Let each sequence read its row, of any lengths; the likeliest tokens behind them."""
        self.table.select(sequences)
        lengths = [len(row) for row in rows]
        padded = torch.tensor([row + [0] * (max(lengths) - len(row)) for row in rows])
        ragged = lengths if len(set(lengths)) > 1 else None
        logits = self.model(padded, self.states, lengths=ragged, last_only=True)[:, -1]
        assert torch.isfinite(logits).all(), "logits are not finite"
        return logits.argmax(-1).tolist()

    def step(self) -> None:
        """Requests come in while there is room, all that run gain a token, and some fork, go back or end."""
        while len(self.running) < MOST_RUNNING and self.room() and self.random.random() < 0.5:
            self.admit()
        if not self.running:
            return
        sequences = list(self.running)
        tokens = self.read(sequences, [[self.running[s].token] for s in sequences])
        for sequence, token in zip(sequences, tokens, strict=True):
            request = self.running[sequence]
            request.token, request.left = token, request.left - 1
            self.tokens += 1
            self.turn(sequence, request)

    def room(self) -> bool:
        """Whether one more could grow to its end without another that has to make room."""
        return self.table.free_pages > (len(self.running) + 1) * (-(-LONGEST // PAGE_SIZE) + 1)

    def admit(self) -> None:
        sequence = self.table.fork(self.prefix, self.random.randint(0, PREFIX))
        (token,) = self.read([sequence], [self.draw(self.random.randint(1, 100))])
        self.running[sequence] = Request(token, self.random.randint(1, 250))
        self.requests += 1

    def turn(self, sequence: int, request: Request) -> None:
        if request.left <= 0 or self.table.length_of(sequence) >= LONGEST:
            del self.running[sequence]
            self.table.release(sequence)
        elif self.random.random() < 0.01:  # as speculative decoding goes back
            self.table.truncate(sequence, self.table.length_of(sequence) - self.random.randint(1, 20))
        elif self.random.random() < 0.01 and len(self.running) < MOST_RUNNING and self.room():
            self.running[self.table.fork(sequence)] = Request(request.token, request.left)
            self.requests += 1

    def close(self) -> int:
        """Release all; the number of pages that did not come back."""
        for sequence in [*self.running, self.prefix]:
            self.table.release(sequence)
        self.running.clear()
        return self.table.pages - self.table.free_pages


def make_model() -> LanguageModel:
    """Blocks of every family, with a window: what all kinds of caches can hold."""
    torch.manual_seed(0)
    options = {name: {"window_size": 256} for name in MIXERS}
    config = LanguageModelConfig(
        vocab_size=256, dim=128, depth=len(MIXERS), heads=4, kv_heads=2, mixer=MIXERS, mixer_options=options
    )
    return LanguageModel(config).eval()


def continuations(model: LanguageModel) -> dict[str, torch.Tensor]:
    """The same prompts continued over every kind of cache."""
    prompt = torch.randint(256, (2, 50), generator=torch.Generator().manual_seed(1))
    return {kind: generate(model, prompt, 30, cache=kind) for kind in KINDS}


def sample(server: Server, began: float) -> Sample:
    process = psutil.Process()
    seconds, resident = time.monotonic() - began, process.memory_info().rss / 2**20
    return Sample(seconds, server.tokens, server.requests, resident, process.num_fds(), process.num_threads())


@torch.no_grad()
def soak(minutes: float, seed: int) -> Iterator[Sample]:
    """Decode, and yield a sample every few seconds; the last one behind the release of all."""
    model = make_model()
    first = continuations(model)
    server, began, last = Server(model, seed), time.monotonic(), 0.0
    while (now := time.monotonic() - began) < 60 * minutes:
        server.step()
        if now - last > 0.3 * minutes:
            for kind, tokens in continuations(model).items():
                assert torch.equal(tokens, first[kind]), f"cache={kind!r} has continued in another way"
            yield sample(server, began)
            last = now
    lost = server.close()
    assert not lost, f"{lost} pages did not come back"
    yield sample(server, began)


def settled(samples: list[Sample]) -> list[Sample]:
    """Those behind the start, in which memory is still taken."""
    return [s for s in samples if s.seconds > SETTLED * samples[-1].seconds]


def growth(samples: list[Sample]) -> float:
    """Resident memory in MiB an hour once it has settled: the slope of a line through the samples."""
    samples = settled(samples)
    return 3600 * np.polyfit([s.seconds for s in samples], [s.resident for s in samples], 1)[0]


def section(this: dict, samples: list[Sample]) -> str:
    """What was measured, as a table."""
    later = settled(samples)
    memory = [s.resident for s in later]
    last = samples[-1]
    rows = [
        ["minutes", f"{last.seconds / 60:.0f}"],
        ["requests, tokens decoded", f"{last.requests}, {last.tokens}"],
        ["pages that did not come back", "0"],
        ["continuations that changed", "0"],
        ["resident memory, lowest and highest", f"{min(memory):.1f} and {max(memory):.1f} MiB"],
        ["its growth, by a line through all samples", f"{growth(samples):+.2f} MiB an hour"],
        ["open files, first and last", f"{later[0].files} and {last.files}"],
        ["threads, first and last", f"{later[0].threads} and {last.threads}"],
    ]
    note = f"The first {SETTLED:.0%} of the time is left out of what is said of memory, files and threads."
    return f"{describe(this)}\n\n{markdown_table(['what', 'measured'], rows)}\n\n{note}"


def plot(samples: list[Sample]) -> None:
    """Memory and tokens over the time."""
    from matplotlib import rc_context

    from flashlla.experiments.common import figures

    minutes = [s.seconds / 60 for s in samples]
    drawn = {
        "resident memory, MiB": [s.resident for s in samples],
        "tokens decoded, thousands": [s.tokens / 1000 for s in samples],
    }
    with rc_context(figures.SETTINGS):
        figure, axes = figures.panels(len(drawn))
        for axis, (title, values) in zip(axes[0], drawn.items(), strict=True):
            axis.plot(minutes, values)
            axis.set(title=title, xlabel="minutes", ylim=(0, None))
    figures.save_png(figure, FIGURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="how long (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the requests (default: 0)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    this, samples = machine(), []
    for taken in soak(options.minutes, options.seed):
        samples.append(taken)
        print(
            f"{taken.seconds / 60:5.1f} min, {taken.requests} requests, {taken.tokens} tokens, "
            f"{taken.resident:.1f} MiB, {taken.files} files, {taken.threads} threads",
            flush=True,
        )
    print(section(this, samples))
    if options.minutes < SHORTEST:
        return
    entries = [asdict(taken) for taken in samples]
    save_json(results_folder() / "soak.json", {"machine": this, "seed": options.seed, "samples": entries})
    plot(samples)
    replace_between_markers(PAGE, "soak", section(this, samples))


if __name__ == "__main__":
    main()
