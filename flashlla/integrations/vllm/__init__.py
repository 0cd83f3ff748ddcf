"""Serving with vLLM: after :func:`register`, its attention backend ``CUSTOM`` is local linear attention.

The entry point ``vllm.general_plugins`` of this package calls it in every process of vLLM. ``batches`` and
``layers`` do not import vLLM; ``backend``, which does, is imported when it is selected.
"""

from __future__ import annotations

import warnings

BACKEND = "flashlla.integrations.vllm.backend.LocalLinearAttentionBackend"


def register() -> None:
    """Make ``attention_backend="CUSTOM"`` of vLLM local linear attention. Calls may be repeated.

    vLLM starts with every plugin that is installed, also where nobody selects this one. What keeps it from
    being registered is therefore a warning: a vLLM without a registry, or one where another package has been
    first.
    """
    try:
        from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    except ImportError as error:
        warnings.warn(
            f"flashlla cannot register its attention backend ({error}); it needs vLLM 0.30 or later",
            stacklevel=2,
        )
        return
    custom = AttentionBackendEnum.CUSTOM
    if custom.is_overridden() and custom.get_path() != BACKEND:
        warnings.warn(
            f"flashlla leaves the attention backend CUSTOM of vLLM to {custom.get_path()}; name one of the "
            "two plugins in VLLM_PLUGINS",
            stacklevel=2,
        )
        return
    register_backend(custom, BACKEND)
