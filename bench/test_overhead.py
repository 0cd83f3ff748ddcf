"""What a call costs besides its backend: checks, the choice of a backend, PyTorch's dispatch.

The calls are the smallest there are: one query, one key, one head. A backend that hands out a ready result
stands in for the real one; a part costs what a call is faster by while a ready result stands in for the part.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from _common import check, interleave, problem
from torch import Tensor

from flashlla import (
    _backends,
    _library,
    _validation,
    functional,
    lla_attention,
    lla_attention_varlen,
    lla_attention_with_kvcache,
)
from flashlla.ops import cpu
from flashlla.ops.types import Forward

BAR = 60  # microseconds
CALLS, ROUNDS = 200, 25


def ready(result: object) -> Callable:
    return lambda *_args, **_options: result


def result_of_backend(call: Callable) -> tuple[tuple, Forward]:
    """The arguments that a call gives the backend, and what it gets back."""
    with mock.patch.object(cpu, "forward", wraps=cpu.forward) as seen:
        call()
    arguments = seen.call_args.args
    return arguments, cpu.forward(*arguments)


def repeated(call: Callable, *parts: tuple[object, str, object]) -> Callable:
    """Many calls while the parts, ``(module, name, stand-in)``, are replaced."""

    def run() -> None:
        with ExitStack() as stack:
            for part in parts:
                stack.enter_context(mock.patch.object(*part))
            for _ in range(CALLS):
                call()

    return run


def microseconds(times: dict[str, float]) -> dict[str, float]:
    return {name: seconds / CALLS * 1e6 for name, seconds in times.items()}


def members() -> dict[str, Callable[[], Tensor]]:
    """The same problem as a dense batch, as a packed one and over a cache."""
    operands, _ = problem(1, 1)
    q, k, v = (operands[name] for name in ("q", "k", "v"))
    packed, ends, used = [t[0] for t in (q, k, v)], torch.tensor([0, 1]), torch.tensor([1])
    return {
        "lla_attention": lambda: lla_attention(q, k, v, ridge=1.0),
        "lla_attention_varlen": lambda: lla_attention_varlen(*packed, ends, ridge=1.0)[None],
        "lla_attention_with_kvcache": lambda: lla_attention_with_kvcache(
            q, k, v, cache_seqlens=used, ridge=1.0
        ),
    }


@pytest.mark.parametrize("name", members())
def test_overhead(benchmark, report, name):
    check(lla_attention, problem(1, 1)[0], backend="cpu")
    call = members()[name]
    torch.testing.assert_close(call(), members()["lla_attention"](), rtol=1e-6, atol=1e-6)
    _, result = result_of_backend(call)
    contenders = {
        "overhead": repeated(call, (cpu, "forward", ready(result))),
        "whole": repeated(call),
    }
    us = microseconds(interleave(benchmark, contenders, ROUNDS))
    report(
        "Overhead of a call, in microseconds",
        f"{name}, without a gradient",
        us["overhead"],
        at_most=BAR,
        detail={"with the backend": f"{us['whole']:.0f}"},
    )


def test_parts(benchmark, report):
    """Of :func:`lla_attention`; what is left is the cost of the functions that call one another."""
    operands, _ = problem(1, 1)
    q, k, v = (operands[name] for name in ("q", "k", "v"))
    call = members()["lla_attention"]
    arguments, result = result_of_backend(call)
    backend = (cpu, "forward", ready(result))
    leaf = q.clone().requires_grad_()

    def with_gradient() -> None:
        with torch.enable_grad():
            lla_attention(leaf, k, v, ridge=1.0)

    checks = ("check_operands", "check_per_row", "check_options", "check_values")
    parts = {
        "validation": [(_validation, check, ready(None)) for check in checks],
        "choice of the backend": [(_backends, "choose_name", ready("cpu"))],
        "ridge and gate as tensors": [(functional, "_per_row", ready(arguments[5]))],
        "dispatch to the operator and back": [(_library, "forward", direct)],
    }
    kernel = SimpleNamespace(Problem=cpu._C.Problem, forward=ready(None), decode=ready(None))
    contenders = {
        "call": repeated(call, backend),
        **{name: repeated(call, backend, *replaced) for name, replaced in parts.items()},
        "with a gradient": repeated(with_gradient, backend),
        "backend": repeated(lambda: cpu.forward(*arguments)),
        "backend without its kernel": repeated(lambda: cpu.forward(*arguments), (cpu, "_C", kernel)),
    }
    us = microseconds(interleave(benchmark, contenders, ROUNDS))
    costs = {name: us["call"] - us[name] for name in parts}
    costs["the rest"] = us["call"] - sum(costs.values())
    costs["more with a gradient: autograd"] = us["with a gradient"] - us["call"]
    costs["backend: allocation, pointers"] = us["backend without its kernel"]
    costs["backend: kernel"] = us["backend"] - us["backend without its kernel"]
    for name, cost in costs.items():
        report(
            "Parts of a call of lla_attention, in microseconds",
            name,
            cost,
            better="smaller",
            spread=benchmark.extra_info["spread"] * us["call"] / max(cost, 1.0),  # of a difference of calls
        )


def direct(*operands) -> Forward:
    """What :func:`flashlla._library.forward` does, without PyTorch in between."""
    *tensors, layout, options, backend, stats = operands
    return Forward(*_library._forward(*tensors, *layout, *options, backend, stats))
