"""What a model's configuration says about local linear attention, and what a layer may not ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from flashlla._backends import BACKENDS, NAMES
from flashlla._validation import MAX_HEAD_DIM, check_options

_INSTEAD = "choose another --attention-backend for this model"


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
        found = {}
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
        rtol = 0.5 if self.rtol is None else self.rtol
        max_iters = 1 if self.max_iters is None else self.max_iters
        check_options(1.0, True, None, self.solver, rtol, max_iters)
        if self.backend not in NAMES:
            raise ValueError(f"lla_backend={self.backend!r} is unknown; choose one of {', '.join(NAMES)}")
        if self.backend in BACKENDS and BACKENDS[self.backend].decodes_only:
            raise ValueError(f"lla_backend={self.backend!r} does not take prompts; leave it at 'auto'")


def check_layer(
    *,
    head_size: int,
    dtype: torch.dtype,
    kv_cache_dtype: str,
    attn_type: str,
    alibi_slopes: Any,
    logits_soft_cap: float | None,
    extra: Mapping[str, Any],
) -> None:
    """Refuse what local linear attention does not compute.

    Args:
        dtype: of queries, keys and values.
        extra: arguments that vLLM passes to some backends only, by name; None, False and -1 leave them out.

    Raises:
        NotImplementedError: the layer asks for something else.
    """
    if not 1 <= head_size <= MAX_HEAD_DIM:
        raise NotImplementedError(f"head_size={head_size}: the limits are 1 and {MAX_HEAD_DIM}; {_INSTEAD}")
    if attn_type != "decoder":
        raise NotImplementedError(
            f"attn_type={attn_type!r}: only causal attention over a cache is served; {_INSTEAD}"
        )
    name = str(dtype).removeprefix("torch.")
    if kv_cache_dtype not in ("auto", name):
        raise NotImplementedError(
            f"kv_cache_dtype={kv_cache_dtype!r}: the cache holds keys in the dtype of the model, {name}; "
            "leave --kv-cache-dtype at 'auto'"
        )
    if alibi_slopes is not None:
        raise NotImplementedError(f"alibi_slopes: biases of the logits are not supported; {_INSTEAD}")
    if logits_soft_cap:
        raise NotImplementedError(
            f"logits_soft_cap={logits_soft_cap}: soft caps of the logits are not supported; {_INSTEAD}"
        )
    for argument, value in extra.items():
        left_out = value is None or (isinstance(value, int) and value in (0, -1))
        if not left_out:
            raise NotImplementedError(f"{argument} is not supported; {_INSTEAD}")
