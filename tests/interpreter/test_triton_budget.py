"""Triton kernels in the interpreter, outputs and all gradients within the error budget of the float64
reference.

The interpreter runs the kernels as they are, block by block, so sizes are small: head dimensions of 16,
where 20 keys are few, and at most 129 rows.
"""

from __future__ import annotations

import pytest
import torch

from flashlla import lla_attention, lla_attention_with_stats
from flashlla.testing import numerics
from flashlla.testing.cases import Case, check, problem

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LENGTHS = (1, 15, 16, 17, 33, 63, 64, 65, 127)


def cases(*options: Case, also: tuple[Case, ...] = ()) -> pytest.MarkDecorator:
    """``also`` are left to ``make test-all``: products of 16-bit operands take the interpreter longest."""
    slow = [pytest.param(case, id=str(case), marks=pytest.mark.slow) for case in also]
    return pytest.mark.parametrize("case", [*(pytest.param(case, id=str(case)) for case in options), *slow])


@cases(*(Case(n=n, d=16, ridge=0.1, dtype=dtype) for n in LENGTHS for dtype in DTYPES))
def test_lengths(case):
    check(case, "triton")


@cases(
    *(
        Case(n=70, d=16, ridge=ridge, data=data, dtype=dtype)
        for data in ("iid", "steep", "far")
        for ridge in (10.0, 1.0, 0.01)
        for dtype in DTYPES
        if (data == "steep" or ridge > 0.01 or dtype != torch.bfloat16)
    ),
    also=tuple(Case(n=70, d=16, ridge=0.01, data=data, dtype=torch.bfloat16) for data in ("iid", "far")),
)
def test_ridges_and_data(case):
    check(case, "triton")


@cases(
    *(Case(n=17, d=64, ridge=0.01, data="steep", dtype=dtype) for dtype in DTYPES),
    Case(n=100, d=64, ridge=0.01, data="steep"),
    also=tuple(Case(n=100, d=64, ridge=0.01, data="steep", dtype=dtype) for dtype in DTYPES[1:]),
)
def test_small_ridge_at_a_usual_head_dimension(case):
    check(case, "triton")


MASKS = ({}, {"causal": False}, {"window_size": 30}, {"window_size": 7})


@cases(
    *(
        Case(n=n, kv_len=kv_len, d=16, ridge=0.1, dtype=dtype, **mask)
        for n, kv_len in ((40, 70), (70, 40), (3, 64), (20, 12))
        for dtype in (torch.float32, torch.bfloat16)
        for mask in MASKS
        if (n, dtype) != (70, torch.bfloat16)
    ),
    also=tuple(Case(n=70, kv_len=40, d=16, ridge=0.1, dtype=torch.bfloat16, **mask) for mask in MASKS),
)
def test_masks_and_unequal_lengths(case):
    check(case, "triton")


GROUPED = {"n": 40, "batch": 2, "d": 16, "ridge": 0.1}


@cases(
    *(Case(heads=heads, kv_heads=kv_heads, **GROUPED) for heads, kv_heads in ((2, 1), (3, 1))),
    Case(heads=2, kv_heads=1, dtype=torch.float16, **GROUPED),
    also=(
        Case(heads=4, kv_heads=2, **GROUPED),
        *(Case(heads=n, kv_heads=m, dtype=torch.float16, **GROUPED) for n, m in ((4, 2), (3, 1))),
    ),
)
def test_grouped_heads(case):
    check(case, "triton")


@cases(
    *(
        Case(n=30, d=d, value_dim=value_dim, ridge=0.1, dtype=dtype)
        for d, value_dim in ((1, 3), (5, 40), (24, 20), (80, 16))
        for dtype in (torch.float32, torch.bfloat16)
    )
)
def test_head_dimensions(case):
    check(case, "triton")


@cases(
    *(
        Case(
            member=member,
            n=n,
            heads=2,
            kv_heads=1,
            d=16,
            data=data,
            ridge=None,
            dtype=dtype,
            value_dim=24,
            **mask,
        )
        for member in ("parallax", "softmax")
        for n in (1, 17, 70)
        for data, dtype in (("steep", torch.float32), ("iid", torch.bfloat16), ("steep", torch.float16))
        for mask in ({}, {"window_size": 20}, {"causal": False, "kv_len": 40})
    )
)
def test_given_and_zero_probes(case):
    check(case, "triton")


@cases(Case(n=30, d=16, ridge=0.1, dtype=torch.float64), Case(n=30, d=16, scale=-0.3, ridge=0.5))
def test_float64_and_another_scale(case):
    check(case, "triton")


def test_a_loose_tolerance_is_met():
    """Weights in one term are enough there."""
    operands, do = problem(Case(n=70, d=16, ridge=1.0, dtype=torch.float16))
    stats = lla_attention_with_stats(**operands, rtol=5e-3, backend="triton")
    assert 1e-4 < float(stats.residual.max()) <= 5.5e-3
    exact = numerics.exact(lla_attention, operands, do)
    actual = numerics.evaluate(lla_attention, operands, do, rtol=5e-3, backend="triton")
    for name, t in exact.items():
        assert numerics.error_norm_ratio(actual[name], t) < 1e-2, name
