"""Conversion of a trained model's attention, in place and with its weights."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

from flashlla._backends import FLOATING
from flashlla.integrations import own_modules, torch_modules
from flashlla.integrations.change import Change, Target
from flashlla.nn import SoftmaxAttention

M = TypeVar("M", bound=nn.Module)

_CONVERTED = (*torch_modules.CLASSES.values(), *own_modules.CLASSES.values())
# Classes of packages that need not be there: (module that has it once it was imported, name).
_TRANSFORMERS = ("transformers.modeling_utils", "PreTrainedModel")
_OUR_MODELS = ("flashlla.models.backbone", "Model")
_WRAPPERS = (
    ("torch.nn.parallel", "DistributedDataParallel"),
    ("torch.distributed.fsdp", "FullyShardedDataParallel"),
)
_DTENSOR = ("torch.distributed.tensor", "DTensor")


def convert(
    model: M,
    to: str = "lla",
    *,
    ridge: str | float = "learned",
    ridge_init: float = 1.0,
    gate: str | float | None = "learned",
    gate_init: float = 0.0,
) -> M:
    """Turn the softmax attention of ``model`` into another member of the family, in place, with its weights.

    With the defaults the model computes what it computed before: the correction starts behind a gate of 0,
    whose gradient is alive, and training opens it. Converted is, wherever it is in the model:

    - ``torch.nn.MultiheadAttention``, also inside ``nn.TransformerEncoderLayer``, ``TransformerDecoderLayer``
      and ``Transformer``, to :class:`flashlla.nn.MultiheadAttention` or ``ParallaxMultiheadAttention``.
      Attention weights are no longer returned, and dropout on them is dropped, with a warning.
    - :class:`flashlla.nn.SoftmaxAttention`, to ``LocalLinearAttention`` or ``ParallaxAttention``; the
      configuration of a model of ``flashlla.models`` says so afterwards.
    - The attention of a ``transformers.PreTrainedModel`` (docs/transformers.md).

    Every module stays the same object, a ``torch.nn.MultiheadAttention`` by itself as well, and changes its
    class: parameters, ties, hooks, mode, ``requires_grad``, device and dtype are as before. What is new has
    the same device and dtype, and requires a gradient; an optimizer has to be given it (``add_param_group``).

    Args:
        model: the model.
        to: ``"lla"``, local linear attention (arXiv 2510.01450), or ``"parallax"`` (arXiv 2605.29157), whose
            probe is a new projection with a scale that is learned from 0. It takes none of the options below.
        ridge: ``"learned"``, one per query head, or a fixed float > 0, in squared units of the keys.
        ridge_init: where a learned ridge starts.
        gate: share of the correction: ``"learned"``, one per query head, a fixed float, or None (all of it).
        gate_init: where a learned gate starts; another value than 0 changes the outputs at once.

    Returns:
        ``model``, the same object.

    Raises:
        TypeError: model is no module, an option or the weights have a wrong type.
        ValueError: an unknown target, options out of range; a model with nothing to convert, all of it
            converted already, or wrapped or sharded for many processes.
        NotImplementedError: attention that cannot be converted: add_bias_kv, add_zero_attn, subclasses.
            Whatever is raised, the model is as it was.
    """
    options: dict[str, Any] = {
        "ridge": ridge,
        "ridge_init": ridge_init,
        "gate": gate,
        "gate_init": gate_init,
    }
    target = Target.of(to, options, convert.__kwdefaults__ or {})
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if _is_instance(model, *_TRANSFORMERS):
        from flashlla.integrations.transformers import convert_attention

        return convert_attention(model, to, **options)
    found = _search(model)
    changes = list(_plan(found, target))
    torch_modules.warn_of_dropout(found.multihead)
    for change in changes:
        change.apply()
    return model


# ---- what there is to convert --------------------------------------------------------------------------


@dataclass
class _Found:
    """Modules of a model by name; the name of the model itself is its type."""

    multihead: dict[str, nn.MultiheadAttention] = field(default_factory=dict)
    layers: dict[str, SoftmaxAttention] = field(default_factory=dict)
    encoders: dict[str, nn.TransformerEncoder] = field(default_factory=dict)
    models: dict[str, nn.Module] = field(default_factory=dict)


def _search(model: nn.Module) -> _Found:
    """All that a conversion changes.

    Raises:
        ValueError, NotImplementedError: there is nothing, or something that cannot be converted.
    """
    found, converted = _Found(), 0
    for path, module in model.named_modules():
        name = path or type(model).__name__
        _check_outside(name, module)
        if type(module) is nn.MultiheadAttention:
            found.multihead[name] = module
        elif type(module) is SoftmaxAttention:
            found.layers[name] = module
        elif isinstance(module, _CONVERTED):
            converted += 1
        elif isinstance(module, (nn.MultiheadAttention, SoftmaxAttention)):
            raise NotImplementedError(
                f"{name} is a {type(module).__name__}, a subclass with code of its own, which conversion "
                "would drop; convert the parts of the model without it, one by one"
            )
        elif isinstance(module, nn.TransformerEncoder):
            found.encoders[name] = module
        elif _is_instance(module, *_OUR_MODELS):
            found.models[name] = module
    if not found.multihead and not found.layers:
        raise ValueError(_nothing_found(type(model).__name__, converted))
    for name, module in (found.multihead | found.layers).items():
        _check_weights(name, module)
    return found


def _plan(found: _Found, target: Target) -> Iterator[Change]:
    """All changes, not yet made."""
    for name, module in found.multihead.items():
        yield torch_modules.change_multihead(name, module, target)
    for layer in found.layers.values():
        yield own_modules.change_layer(layer, target)
    for encoder in found.encoders.values():
        if _has_any(encoder, found.multihead):
            yield torch_modules.change_encoder(encoder)
    for name, model in found.models.items():
        if own_modules.names_softmax(model) and _has_any(model, found.layers):
            yield own_modules.change_model(name, model, target)


def _has_any(module: nn.Module, members: Mapping[str, nn.Module]) -> bool:
    ids = {id(member) for member in members.values()}
    return any(id(inner) in ids for inner in module.modules())


def _check_outside(name: str, module: nn.Module) -> None:
    """Modules that something else is in charge of."""
    if any(_is_instance(module, *wrapper) for wrapper in _WRAPPERS):
        raise ValueError(
            f"{name} is a {type(module).__name__}, which would not know the new parameters; convert the "
            "model before it is wrapped"
        )
    if _is_instance(module, *_TRANSFORMERS):
        raise NotImplementedError(
            f"{name} is a {type(module).__name__} of transformers inside another model; convert it by "
            "itself, and the other parts one by one"
        )


def _check_weights(name: str, module: nn.Module) -> None:
    for p in module.parameters():
        if _is_instance(p, *_DTENSOR):
            raise ValueError(f"{name} has sharded parameters; convert the model before it is sharded")
        if p.dtype not in FLOATING:
            raise TypeError(
                f"{name} has parameters of dtype {p.dtype}; use float32, bfloat16, float16 or float64"
            )


def _nothing_found(model: str, converted: int) -> str:
    if converted:
        return f"{model} has nothing to convert: its {converted} attention layers are converted already"
    return (
        f"{model} has nothing to convert: looked for torch.nn.MultiheadAttention, "
        "flashlla.nn.SoftmaxAttention and models of transformers. Replace attention that a model writes out "
        "itself, say with scaled_dot_product_attention, by hand with flashlla.lla_attention"
    )


def _is_instance(thing: nn.Module | Tensor, owner: str, name: str) -> bool:
    """``isinstance`` without an import: a class of a module that nobody imported has no instances."""
    module = sys.modules.get(owner)
    return module is not None and isinstance(thing, getattr(module, name))
