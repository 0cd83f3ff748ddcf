"""Making transformers aware of what is here."""

from __future__ import annotations

from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils.hooks import RemovableHandle

from flashlla.integrations.transformers.attention import lla_attention_forward, parallax_attention_forward
from flashlla.integrations.transformers.layers import convert_as_recorded
from flashlla.integrations.transformers.masks import make_mask

FUNCTIONS = {"lla": lla_attention_forward, "parallax": parallax_attention_forward}
_registered: list[RemovableHandle] = []  # the handle of the hook, once there is one


def register() -> None:
    """Make ``attn_implementation="lla"`` and ``"parallax"`` known to transformers.

    They work in every model whose attention goes through the ``AttentionInterface`` of transformers. Models
    that :func:`convert_attention` has converted load as such from then on (by a hook of torch on modules that
    become part of another, which looks at nothing but their configuration), and the Auto classes know the
    language model of flashlla. Calling it again does nothing.

    Raises:
        ImportError: transformers is not installed, or too old.
    """
    if _registered:
        return
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface
    except ImportError as error:
        raise ImportError(
            "transformers, 4.57 or later, is needed and not there; pip install 'flashlla[hf]'"
        ) from error
    from flashlla.integrations.transformers.language_model import register_language_model

    for name, function in FUNCTIONS.items():
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, make_mask)
    register_language_model()
    _registered.append(register_module_module_registration_hook(convert_as_recorded))
