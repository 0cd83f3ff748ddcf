"""The compiled kernels against other ways to the same result, and against softmax attention.

All with one thread: those of PyTorch spin while they wait for each other between its many small operations,
and where anything else runs on the machine, two of them would flatter us.
"""

from __future__ import annotations

import pytest
import torch
from _common import (
    HEAD_DIM,
    backward_of,
    check,
    forward_and_backward_of,
    interleave,
    problem,
)
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from flashlla import lla_attention, parallax_attention, softmax_attention
from flashlla.testing.numerics import ceiling, error_norm_ratio


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_blockwise(benchmark, report, shrink, direction):
    """Equal tolerance and equal solver: the gain is that of the kernels, not of the algorithm."""
    n, heads, options = shrink(2048), 4, {"rtol": 1e-3, "solver": "cg"}
    operands, do = problem(n, heads)
    backward = direction == "backward"
    for backend in ("cpu", "blockwise"):
        check(lla_attention, operands, do if backward else None, backend=backend, loosest=1e-3, **options)

    def contender(backend: str):
        if backward:
            return backward_of(lla_attention, operands, do, backend=backend, **options)
        return lambda: lla_attention(**operands, backend=backend, **options)

    times = interleave(benchmark, {name: contender(name) for name in ("cpu", "blockwise")}, rounds=5)
    report(
        "Speed against the blockwise backend",
        f"{direction}, n={n}, {heads} heads, rtol 1e-3, cg, 1 thread",
        times["blockwise"] / times["cpu"],
        "x",
        at_least=1.3,
        detail={f"{name} ms": f"{t * 1e3:.0f}" for name, t in times.items()},
    )


def definition(q: Tensor, k: Tensor, v: Tensor, ridge: Tensor, chunk: int) -> Tensor:
    """The weighted ridge regression of every query as it is defined, for one batch row and one head.

    Normal equations by einsum, a chunk of queries at a time over the keys that the chunk sees.
    """
    q, k, v, ridge = q[0, :, 0], k[0, :, 0], v[0, :, 0], ridge[0, :, 0]
    n, d = q.shape
    outputs = []
    for start in range(0, n, chunk):
        stop = min(start + chunk, n)
        mask = torch.ones(stop - start, stop, dtype=torch.bool).triu(1 + start)
        logits = torch.einsum("td,sd->ts", q[start:stop], k[:stop]) * d**-0.5
        p = logits.masked_fill(mask, -torch.inf).softmax(-1)
        offset = k[:stop] - q[start:stop, None]
        design = torch.cat([torch.ones_like(offset[..., :1]), offset], -1)
        weighted = torch.einsum("ts,tsa->tsa", p, design)
        normal = torch.einsum("tsa,tsb->tab", weighted, design)
        normal[:, range(1, d + 1), range(1, d + 1)] += ridge[start:stop, None]
        moments = torch.einsum("tsa,se->tae", weighted, v[:stop])
        outputs.append(torch.linalg.solve(normal, moments)[:, 0])
    return torch.cat(outputs)[None, :, None]


def test_definition(benchmark, report, shrink):
    """All queries at once, as memory allows at this length, and in chunks that skip most masked keys.

    Of chunks of 8, 16, ... 256 queries, 64 was the fastest.
    """
    n = shrink(1024)
    operands, _ = problem(n, 1)
    check(lla_attention, operands, backend="cpu")
    exact = lla_attention(**{name: t.double() for name, t in operands.items()}, backend="blockwise")
    rivals = {"at once": n, "in chunks of 64 queries": 64}
    for chunk in rivals.values():
        assert error_norm_ratio(definition(**operands, chunk=chunk), exact) <= 10 * ceiling(
            torch.float32, 1.0
        )
    contenders = {"cpu": lambda: lla_attention(**operands, backend="cpu")}
    contenders |= {name: lambda c=chunk: definition(**operands, chunk=c) for name, chunk in rivals.items()}
    times = interleave(benchmark, contenders, rounds=5)
    for name in rivals:
        report(
            "Speed against the definition, written with einsum",
            f"forward, n={n}, 1 head, default rtol, 1 thread, {name}",
            times[name] / times["cpu"],
            "x",
            at_least=40 if name == "at once" else None,
            better="larger",
            detail={"cpu ms": f"{times['cpu'] * 1e3:.1f}", "definition ms": f"{times[name] * 1e3:.0f}"},
        )


MEMBERS = {
    "softmax": (softmax_attention, {"kind": "softmax"}),
    "parallax": (parallax_attention, {"kind": "probe"}),
    "lla, ridge 1": (lla_attention, {"ridge": 1.0}),
    "lla, ridge 0.1": (lla_attention, {"ridge": 0.1}),
}


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("direction", ["forward", "forward and backward"])
def test_softmax(benchmark, report, shrink, direction, member):
    """Times over those of PyTorch's scaled_dot_product_attention; there is no bar."""
    function, kind = MEMBERS[member]
    n, heads, backward = shrink(2048), 8, direction != "forward"
    operands, do = problem(n, heads, **kind)
    check(function, operands, do if backward else None, backend="cpu")

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    qkv = {name: operands[name] for name in ("q", "k", "v")}
    contenders = {"flashlla": (function, operands, {"backend": "cpu"}), "torch sdpa": (sdpa, qkv, {})}
    if backward:
        calls = {name: forward_and_backward_of(f, x, do, **o) for name, (f, x, o) in contenders.items()}
    else:
        calls = {name: lambda f=f, x=x, o=o: f(**x, **o) for name, (f, x, o) in contenders.items()}
    times = interleave(benchmark, calls, rounds=3)
    report(
        f"Time over that of torch SDPA, causal, n={n}, {heads} heads, d={HEAD_DIM}, float32, 1 thread",
        f"{member}, {direction}",
        times["flashlla"] / times["torch sdpa"],
        "x",
        better="smaller",
        detail={f"{name} ms": f"{t * 1e3:.0f}" for name, t in times.items()},
    )
