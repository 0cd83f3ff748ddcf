"""Measure configurations on the GPU that is there: what ``flashlla tune`` runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from unittest import mock

import torch
import triton

from flashlla.ops import triton as backend
from flashlla.ops.triton import _configs, tuning
from flashlla.ops.triton.tuning import CANDIDATES, DECODING_CANDIDATES, Config
from flashlla.ops.types import Forward, Gradients, Layout, Options

FORWARD = ("probe_fwd", "apply_fwd")  # the other kernels of training are those of the backward pass


def tune(
    head_dim: int,
    length: int = 4096,
    heads: int = 16,
    device: str = "cuda",
    candidates: Iterable[Config] = CANDIDATES,
    decoding_candidates: Iterable[Config] = DECODING_CANDIDATES,
    report: Callable[[str], object] = lambda line: None,
) -> dict[str, Config]:
    """The fastest configuration of every kernel for one head dimension, bfloat16, causal, ridge 1.

    One kernel is varied at a time, within a whole forward or backward pass or a whole step of decoding, so
    what is compared is what counts.

    Args:
        report: called with a line of text for every kernel.
    """
    pass_of = _passes(head_dim, length, heads, device)
    block = _configs.padded(head_dim)
    chosen: dict[str, Config] = {}
    for kernel in (*_configs.KERNELS, *_configs.DECODING):
        start = _configs.heuristic(kernel, _configs.architecture(torch.device(device)), block, wide=False)

        def measure(config: Config, kernel: str = kernel) -> float:
            with mock.patch.object(_configs, "choose", _with({**chosen, kernel: config})):
                return _milliseconds(pass_of(kernel), device)

        before = measure(start)
        tried = decoding_candidates if kernel in _configs.DECODING else candidates
        chosen[kernel], after = tuning.fastest(measure, tried, start)
        report(f"{kernel}: {tuple(start)} {before:.3f} ms, {tuple(chosen[kernel])} {after:.3f} ms")
    return {tuning.key(kernel, block): config for kernel, config in chosen.items()}


def _passes(head_dim: int, length: int, heads: int, device: str) -> Callable[[str], Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    q, k, v, do = (
        torch.randn(1, length, heads, head_dim, generator=generator).to(device, torch.bfloat16)
        for _ in range(4)
    )
    ridge, gate = (torch.ones(1, length, heads, device=device) for _ in range(2))
    options = Options(head_dim**-0.5, True, 0, "cg", 1e-3, 2 * head_dim + 16)
    layout = Layout()

    def forward() -> Forward:
        return backend.forward(q, k, v, None, ridge, gate, layout, options, False)

    def step(probe: torch.Tensor | None = None) -> Forward:
        lengths = torch.full((1,), length, device=device)
        own = None if probe is not None else ridge[:, -1:]
        return backend.forward(
            q[:, -1:], k, v, probe, own, gate[:, -1:], Layout(seqlens_k=lengths), options, False
        )

    out = forward()

    def backward() -> Gradients:
        return backend.backward(do, q, k, v, None, ridge, gate, out.kbar, out.g, layout, options)

    passes = {"moments": step, "weighted": lambda: step(q[:, -1:]), **dict.fromkeys(FORWARD, forward)}
    return lambda kernel: passes.get(kernel, backward)


def _with(configs: dict[str, Config]) -> Callable[..., Config]:
    """``_configs.choose`` with some kernels decided."""
    choose = _configs.heuristic

    def chosen(kernel: str, device: torch.device, block: int, wide: bool) -> Config:
        if not wide and kernel in configs:
            return configs[kernel]
        return choose(kernel, _configs.architecture(device), block, wide)

    return chosen


def _milliseconds(run: Callable[[], object], device: str) -> float:
    """Median time on a GPU; one run where kernels are interpreted."""
    if device == "cuda":
        median: float = triton.testing.do_bench(run, warmup=20, rep=60, return_mode="median")
        return median
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)
