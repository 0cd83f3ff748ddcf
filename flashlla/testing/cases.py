"""Problems with their options, and the check that holds an implementation to its error budget on them.

check(Case(n=129, ridge=0.1, data="steep"), backend="triton", device="cuda")
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flashlla import lla_attention, parallax_attention, softmax_attention
from flashlla.ops import reference
from flashlla.ops.types import Options
from flashlla.testing import numerics
from flashlla.testing.problems import random_operands

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "lla": lla_attention,
    "parallax": parallax_attention,
    "softmax": softmax_attention,
}
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
    def options(self) -> dict[str, Any]:
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
    """The operands of a case by name, and a gradient of its output."""
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
    zeros up to rounding only. There the closed form in float64 takes its place; the tests hold the two
    together to 1e-10.
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
    """Gradients of local linear attention by name, in float64, by the closed form of the reference."""
    q, k, v, ridge, gate = (operands[name].double() for name in ("q", "k", "v", "ridge", "gate"))
    scale = case.d**-0.5 if case.scale is None else case.scale
    options = Options(scale, case.causal, case.window_size or 0, "auto", 0.5, 1)
    grads = reference.attention_backward(do.double(), q, k, v, None, ridge, gate, options)
    named = {"q": grads.dq, "k": grads.dk, "v": grads.dv, "ridge": grads.dridge, "gate": grads.dgate}
    return {name: t for name, t in named.items() if t is not None}


def check(case: Case, backend: str, **options: Any) -> dict[str, float]:
    """Run the case and hold output and every gradient to the budget; return the error norm ratios.

    Args:
        backend: where :func:`numerics.evaluate` runs it; other options go to the function.

    Raises:
        AssertionError: something is outside of its budget; the message names all of it.
    """
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
