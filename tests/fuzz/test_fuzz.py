"""Random calls: a typed error before anything is computed, or a correct result."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from flashlla import _backends
from flashlla.ops import reference
from flashlla.ops.types import Options
from flashlla.testing import numerics
from flashlla.testing.strategies import Call, broken_calls, calls

TYPED = (ValueError, TypeError, NotImplementedError)


def cases(share: float):
    """Settings for this share of all random calls; see ``--fuzz-cases``."""

    def apply(test):
        profile = settings.get_profile("fuzz")
        return settings(profile, max_examples=max(1, round(share * profile.max_examples)))(test)

    return apply


def backends(dtype: torch.dtype) -> tuple[str, ...]:
    return ("blockwise",) if dtype == torch.float64 else ("blockwise", "cpu")


def closed_form(call: Call) -> dict[str, Tensor]:
    """Exact output and gradients in the shapes of the operands, sequence by sequence.

    The gradients come from the closed form, which tests/reference holds to autograd: its zeros are exact
    where a row sees one key, while those of autograd are the rounding of what cancels.
    """
    shapes = {"out": call.do.shape, **{name: t.shape for name, t in call.operands.items()}}
    rows = call.operands["q"].shape[:-1]
    total = {
        name: torch.zeros(rows if name in ("ridge", "gate") else shape, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    for operands, do, where in call.sequences():
        tensors = {name: t.double() for name, t in operands.items()}
        out = numerics.exact(call.dense_function, tensors, **call.mask)["out"]
        results = {"out": out, **gradients(tensors, do.double(), call.mask)}
        for name in total:
            value = results[name]
            total[name][where[name]] = value[0] if call.form == "varlen" else value
    return {name: t.sum_to_size(shapes[name]) if shapes[name] else t.sum() for name, t in total.items()}


def gradients(operands: dict[str, Tensor], do: Tensor, mask: dict) -> dict[str, Tensor]:
    q, k, v, r, ridge = (operands.get(name) for name in ("q", "k", "v", "r", "ridge"))
    gate = operands.get("gate", torch.ones(q.shape[:-1], dtype=torch.float64))
    scale = mask.get("scale", q.shape[-1] ** -0.5)
    options = Options(scale, mask.get("causal", True), mask.get("window_size", 0), "auto", 0.5, 1)
    grads = reference.attention_backward(do, q, k, v, None if r is None else -r, ridge, gate, options)
    named = {"q": grads.dq, "k": grads.dk, "v": grads.dv, "ridge": grads.dridge, "gate": grads.dgate}
    return named if r is None else {**named, "r": -grads.dprobe}


def floors(call: Call) -> dict[str, float]:
    """Typical norms of all results: what counts where the exact ones cancel."""
    pieces = [numerics.typical_norms(operands, do, **call.mask) for operands, do, _ in call.sequences()]
    return {name: math.hypot(*(piece[name] for piece in pieces)) for name in (pieces[0] if pieces else ())}


def hold_to_budget(call: Call, actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    floor = None
    for name, value in actual.items():
        gradient = name != "out"
        limit = numerics.ceiling(call.dtype, call.lowest_ridge, gradient)
        if floor is None and not numerics.error_norm_ratio(value, expected[name]) <= limit:
            floor = floors(call)
        numerics.assert_within_budget(
            value,
            expected[name],
            call.dtype,
            call.lowest_ridge,
            gradient,
            name,
            floor[name] if floor else 0.0,
        )


@cases(0.6)
@given(calls(forms=("dense", "varlen")))
def test_results_and_gradients(call):
    expected = closed_form(call)
    for backend in backends(call.dtype):
        actual = numerics.evaluate(call.function, call.operands, call.do, backend=backend, **call.options)
        assert actual["out"].dtype == call.dtype
        hold_to_budget(call, actual, expected)


@cases(0.2)
@given(calls(forms=("kvcache",)))
def test_results_over_a_cache(call):
    expected = torch.zeros(call.do.shape, dtype=torch.float64)
    for operands, _, where in call.sequences():
        expected[where["out"]] = numerics.exact(call.dense_function, operands, **call.mask)["out"]
    after = {name: call.filled(name) for name in ("k", "v")}
    for backend in backends(call.dtype):
        operands = {name: t.clone() if name.endswith("_cache") else t for name, t in call.operands.items()}
        out = numerics.evaluate(call.function, operands, backend=backend, **call.options)
        hold_to_budget(call, out, {"out": expected})
        for name, cache in after.items():
            assert same_cache(operands[f"{name}_cache"], cache)


def assert_refused(function, operands: dict, options: dict) -> None:
    """A typed error, no backend reached, and no cache written."""
    caches = {name: t for name, t in operands.items() if name.endswith("_cache") and isinstance(t, Tensor)}
    before = {name: t.clone() for name, t in caches.items()}
    reached = AssertionError("a backend was reached")
    with mock.patch.object(_backends, "load", side_effect=reached), pytest.raises(TYPED) as caught:
        function(**operands, **options)
    assert type(caught.value) in TYPED
    assert all(same_cache(caches[name], t) for name, t in before.items() if t.device.type == "cpu")


def same_cache(a: Tensor, b: Tensor) -> bool:
    """Equal, and NaN in the same slots."""
    return torch.equal(a.nan_to_num(77.0), b.nan_to_num(77.0))


@cases(0.1)
@given(broken_calls())
def test_broken_calls_are_refused(call):
    for backend in ("blockwise", "cpu"):
        assert_refused(call.function, call.operands, {"backend": backend, **call.options})


@cases(0.05)
@given(calls(forms=("varlen",)), st.data())
def test_any_cumulative_lengths_are_refused_or_right(call, data):
    total = call.operands["q"].shape[0]
    ends = data.draw(st.lists(st.integers(-1, total + 1), min_size=1, max_size=5), label="cu_seqlens")
    if data.draw(st.booleans(), label="closed"):
        ends = [0, *sorted(ends), total]
    valid = ends[0] == 0 and ends[-1] == total and ends == sorted(ends)
    keys = call.options["cu_seqlens" if "cu_seqlens_k" not in call.options else "cu_seqlens_k"]
    options = {**call.options, "cu_seqlens": torch.tensor(ends)}
    if len(keys) == len(ends):
        options["cu_seqlens_k"] = keys
    elif "k" in call.operands and call.operands["k"].shape[0] == total:
        options.pop("cu_seqlens_k", None)
        keys = options["cu_seqlens"]
    else:
        valid = False
    lengths = list(zip(torch.tensor(ends).diff().tolist(), keys.diff().tolist(), strict=False))
    changed = call._replace(options=options, lengths=lengths)
    for backend in backends(call.dtype):
        if valid:
            actual = numerics.evaluate(
                changed.function, changed.operands, changed.do, backend=backend, **options
            )
            hold_to_budget(changed, actual, closed_form(changed))
        else:
            assert_refused(changed.function, changed.operands, {**options, "backend": backend})


@cases(0.05)
@given(calls(forms=("kvcache",)), st.data())
def test_any_cache_lengths_are_refused_or_right(call, data):
    batch, capacity = call.operands["k_cache"].shape[:2]
    new = call.operands["k"].shape[1] if "k" in call.operands else 0
    used = data.draw(st.lists(st.integers(-1, capacity + 1), min_size=batch, max_size=batch), label="used")
    valid = all(n >= 0 and n + new <= capacity for n in used)
    operands = {
        name: t.nan_to_num(0.5) if name.endswith("_cache") else t for name, t in call.operands.items()
    }
    options = {**call.options, "cache_seqlens": torch.tensor(used, dtype=torch.int64)}
    lengths = [(operands["q"].shape[1], n + new) for n in used]
    changed = call._replace(operands=operands, options=options, lengths=lengths)
    for backend in backends(call.dtype):
        fresh = {name: t.clone() if name.endswith("_cache") else t for name, t in operands.items()}
        if valid:
            out = numerics.evaluate(call.function, fresh, backend=backend, **options)
            expected = numerics.exact(call.function, operands, **options)
            hold_to_budget(changed, out, expected)
        else:
            assert_refused(call.function, fresh, {**options, "backend": backend})


def test_health_checks_are_named():
    """Drawing tensors is slow and large for hypothesis: these two checks are off, no other."""
    assert set(settings.get_profile("fuzz").suppress_health_check) == {
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    }
