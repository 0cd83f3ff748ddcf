"""Outputs and gradients against the float64 reference, within the error budget."""

from __future__ import annotations

import pytest
import torch

from flashlla import lla_attention
from flashlla.testing import numerics
from flashlla.testing.cases import LONG, Case, check, closed_form_gradients, problem

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def cases(*options: Case) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=str(case)) for case in options])


RIDGES = (10.0, 1.0, 0.1, 0.01)
HALVES = (torch.bfloat16, torch.float16)
LENGTHS = (0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 129)


@cases(*(Case(n=n, ridge=r, data=data) for data in ("iid", "steep", "far") for r in RIDGES for n in LENGTHS))
def test_lengths(case, backend):
    check(case, backend)


@cases(*(Case(n=500, ridge=r, data=data) for data in ("iid", "steep") for r in RIDGES))
def test_long(case, backend):
    check(case, backend)


@cases(
    *(
        Case(n=n, kv_len=kv_len, d=d, heads=2, kv_heads=1, ridge=0.1, data="steep", seed=seed)
        for n, kv_len in ((1, 700), (40, 150))
        for d in (1, 3, 33, 64)
        for seed in (1, 2, 3)
    )
)
def test_seeds(case, backend):
    check(case, backend)


@cases(
    *(
        Case(n=n, ridge=r, data=data, dtype=dtype)
        for dtype in (*HALVES, torch.float64)
        for data in ("iid", "steep", "far")
        for r in RIDGES
        for n in (1, 17, 129)
    )
)
def test_dtypes(case, backend):
    if case.dtype == torch.float64 and backend == "cpu":
        with pytest.raises(NotImplementedError, match="float64"):
            check(case, backend)
        return
    check(case, backend)


@cases(
    *(
        Case(n=65, d=d, value_dim=value_dim, ridge=r, data=data, dtype=dtype)
        for d, value_dim in ((1, 1), (3, 2), (17, 40), (33, 33), (80, 1), (128, 128), (256, 256), (64, 256))
        for dtype, data, r in (
            (torch.float32, "iid", 1.0),
            (torch.float32, "iid", 0.01),
            (torch.float32, "steep", 0.1),
            (torch.float32, "far", 0.01),
            (torch.bfloat16, "iid", 0.1),
            (torch.float16, "steep", 0.1),
        )
    )
)
def test_head_dims(case, backend):
    check(case, backend)


@pytest.mark.parametrize("solver", ["cg", "direct"])
@cases(
    *(
        Case(n=n, d=d, ridge=r, data=data)
        for n, d in ((17, 64), (129, 64), (70, 16), (70, 128))
        for data in ("iid", "steep", "far")
        for r in (1.0, 0.1, 0.01)
    )
)
def test_solvers(case, backend, solver):
    check(case, backend, solver=solver)


MASKED = (
    Case(n=80, window_size=1),
    Case(n=80, window_size=16),
    Case(n=150, window_size=65),
    Case(n=150, window_size=100),
    Case(n=70, causal=False),
    Case(n=40, kv_len=100, causal=False),
    Case(n=100, kv_len=40, causal=False),
    Case(n=1, kv_len=77),
    Case(n=5, kv_len=130),
    Case(n=66, kv_len=130, window_size=20),
    Case(n=130, kv_len=66),
    Case(n=130, kv_len=1),
    Case(n=130, kv_len=66, window_size=7),
    Case(n=3, kv_len=0),
    Case(n=65, scale=0.0),
    Case(n=65, scale=-0.2),
    Case(n=65, scale=1.5),
)


@cases(*(case._replace(batch=2, heads=2, d=20, ridge=r, data="iid") for case in MASKED for r in (1.0, 0.05)))
def test_masks_and_scales(case, backend):
    check(case, backend)


@cases(
    *(
        Case(n=70, batch=2, heads=heads, kv_heads=kv_heads, d=24, data=data, ridge=0.1, dtype=dtype, **mask)
        for heads, kv_heads in ((2, 1), (4, 2), (5, 1), (6, 2))
        for data, dtype, mask in (
            ("iid", torch.float32, {}),
            ("steep", torch.float32, {"window_size": 9}),
            ("iid", torch.bfloat16, {"kv_len": 100}),
            ("iid", torch.float16, {"causal": False}),
        )
    )
)
def test_grouped_heads(case, backend):
    check(case, backend)


@cases(
    *(
        Case(
            member=member, n=n, heads=2, kv_heads=1, data=data, ridge=None, dtype=dtype, value_dim=48, **mask
        )
        for member in ("parallax", "softmax")
        for n in (1, 17, 130)
        for data, dtype in (
            ("iid", torch.float32),
            ("steep", torch.float32),
            ("iid", torch.bfloat16),
            ("steep", torch.float16),
        )
        for mask in ({}, {"window_size": 30}, {"causal": False, "kv_len": 40})
    )
)
def test_given_and_zero_probes(case, backend):
    check(case, backend)


def test_closed_form_stands_in():
    case = Case(n=LONG, data="steep", ridge=0.01)
    operands, do = problem(case)
    exact = numerics.exact(lla_attention, operands, do, **case.options)
    for name, value in closed_form_gradients(case, operands, do).items():
        assert numerics.error_norm_ratio(value, exact[name]) < 1e-10, name
