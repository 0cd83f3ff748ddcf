"""Numbers that a layer holds once per query head, fixed or learned: the ridge and the gate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _PerHead(nn.Module):
    """A fixed float, or a learned parameter ``raw`` of shape ``[heads]`` that starts at ``init``.

    A fixed one has no entry in the state dict.
    """

    raw: nn.Parameter  # None where the number is fixed

    def __init__(
        self,
        name: str,
        value: str | float,
        init: float,
        heads: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ):
        super().__init__()
        if isinstance(value, str) and value != "learned":
            raise ValueError(f"{name}={value!r} is unknown; pass 'learned' or a float")
        self.value = None if value == "learned" else self.check(name, value)
        self.init = self.check(f"{name}_init", init)
        raw = nn.Parameter(torch.empty(heads, device=device, dtype=dtype)) if self.value is None else None
        self.register_parameter("raw", raw)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        raise NotImplementedError

    @staticmethod
    def check(name: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a float, got {type(value).__name__}")
        if not math.isfinite(value):
            raise ValueError(f"{name}={value} must be finite")
        return float(value)

    def extra_repr(self) -> str:
        return "learned" if self.value is None else str(self.value)


class Ridge(_PerHead):
    """``softplus(raw)`` if learned: always positive, in float32 or better."""

    def __init__(
        self,
        value: str | float,
        init: float,
        heads: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__("ridge", value, init, heads, device, dtype)

    @staticmethod
    def check(name: str, value: object) -> float:
        number = _PerHead.check(name, value)
        if number <= 0:
            raise ValueError(f"{name}={value} must be greater than 0; a large value gives softmax attention")
        return number

    def reset_parameters(self) -> None:
        if self.raw is not None:
            nn.init.constant_(
                self.raw, self.init + math.log(-math.expm1(-self.init))
            )  # softplus(raw) == init

    def forward(self) -> float | Tensor:
        if self.value is not None:
            return self.value
        return F.softplus(self.raw.to(torch.promote_types(self.raw.dtype, torch.float32)))


class Gate(_PerHead):
    """``raw`` itself if learned: any real number, 0 is softmax attention exactly."""

    def __init__(
        self,
        value: str | float | None,
        init: float,
        heads: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__("gate", 1.0 if value is None else value, init, heads, device, dtype)

    def reset_parameters(self) -> None:
        if self.raw is not None:
            nn.init.constant_(self.raw, self.init)

    def forward(self) -> float | Tensor:
        return self.raw if self.value is None else self.value


class SolvesForProbe:
    """A layer with a ``ridge``, a ``gate`` and the options of a solver: what its functions take of these."""

    ridge: Ridge
    gate: Gate
    solver: str
    rtol: float | None
    max_iters: int | None

    def _options(self) -> dict[str, Any]:
        return {
            "ridge": self.ridge(),
            "gate": self.gate(),
            "solver": self.solver,
            "rtol": self.rtol,
            "max_iters": self.max_iters,
        }
