"""NaN and infinity: what a row does not see cannot reach it, and what it sees shows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flashlla import lla_attention, lla_attention_varlen, parallax_attention, softmax_attention
from flashlla.testing.numerics import evaluate
from flashlla.testing.problems import random_operands

pytestmark = pytest.mark.usefixtures("poisoned_memory")

FUNCTIONS = {"lla": lla_attention, "parallax": parallax_attention, "softmax": softmax_attention}
PER_KEY = ("k", "v")
T = 37  # the broken token; rows before and behind it share its tile

member = pytest.mark.parametrize("member", FUNCTIONS)
poison = pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf], ids=str)
operand = pytest.mark.parametrize("operand", ["k", "v"])
width = pytest.mark.parametrize("width", [1, 24], ids=["one_number", "whole_vector"])


def problem(member: str = "lla", **changes) -> tuple[dict[str, Tensor], Tensor]:
    sizes = {"batch": 2, "q_len": 130, "heads": 4, "kv_heads": 2, "head_dim": 24, "ridge": 0.2}
    if member != "lla":
        sizes |= {"ridge": None, "probe": member == "parallax", "gate": member != "softmax"}
    return random_operands("iid", **{**sizes, **changes})


def broken(operands: dict[str, Tensor], name: str, at: tuple, poison: float) -> dict[str, Tensor]:
    t = operands[name].clone()
    t[at] = poison
    return {**operands, name: t}


def assert_rows_equal(actual: dict[str, Tensor], clean: dict[str, Tensor], at: tuple, names=None) -> None:
    for name in names or [n for n in clean if n not in PER_KEY]:
        assert torch.equal(actual[name][at], clean[name][at]), name


@member
@poison
@operand
@width
def test_masked_key_does_not_leak_and_visible_key_shows(backend, member, poison, operand, width):
    operands, do = problem(member)
    clean = evaluate(FUNCTIONS[member], operands, do, backend=backend)
    # Batch row 0, key head 0 (query heads 0 and 1), token T.
    hit = broken(operands, operand, (0, T, 0, slice(width)), poison)
    actual = evaluate(FUNCTIONS[member], hit, do, backend=backend)
    assert_rows_equal(actual, clean, (0, slice(T)))
    assert_rows_equal(actual, clean, (0, slice(None), slice(2, 4)))
    assert_rows_equal(actual, clean, (1,), names=clean)
    assert not actual["out"][0, T:, :2, :width].isfinite().any()


@poison
@operand
def test_key_outside_the_window_does_not_leak(backend, poison, operand):
    window = 20
    operands, do = problem()
    clean = evaluate(lla_attention, operands, do, window_size=window, backend=backend)
    hit = broken(operands, operand, (slice(None), T), poison)
    actual = evaluate(lla_attention, hit, do, window_size=window, backend=backend)
    for rows in (slice(T), slice(T + window, None)):
        assert_rows_equal(actual, clean, (slice(None), rows))
    assert not actual["out"][:, T : T + window].isfinite().any()
    # Keys that no broken row sees keep their gradients.
    for keys in (slice(T - window + 1), slice(T + window, None)):
        for name in PER_KEY:
            assert actual[name][:, keys].isfinite().all(), name
            torch.testing.assert_close(actual[name][:, keys], clean[name][:, keys], rtol=1e-5, atol=1e-5)


@poison
@pytest.mark.parametrize("operand", ["q", "gate"])
def test_broken_row_stays_alone(backend, poison, operand):
    operands, do = problem()
    clean = evaluate(lla_attention, operands, do, backend=backend)
    actual = evaluate(lla_attention, broken(operands, operand, (slice(None), T), poison), do, backend=backend)
    for rows in (slice(T), slice(T + 1, None)):
        assert_rows_equal(actual, clean, (slice(None), rows))
    assert not actual["out"][:, T].isfinite().any()
    for name in PER_KEY:  # keys behind the row
        torch.testing.assert_close(actual[name][:, T + 1 :], clean[name][:, T + 1 :], rtol=1e-5, atol=1e-5)


@poison
def test_broken_output_gradient_stays_in_its_row(backend, poison):
    operands, do = problem()
    clean = evaluate(lla_attention, operands, do, backend=backend)
    actual = evaluate(
        lla_attention, operands, broken({"do": do}, "do", (slice(None), T), poison)["do"], backend=backend
    )
    for rows in (slice(T), slice(T + 1, None)):
        assert_rows_equal(actual, clean, (slice(None), rows))
    assert not actual["q"][:, T].isfinite().any()
    for name in PER_KEY:
        torch.testing.assert_close(actual[name][:, T + 1 :], clean[name][:, T + 1 :], rtol=1e-5, atol=1e-5)


@poison
@operand
def test_broken_sequence_does_not_leak_into_its_neighbours(backend, poison, operand):
    operands, do = problem(batch=1)
    operands, do = {name: t[0] for name, t in operands.items()}, do[0]
    cu_seqlens = torch.tensor([0, 30, 70, 130])
    clean = evaluate(lla_attention_varlen, operands, do, cu_seqlens=cu_seqlens, backend=backend)
    hit = broken(operands, operand, (slice(30, 70),), poison)
    actual = evaluate(lla_attention_varlen, hit, do, cu_seqlens=cu_seqlens, backend=backend)
    for rows in (slice(30), slice(70, None)):
        assert_rows_equal(actual, clean, (rows,), names=clean)
    assert not actual["out"][30:70].isfinite().any()


@poison
@operand
def test_rows_that_see_nothing_ignore_everything(backend, poison, operand):
    operands, do = problem(kv_len=100)  # the first 30 rows see no key
    for hit in (operands, broken(operands, operand, (slice(None),), poison)):
        actual = evaluate(lla_attention, hit, do, backend=backend)
        for name, t in actual.items():
            if name not in PER_KEY:
                assert not t[:, :30].any(), name
    assert not actual["out"][:, 30:].isfinite().any()
