"""Outputs and gradients against the float64 reference, within the error budget."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from flashlla import lla_attention, parallax_attention, softmax_attention
from flashlla.ops import reference
from flashlla.ops.types import Options
from flashlla.testing import numerics
from flashlla.testing.problems import random_operands

pytestmark = pytest.mark.usefixtures("poisoned_memory")

FUNCTIONS = {"lla": lla_attention, "parallax": parallax_attention, "softmax": softmax_attention}
LONG = 200  # from this length on autograd of the definition is too slow, see exact_of


class Case(NamedTuple):
    """One problem and its options, without the backend and the solver."""

    member: str = "lla"
    n: int = 65
    kv_len: int | None = None
    batch: int = 1
    heads: int = 1
    kv_heads: int | None = None
    d: int = 64
    value_dim: int | None = None
    data: str = "iid"
    ridge: float | None = 1.0
    dtype: torch.dtype = torch.float32
    causal: bool = True
    window_size: int | None = None
    scale: float | None = None
    seed: int = 0

    @property
    def options(self) -> dict:
        return {"causal": self.causal, "window_size": self.window_size, "scale": self.scale}

    @property
    def one_key_a_row(self) -> bool:
        """Every result of the regression cancels: dq, dridge and dgate are exactly 0."""
        keys = self.n if self.kv_len is None else self.kv_len
        return keys <= 1 or self.window_size == 1

    def __str__(self) -> str:
        default = Case()
        shown = [
            f"{name}={str(value).removeprefix('torch.')}"
            for name, value in self._asdict().items()
            if value != getattr(default, name) or name in ("n", "data", "ridge")
        ]
        return "-".join(shown)


def problem(case: Case) -> tuple[dict[str, Tensor], Tensor]:
    return random_operands(
        case.data,
        batch=case.batch,
        q_len=case.n,
        kv_len=case.kv_len,
        heads=case.heads,
        kv_heads=case.kv_heads,
        head_dim=case.d,
        value_dim=case.value_dim,
        dtype=case.dtype,
        ridge=case.ridge if case.member == "lla" else None,
        gate=case.member != "softmax",
        probe=case.member == "parallax",
        seed=case.seed,
    )


@lru_cache(maxsize=64)
def exact_of(case: Case) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The exact results, and floors for problems that are small enough to cancel by chance.

    Autograd through the definition is slow for long sequences, and where every row sees one key its zeros are
    zeros up to rounding only. There the closed form in float64 takes its place; tests/reference holds the two
    together to 1e-10, and test_closed_form_stands_in does so at these sizes.
    """
    operands, do = problem(case)
    function = FUNCTIONS[case.member]
    tiny = max(case.n, case.kv_len or 0) <= 2
    floors = numerics.typical_norms(operands, do, **case.options) if tiny else {}
    if case.member != "lla" or not (case.n >= LONG or case.one_key_a_row):
        return numerics.exact(function, operands, do, **case.options), floors
    out = numerics.exact(function, operands, **case.options)["out"]
    return {"out": out, **closed_form_gradients(case, operands, do)}, floors


def closed_form_gradients(case: Case, operands: dict[str, Tensor], do: Tensor) -> dict[str, Tensor]:
    q, k, v, ridge, gate = (operands[name].double() for name in ("q", "k", "v", "ridge", "gate"))
    scale = case.d**-0.5 if case.scale is None else case.scale
    options = Options(scale, case.causal, case.window_size or 0, "auto", 0.5, 1)
    grads = reference.attention_backward(do.double(), q, k, v, None, ridge, gate, options)
    return {"q": grads.dq, "k": grads.dk, "v": grads.dv, "ridge": grads.dridge, "gate": grads.dgate}


def check(case: Case, backend: str, **options) -> dict[str, float]:
    """Run the case and hold output and every gradient to the budget; return the error norm ratios."""
    operands, do = problem(case)
    exact, floors = exact_of(case)
    actual = numerics.evaluate(
        FUNCTIONS[case.member], operands, do, backend=backend, **case.options, **options
    )
    assert actual["out"].dtype == case.dtype
    ratios, failures = {}, []
    for name, value in actual.items():
        ridge = case.ridge if case.member == "lla" else None
        try:
            ratios[name] = numerics.assert_within_budget(
                value,
                exact[name],
                case.dtype,
                ridge,
                gradient=name != "out",
                name=name if name == "out" else f"d{name}",
                floor=floors.get(name, 0.0),
            )
        except AssertionError as error:
            failures.append(str(error))
    assert not failures, "\n".join(failures)
    return ratios


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
