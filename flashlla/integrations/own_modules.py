"""Conversion of the layers of :mod:`flashlla.nn`, and of the configurations of models that have them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from flashlla.integrations.change import Change, Target, become
from flashlla.nn import LocalLinearAttention, ParallaxAttention, SoftmaxAttention

if TYPE_CHECKING:
    from flashlla.models.config import StackConfig

CLASSES = {"lla": LocalLinearAttention, "parallax": ParallaxAttention}


def change_layer(layer: SoftmaxAttention, target: Target) -> Change:
    """A softmax layer to another member of the family, with its weights, norms, positions and window."""
    weight = layer.q_proj.weight
    template = CLASSES[target.name](
        layer.dim,
        layer.heads,
        kv_heads=layer.kv_heads,
        head_dim=layer.head_dim,
        value_dim=layer.value_dim,
        qk_norm=isinstance(layer.q_norm, nn.RMSNorm),
        rotary=layer.rotary,
        bias=layer.q_proj.bias is not None,
        device="meta",
        dtype=weight.dtype,
        **target.options,
    )
    return become(layer, template, device=weight.device)


def names_softmax(model: nn.Module) -> bool:
    """Whether the configuration of a model of :mod:`flashlla.models` has softmax attention in it."""
    config: Any = model.config
    return any(mixer == "softmax" for mixer, _ in config.mixers)


def change_model(name: str, model: nn.Module, target: Target) -> Change:
    """A model of :mod:`flashlla.models` whose configuration says what its layers are to become.

    Raises:
        NotImplementedError: it has blocks of the target already, with options of their own.
    """
    return Change(model, type(model), {"config": _converted(name, model.config, target)})


def _converted(name: str, config: StackConfig, target: Target) -> StackConfig:
    """The configuration with the target's name and options wherever softmax attention was."""
    if isinstance(config.mixer, str):
        return replace(config, mixer=target.name, mixer_options={**config.mixer_options, **target.options})
    mixer = [target.name if mixer == "softmax" else mixer for mixer in config.mixer]
    others = {mixer: options for mixer, options in config.mixer_options.items() if mixer != "softmax"}
    options = {**config.mixer_options.get("softmax", {}), **target.options}
    theirs = others.get(target.name, {})
    if target.name in config.mixer and theirs != options:
        raise NotImplementedError(
            f"{name} has {target.name!r} blocks already, with mixer_options {json.dumps(theirs)}, and those "
            f"that would become such have {json.dumps(options)}; make them equal: a configuration holds one "
            "set of options for each name"
        )
    return replace(config, mixer=mixer, mixer_options={**others, target.name: options})
