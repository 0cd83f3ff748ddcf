"""Conversion of ``torch.nn.MultiheadAttention``, and of what torch builds around it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import nn

from flashlla.integrations.change import Change, Target, become
from flashlla.nn import MultiheadAttention, ParallaxMultiheadAttention

CLASSES = {"lla": MultiheadAttention, "parallax": ParallaxMultiheadAttention}


def change_multihead(name: str, module: nn.MultiheadAttention, target: Target) -> Change:
    """torch's module to ours.

    Raises:
        NotImplementedError: add_bias_kv, add_zero_attn, heads that are too wide, or a dtype without kernels.
    """
    _check(name, module)
    weight = module.out_proj.weight
    template = CLASSES[target.name](
        module.embed_dim,
        module.num_heads,
        bias=module.in_proj_bias is not None,
        kdim=module.kdim,
        vdim=module.vdim,
        batch_first=module.batch_first,
        device="meta",
        dtype=weight.dtype,
        **target.options,
    )
    # torch's encoder layers take the weights of a module with _qkv_same_embed_dim, and do not call it.
    return become(module, template, device=weight.device, dropout=0.0, _qkv_same_embed_dim=False)


def change_encoder(encoder: nn.TransformerEncoder) -> Change:
    """torch's encoder without nested tensors, which it makes of padded batches for its own fused layers."""
    return Change(encoder, type(encoder), {"use_nested_tensor": False})


def warn_of_dropout(modules: Mapping[str, nn.MultiheadAttention]) -> None:
    """Say which dropout a conversion drops, once for all modules, if there is any."""
    dropped = {name: module.dropout for name, module in modules.items() if module.dropout}
    if dropped:
        name, rate = next(iter(dropped.items()))
        more = f" and {len(dropped) - 1} more" if len(dropped) > 1 else ""
        warnings.warn(
            f"dropout={rate} on the attention weights of {name}{more} is dropped: they are never formed. "
            "Other dropouts stay",
            UserWarning,
            stacklevel=3,
        )


def _check(name: str, module: nn.MultiheadAttention) -> None:
    for option, given in (
        ("add_bias_kv", module.bias_k is not None or module.bias_v is not None),
        ("add_zero_attn", module.add_zero_attn),
    ):
        if given:
            raise NotImplementedError(
                f"{name} has {option}=True, which is not supported; convert the parts of the model without "
                "it, one by one"
            )
