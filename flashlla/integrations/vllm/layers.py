"""What a layer of vLLM may not ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from flashlla._validation import MAX_HEAD_DIM

_INSTEAD = "choose another --attention-backend for this model"


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
