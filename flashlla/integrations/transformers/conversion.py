"""Conversion of a model of transformers, in place, and again when it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from flashlla.integrations.change import Target
from flashlla.integrations.transformers.layers import PARTS, attach, converted_to, is_attention, record
from flashlla.integrations.transformers.registration import register

if TYPE_CHECKING:
    from transformers import PreTrainedModel

M = TypeVar("M", bound="PreTrainedModel")


def convert_attention(
    model: M,
    to: str = "lla",
    *,
    ridge: str | float = "learned",
    ridge_init: float = 1.0,
    gate: str | float | None = "learned",
    gate_init: float = 0.0,
) -> M:
    """Turn the attention of a model of transformers into another member of the family, in place, with its
    weights.

    With the defaults the model computes what it computed before, up to rounding, and learns what is new:
    behind a gate of 0, whose gradient is alive. Every attention layer gets a small module of its own, ``lla``
    with ridge and gate or ``parallax`` with the probe; the configuration keeps a record, ``lla_conversion``,
    by which ``from_pretrained`` makes the same layers again once :func:`register` has been called.

    Args:
        model: any model whose attention goes through the ``AttentionInterface`` of transformers.
        to: ``"lla"`` (arXiv 2510.01450) or ``"parallax"`` (arXiv 2605.29157), which takes none of the options
            below: it has no ridge, and in place of the gate a scale per head, learned from 0.
        ridge: ``"learned"``, one per query head, or a fixed float > 0, in squared units of the keys.
        ridge_init: where a learned ridge starts.
        gate: share of the correction: ``"learned"``, one per query head, a fixed float, or None (all of it).
        gate_init: where a learned gate starts; another value than 0 changes the outputs at once.

    Returns:
        ``model``, the same object.

    Raises:
        ImportError: transformers is not installed.
        TypeError: model is no model of transformers, or an option has a wrong type.
        ValueError: an unknown target, options out of range or of the other target, a model that is converted.
        NotImplementedError: attention that does not go through the interface, or cannot be given a probe.
            Whatever is raised, the model is as it was.
    """
    register()
    options = {"ridge": ridge, "ridge_init": ridge_init, "gate": gate, "gate_init": gate_init}
    options = Target.of(to, options, convert_attention.__kwdefaults__ or {}).options
    layers = _attention_layers(model)
    parts = [PARTS[to](layer, **options) for layer in layers]
    _set_implementation(model, layers, to)
    for layer, part in zip(layers, parts, strict=True):
        attach(layer, to, part)
        record(layer.config, to, options)
    return model


def _attention_layers(model: PreTrainedModel) -> list[nn.Module]:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a transformers.PreTrainedModel, got {type(model).__name__}")
    layers = [module for module in model.modules() if is_attention(module)]
    if not layers:
        raise NotImplementedError(
            f"{type(model).__name__} has no attention that goes through the AttentionInterface of "
            "transformers; a newer release may have moved it there"
        )
    if name := next(filter(None, map(converted_to, layers)), None):
        raise ValueError(
            f"{type(model).__name__} is converted to {name!r} already; start from the model before"
        )
    return layers


def _set_implementation(model: PreTrainedModel, layers: list[nn.Module], to: str) -> None:
    before = model.config._attn_implementation
    model.set_attn_implementation(to)
    configs: list[Any] = [layer.config for layer in layers]
    if any(config._attn_implementation != to for config in configs):
        model.set_attn_implementation(before)
        raise NotImplementedError(
            f"{type(model).__name__} does not let its attention implementation be changed; load it with "
            f"attn_implementation={to!r}"
        )
