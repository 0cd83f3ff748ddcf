"""Two ways to ask for the same result give the same bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flashlla import lla_attention, lla_attention_varlen, parallax_attention, parallax_attention_varlen
from flashlla.testing.numerics import assert_within_budget, evaluate
from flashlla.testing.problems import random_operands

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
solver = pytest.mark.parametrize("solver", ["auto", "cg", "direct"])
RIDGE = 0.2


def problem(**changes) -> tuple[dict[str, Tensor], Tensor]:
    sizes = {
        "batch": 2,
        "q_len": 150,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 24,
        "value_dim": 20,
        "ridge": RIDGE,
    }
    return random_operands("iid", **{**sizes, **changes})


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor], names: str = "") -> None:
    for name in names.split() or expected:
        same = actual[name] == expected[name]
        assert torch.equal(actual[name], expected[name]), (
            f"{name}: {int((~same).sum())} of {same.numel()} differ"
        )


@dtype
@solver
def test_packed_sequences_are_single_ones(backend, dtype, solver):
    q_lengths, k_lengths = (5, 0, 70, 1, 17, 3), (5, 4, 70, 130, 2, 0)
    operands, do = problem(batch=1, q_len=sum(q_lengths), kv_len=sum(k_lengths), dtype=dtype)
    cu_q, cu_k = (torch.tensor([0, *lengths]).cumsum(0) for lengths in (q_lengths, k_lengths))
    packed = evaluate(
        lla_attention_varlen,
        {name: t[0] for name, t in operands.items()},
        do[0],
        cu_seqlens=cu_q.int(),
        cu_seqlens_k=cu_k.int(),
        solver=solver,
        backend=backend,
    )
    bounds = zip(cu_q.unfold(0, 2, 1).tolist(), cu_k.unfold(0, 2, 1).tolist(), strict=True)
    for rows, keys in ((slice(*r), slice(*k)) for r, k in bounds):
        part = {name: keys if name in ("k", "v") else rows for name in packed}
        single = {name: t[:, part[name]] for name, t in operands.items()}
        single = evaluate(lla_attention, single, do[:, rows], solver=solver, backend=backend)
        assert_same_bits({n: t[part[n]] for n, t in packed.items()}, {n: t[0] for n, t in single.items()})


def test_packed_parallax_is_single_parallax(backend):
    operands, do = problem(batch=1, q_len=100, ridge=None, probe=True)
    packed = {name: t[0] for name, t in operands.items()}
    cu_seqlens = torch.tensor([0, 33, 100])
    packed = evaluate(parallax_attention_varlen, packed, do[0], cu_seqlens=cu_seqlens, backend=backend)
    for rows in (slice(0, 33), slice(33, 100)):
        single = {name: t[:, rows] for name, t in operands.items()}
        single = evaluate(parallax_attention, single, do[:, rows], backend=backend)
        assert_same_bits({n: t[rows] for n, t in packed.items()}, {n: t[0] for n, t in single.items()})


@dtype
@pytest.mark.parametrize("group", [2, 3, 8])
def test_grouped_heads_are_repeated_heads(backend, dtype, group):
    operands, do = problem(q_len=70, heads=2 * group, dtype=dtype)
    grouped = evaluate(lla_attention, operands, do, backend=backend)
    repeated = {
        name: t.repeat_interleave(group, 2) if name in ("k", "v") else t for name, t in operands.items()
    }
    repeated = evaluate(lla_attention, repeated, do, backend=backend)
    names = ("out", "q", "ridge", "gate")
    if backend == "cpu":
        assert_same_bits(grouped, repeated, " ".join(names))
    for name in ("out", "q", "ridge", "gate"):
        # Not exact, but two results within one budget of the truth lie within two of each other.
        assert_within_budget(grouped[name], repeated[name].double(), dtype, RIDGE, gradient=True, name=name)
    for name in ("k", "v"):
        summed = repeated[name].double().unflatten(2, (2, group)).sum(3)
        assert_within_budget(grouped[name], summed, dtype, RIDGE, gradient=True, name=name)


@pytest.mark.parametrize("n", [20, 64, 150])
@pytest.mark.parametrize("extra", [0, 1, 10**6])
def test_wide_window_is_no_window(backend, n, extra):
    operands, do = problem(q_len=n)
    windowed = evaluate(lla_attention, operands, do, window_size=n + extra, backend=backend)
    assert_same_bits(windowed, evaluate(lla_attention, operands, do, backend=backend))


@dtype
@solver
def test_batch_row_is_that_row_alone(dtype, solver):
    operands, do = problem(batch=3, dtype=dtype)
    together = evaluate(lla_attention, operands, do, solver=solver, backend="cpu")
    for b in range(3):
        row = {name: t[b : b + 1] for name, t in operands.items()}
        alone = evaluate(lla_attention, row, do[b : b + 1], solver=solver, backend="cpu")
        assert_same_bits({name: t[b : b + 1] for name, t in together.items()}, alone)


@dtype
@pytest.mark.parametrize("window_size", [None, 40])
def test_threads_do_not_change_bits(dtype, window_size):
    operands, do = problem(q_len=300, dtype=dtype)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            results.append(evaluate(lla_attention, operands, do, window_size=window_size, backend="cpu"))
        finally:
            torch.set_num_threads(1)
    for other in results[1:]:
        assert_same_bits(other, results[0])


@dtype
@solver
def test_repeats_are_equal(backend, dtype, solver):
    operands, do = problem(dtype=dtype)
    first = evaluate(lla_attention, operands, do, solver=solver, backend=backend)
    assert_same_bits(evaluate(lla_attention, operands, do, solver=solver, backend=backend), first)


@solver
@pytest.mark.parametrize("t", [1, 37, 63, 64, 100])
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_later_tokens_do_not_change_earlier_rows(backend, solver, t, name):
    operands, do = problem(batch=1)
    before = evaluate(lla_attention, operands, do, solver=solver, backend=backend)
    changed = {**operands, name: torch.cat([operands[name][:, :t], 3 - operands[name][:, t:]], 1)}
    after = evaluate(lla_attention, changed, do, solver=solver, backend=backend)
    rows = {n: x[:, :t] for n, x in after.items() if n not in ("k", "v")}
    assert_same_bits(rows, {n: x[:, :t] for n, x in before.items() if n not in ("k", "v")})
    assert not torch.equal(after["out"][:, t:], before["out"][:, t:])


def strided(t: Tensor, kind: str) -> Tensor:
    """The same numbers in other places of memory; between them lies NaN."""
    if kind == "heads_first":
        return t.transpose(1, 2).contiguous().transpose(1, 2)
    if kind == "batch_inside":
        return t.transpose(0, 1).contiguous().transpose(0, 1)
    if kind == "every_other_row":
        host = t.new_full((t.shape[0], 2 * t.shape[1], *t.shape[2:]), torch.nan)[:, 1::2]
    elif kind == "part_of_a_wider_head":
        host = t.new_full((*t.shape[:-1], t.shape[-1] + 3), torch.nan)[..., 2:-1]
    else:  # "every_third_head"
        host = t.new_full((*t.shape[:2], 3 * t.shape[2], t.shape[3]), torch.nan)[:, :, ::3]
    host.copy_(t)
    return host


@dtype
@pytest.mark.parametrize(
    "kind", ["heads_first", "batch_inside", "every_other_row", "part_of_a_wider_head", "every_third_head"]
)
def test_strides_do_not_change_bits(backend, dtype, kind):
    operands, do = problem(dtype=dtype)
    views = {name: strided(t, kind) if name in ("q", "k", "v") else t for name, t in operands.items()}
    actual = evaluate(lla_attention, views, strided(do, kind), backend=backend)
    assert_same_bits(actual, evaluate(lla_attention, operands, do, backend=backend))


def test_expanded_operands(backend):
    operands, do = problem(batch=1)
    do = do[..., :1, :1]
    views = {name: t.expand(3, *t.shape[1:]) for name, t in operands.items()}
    full = {name: t.contiguous() for name, t in views.items()}
    do = do.expand(3, 150, 4, 20)
    actual = evaluate(lla_attention, views, do, backend=backend)
    assert_same_bits(actual, evaluate(lla_attention, full, do.contiguous(), backend=backend))


@pytest.mark.parametrize("shape", [(), (1,), (4,), (150, 1), (150, 4), (2, 1, 1), (2, 150, 4)], ids=str)
def test_broadcast_ridge_and_gate(backend, shape):
    operands, do = problem()
    values = {
        name: 0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(1))
        for name in ("ridge", "gate")
    }
    full = {name: t.expand(2, 150, 4).contiguous() for name, t in values.items()}
    actual = evaluate(lla_attention, {**operands, **values}, do, backend=backend)
    expected = evaluate(lla_attention, {**operands, **full}, do, backend=backend)
    assert_same_bits(actual, expected, "out q k v")
    for name in ("ridge", "gate"):
        summed = expected[name].sum_to_size(shape) if shape else expected[name].sum()
        torch.testing.assert_close(actual[name], summed, rtol=1e-5, atol=1e-4)


def test_floats_are_scalar_tensors(backend):
    operands, do = problem()
    del operands["ridge"], operands["gate"]
    as_floats = evaluate(lla_attention, operands, do, ridge=0.25, gate=0.5, backend=backend)
    as_tensors = {**operands, "ridge": torch.tensor(0.25), "gate": torch.tensor(0.5)}
    assert_same_bits(evaluate(lla_attention, as_tensors, do, backend=backend), as_floats, "out q k v")


def test_auto_takes_the_compiled_backend_on_a_cpu():
    operands, do = problem()
    assert_same_bits(
        evaluate(lla_attention, operands, do), evaluate(lla_attention, operands, do, backend="cpu")
    )
