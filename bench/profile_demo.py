"""Where a training step of ``flashlla demo`` spends its time: every operation above 5 %, LLA and softmax.

    python bench/profile_demo.py [--steps 10]

One thread, the model, batches and loop of the demo. The table is printed and put into docs/performance.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from _common import ROOT, describe, machine, markdown_table, replace_between_markers
from torch.profiler import ProfilerActivity, profile

from flashlla.experiments.demo import Settings, data
from flashlla.experiments.demo.training import _trainer

LEAST_SHARE = 0.05
WARMUP_STEPS = 3
NOT_AN_OPERATION = "everything else: Python, and what is in no operation"


def shares(mixer: str, steps: int) -> tuple[float, Counter[str]]:
    """Milliseconds of a step, and the part of every operation in it, without those that it calls."""
    corpus = data.load_corpus()
    settings = Settings(steps=WARMUP_STEPS + steps, corpus=corpus.digest)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(mixer, settings, corpus, Path(folder), lambda records: None, evaluations=1)
        trainer.model.train()
        for _ in range(WARMUP_STEPS):
            trainer.train_step()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            begun = time.perf_counter()
            for _ in range(steps):
                trainer.train_step()
            seconds = time.perf_counter() - begun
    parts = Counter({e.key: e.self_cpu_time_total / 1e6 / seconds for e in profiler.key_averages()})
    parts[NOT_AN_OPERATION] = 1 - parts.total()
    return seconds / steps * 1e3, parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10, help="steps that are profiled")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    this, found = machine(), {mixer: shares(mixer, steps) for mixer in ("lla", "softmax")}
    header = ["operation", *(f"{mixer}, {ms:.0f} ms a step" for mixer, (ms, _) in found.items())]
    columns = [parts for _, parts in found.values()]
    names = sorted(
        {name for parts in columns for name, share in parts.items() if share > LEAST_SHARE},
        key=lambda name: -columns[0][name],
    )
    lines = [[name, *(f"{100 * parts[name]:.1f} %" for parts in columns)] for name in names]
    table = f"{describe(this)} One thread.\n\n{markdown_table(header, lines)}"
    print(table)
    replace_between_markers(ROOT / "docs" / "performance.md", "profile-demo", f"\n{table}\n")


if __name__ == "__main__":
    main()
