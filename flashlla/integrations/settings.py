"""What the configuration of a model says about local linear attention, as ``lla_ridge`` and so on."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from flashlla._backends import BACKENDS, NAMES
from flashlla.nn.checks import check_solver


class Settings(NamedTuple):
    """Arguments of :func:`flashlla.lla_attention` that are the same in all layers, with their defaults."""

    ridge: float = 1.0
    gate: float = 1.0
    solver: str = "auto"
    rtol: float | None = None
    max_iters: int | None = None
    backend: str = "auto"

    @classmethod
    def of(cls, *configs: Any) -> Settings:
        """``lla_ridge``, ``lla_gate`` and so on of the first configuration that has each.

        Raises:
            TypeError, ValueError: values that :func:`flashlla.lla_attention` does not take.
            NotImplementedError: a converted model, whose layers have ridges or probes of their own.
        """
        found: dict[str, Any] = {}
        for config in reversed(configs):
            if getattr(config, "lla_conversion", None) is not None:
                raise NotImplementedError(
                    f"lla_conversion={config.lla_conversion!r}: the layers of a converted model have learned "
                    "ridges, gates or probes, which vLLM's layers have no place for; serve it by transformers"
                )
            found |= {n: getattr(config, f"lla_{n}") for n in cls._fields if hasattr(config, f"lla_{n}")}
        settings = cls(**found)
        settings._check()
        return settings

    def _check(self) -> None:
        for name, value in (("lla_ridge", self.ridge), ("lla_gate", self.gate)):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number for all layers, got {type(value).__name__}")
            if not math.isfinite(value):
                raise ValueError(f"{name}={value} must be finite")
        if self.ridge <= 0:
            raise ValueError(f"lla_ridge={self.ridge} must be greater than 0; a large one gives softmax")
        check_solver(self.solver, self.rtol, self.max_iters)
        if self.backend not in NAMES:
            raise ValueError(f"lla_backend={self.backend!r} is unknown; choose one of {', '.join(NAMES)}")
        if self.backend in BACKENDS and BACKENDS[self.backend].decodes_only:
            raise ValueError(f"lla_backend={self.backend!r} does not take prompts; leave it at 'auto'")
