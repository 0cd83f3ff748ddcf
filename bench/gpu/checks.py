"""Correctness before speed: calls of every kind on the device against float64, within the promised budgets.

Checks come in groups, and on a GPU every group is a process of its own: a kernel that crashes takes its
group with it and nothing else, and groups compile side by side what the timings will find compiled.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from baselines.published import candidates, default_configs, published_attention
from torch import Tensor

import flashlla
from flashlla.testing.numerics import ceiling, error_norm_ratio, evaluate, exact
from flashlla.testing.problems import random_operands
from gpu.calls import FUNCTIONS
from gpu.training import MIXER_NAMES, WARM_UP, Trainer

TIMED = ("timed", "compile")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
PACKED = {"lla": flashlla.lla_attention_varlen, "parallax": flashlla.parallax_attention_varlen}
PACKED |= {"softmax": flashlla.softmax_attention_varlen}
RIDGES = (10.0, 1.0, 0.1, 0.01)
HARMLESS = 0.05  # error that the published algorithm may have at ridge 10
NOT_FINITE = 1e9  # stands for the error of a result that is not
TIMED_HEADS = 16  # like the calls that are timed: Triton compiles anew for a number that 16 does not divide


class Check(NamedTuple):
    """One call with its gradients.

    ``variation`` is ``plain``, ``grouped``, ``window``, ``bidirectional`` or ``packed``; ``timed`` are calls
    just as they are timed, ``compile`` is one that is only run, ``training`` a training step.
    """

    kind: str
    dtype: str
    head_dim: int
    n: int
    ridge: float | None = None
    variation: str = "plain"
    data: str = "iid"
    heads: int = 2

    @property
    def name(self) -> str:
        ridge = "" if self.ridge is None else f", ridge {self.ridge:g}"
        shape = f"{self.dtype}, d={self.head_dim}, n={self.n}"
        return f"{self.kind}{ridge}, {self.variation}, {self.data}, {shape}"


# ---- which checks ----------------------------------------------------------------------------------------


def groups(quick: bool, interpreted: bool) -> dict[str, list[Check]]:
    """Checks by the name of their group; those that compile longest come first."""
    if interpreted:
        return _tiny()
    dims, found = (64,) if quick else (64, 128), {}
    for dim in dims:
        found[f"lla d={dim}"] = _steady("lla", "bfloat16", dim)
        found[f"lla timed d={dim}"] = _timed("lla", dim)
    found["training"] = [Check(mixer, "bfloat16", 64, 4096, variation="training") for mixer in MIXER_NAMES]
    for dim in dims:
        found[f"published d={dim}"] = [
            Check("published", "bfloat16", dim, 2048, 10.0, "timed", heads=TIMED_HEADS)
        ]
        for kind in ("parallax", "softmax"):
            found[f"{kind} d={dim}"] = [*_steady(kind, "bfloat16", dim), *_timed(kind, dim)]
    for kind, ridges in (("lla", (1.0, 0.1)), ("parallax", (None,)), ("softmax", (None,))):
        for variation in ("grouped", "window", "bidirectional", "packed"):
            found[f"{kind} {variation}"] = [
                Check(kind, "bfloat16", 64, 330, ridge, variation, heads=4) for ridge in ridges
            ]
    for dtype in () if quick else ("float16", "float32"):
        found |= {f"{kind} {dtype}": _steady(kind, dtype, 64) for kind in FUNCTIONS}
    return found


def _steady(kind: str, dtype: str, dim: int) -> list[Check]:
    """Plain calls on all data: standard normal, and keys with a steep spectrum and a large common mean."""
    ridges = RIDGES if kind == "lla" else (None,)
    return [Check(kind, dtype, dim, 330, ridge, data=data) for data in ("iid", "steep") for ridge in ridges]


def _timed(kind: str, dim: int) -> list[Check]:
    ridges = (10.0, 1.0, 0.1) if kind == "lla" else (None,)
    timed = [Check(kind, "bfloat16", dim, 2048, ridge, "timed", heads=TIMED_HEADS) for ridge in ridges]
    return [*timed, Check(kind, "bfloat16", dim, 1024, ridges[0], "compile", heads=TIMED_HEADS)]


def _tiny() -> dict[str, list[Check]]:
    return {
        "lla d=16": [Check("lla", "bfloat16", 16, 40, ridge) for ridge in (1.0, 0.1)],
        "parallax d=16": [Check("parallax", "bfloat16", 16, 40)],
        "softmax d=16": [Check("softmax", "bfloat16", 16, 40)],
        "published d=16": [Check("published", "bfloat16", 16, 40, 10.0)],
        "lla variations": [Check("lla", "float32", 16, 40, 1.0, v) for v in ("grouped", "window", "packed")],
    }


# ---- one check -------------------------------------------------------------------------------------------


def run_check(check: Check, device: torch.device) -> dict:
    """A row: the errors over their ceilings and whether all hold, or what went wrong instead."""
    row, start = {"check": check.name, **check._asdict()}, time.perf_counter()
    try:
        over = _errors_over_ceilings(check, device)
        row |= {"over_ceiling": over, "passed": all(share <= 1 for share in over.values())}
    except Exception as error:  # whatever a kernel does, it is a failed check
        traceback.print_exc()
        row |= {"over_ceiling": {}, "passed": False, "error": f"{type(error).__name__}: {error}"[:500]}
    return {**row, "seconds": round(time.perf_counter() - start, 2)}


def _errors_over_ceilings(check: Check, device: torch.device) -> dict[str, float]:
    """Error norm ratios as shares of what is allowed; empty where there is nothing to compare."""
    if check.variation == "training":
        Trainer(check.kind, WARM_UP, device).step()
        return {}
    operands, do = random_operands(
        check.data,
        q_len=check.n,
        heads=check.heads,
        kv_heads=check.heads // 2 if check.variation == "grouped" else None,
        head_dim=check.head_dim,
        dtype=DTYPES[check.dtype],
        ridge=None if check.variation in TIMED else check.ridge,
        gate=check.variation not in TIMED and check.kind == "lla",
        probe=check.kind == "parallax",
    )
    operands, do = {name: t.to(device) for name, t in operands.items()}, do.to(device)
    if check.kind == "published":
        return _published_over_ceilings(check, operands, do)
    if check.variation in TIMED:
        return _timed_over_ceilings(check, operands, do)
    function, options = FUNCTIONS[check.kind], {}
    if check.variation == "packed":
        function, operands, do = PACKED[check.kind], {name: t[0] for name, t in operands.items()}, do[0]
        ends = [0, 1, check.n // 3, check.n // 3, check.n]
        options["cu_seqlens"] = torch.tensor(ends, dtype=torch.int32, device=device)
    options |= {
        "window": {"window_size": check.n // 3},
        "bidirectional": {"causal": False},
    }.get(check.variation, {})
    actual = evaluate(function, operands, do, backend="triton", **options)
    return _shares(check, actual, exact(function, operands, do, **options))


def _shares(check: Check, actual: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    limits = {name: ceiling(DTYPES[check.dtype], check.ridge, gradient=name != "out") for name in truth}
    found = {name: error_norm_ratio(actual[name], truth[name]) / limits[name] for name in truth}
    return {name: share if math.isfinite(share) else NOT_FINITE for name, share in found.items()}


def _timed_over_ceilings(check: Check, operands: dict[str, Tensor], do: Tensor) -> dict[str, float]:
    """A call as it is timed; heads do not meet, so the first and the last one stand for all."""
    function, options, exactly = FUNCTIONS[check.kind], {"backend": "triton"}, {"backend": "blockwise"}
    if check.kind == "lla":
        options |= {"ridge": check.ridge}
        exactly |= {"ridge": check.ridge, "rtol": 1e-9}
        with torch.no_grad():
            flashlla.lla_attention_with_stats(**operands, **options)
    actual = evaluate(function, operands, do, **options)
    if check.variation == "compile":
        return {}
    wide = {name: t[:, :, [0, -1]].double() for name, t in operands.items()}
    truth = evaluate(function, wide, do[:, :, [0, -1]].double(), **exactly)
    return _shares(check, {name: t[:, :, [0, -1]] for name, t in actual.items()}, truth)


def _published_over_ceilings(check: Check, operands: dict[str, Tensor], do: Tensor) -> dict[str, float]:
    """The baseline at a mild ridge, in the configurations that it may run in."""
    operands = {name: operands[name] for name in ("q", "k", "v")}
    call = partial(evaluate, published_attention, operands, do, ridge=check.ridge)
    defaults = default_configs(check.head_dim)
    out = call(configs=defaults)["out"][:, :, [0, -1]]
    for kernel, choices in candidates(check.head_dim).items() if check.variation == "timed" else ():
        for config in choices:
            try:
                call(configs=defaults._replace(**{kernel: config}))
            except Exception as error:  # too large for this device: the search leaves it out
                print(f"{check.name}: {kernel} {tuple(config)}: {error}"[:300])
    wide = {name: t[:, :, [0, -1]].double() for name, t in operands.items()}
    truth = flashlla.lla_attention(**wide, ridge=check.ridge, backend="blockwise", rtol=1e-9)
    return {"out": error_norm_ratio(out, truth) / HARMLESS}


# ---- all checks ------------------------------------------------------------------------------------------


def run_all(session) -> list[dict]:
    """The rows of all groups; a group that does not come back fails as a whole."""
    todo = groups(session.quick, session.interpreted)
    if session.interpreted:
        return [run_check(check, session.device) for checks in todo.values() for check in checks]
    seconds = session.minutes * 60 * 0.45
    deadline = time.monotonic() + min(seconds, session.left())
    with ThreadPoolExecutor(min(16, os.cpu_count() or 2)) as pool:  # each mostly compiles, on one core
        results = pool.map(lambda name: _elsewhere(name, todo[name], session, deadline), todo)
        return [row for rows in results for row in rows]


def _elsewhere(name: str, checks: list[Check], session, deadline: float) -> list[dict]:
    """A group in a process of its own."""
    script = str(Path(__file__).parents[1] / "gpu_run.py")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, script, "--device", str(session.device), "--check", name, "--out", folder]
        try:
            done = subprocess.run(
                [*command, *(["--quick"] if session.quick else [])],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=max(1.0, deadline - time.monotonic()),
            )
            why = f"its process ended with {done.returncode}: {done.stdout[-300:]}"
        except subprocess.TimeoutExpired:
            why = "it did not end in time"
        path = Path(folder) / "checks.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    missing = [{"check": check.name, **check._asdict()} for check in checks[len(rows) :]]
    return rows + [{**row, "over_ceiling": {}, "passed": False, "error": why} for row in missing]


def run_group(name: str, quick: bool, device: torch.device, folder: Path) -> None:
    """What the process of a group does: a line of ``checks.jsonl`` for every check, written as it ends."""
    with open(folder / "checks.jsonl", "w") as file:
        for check in groups(quick, interpreted=device.type != "cuda")[name]:
            print(json.dumps(run_check(check, device)), file=file, flush=True)
