"""What a conversion adds to an attention layer of transformers, and how a layer is recognised."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flashlla.integrations.transformers.attention import PROBE
from flashlla.nn.per_head import Gate, Ridge

RECORD = "lla_conversion"  # where a configuration says how its attention layers were converted


class RidgeAndGate(nn.Module):
    """Ridge and gate of the heads of one layer, fixed or learned."""

    def __init__(
        self,
        attention: nn.Module,
        *,
        ridge: str | float,
        ridge_init: float,
        gate: str | float | None,
        gate_init: float,
    ):
        super().__init__()
        heads, factory = count_heads(attention), _factory(attention)
        self.ridge = Ridge(ridge, ridge_init, heads, **factory)
        self.gate = Gate(gate, gate_init, heads, **factory)


class Probe(nn.Module):
    """The probe of Parallax, ``r = r_scale * rotate(norm(r_proj(x)))``, from what the layer itself gets.

    Norm and rotation are those of the queries of the layer. The scale, one per head, starts at 0, as in
    :class:`flashlla.nn.ParallaxAttention`, and so the layer as what it was. The projection starts as that of
    the queries where the layer has one by itself: far out on the ridge the probe of LLA is ``q - kbar``, so
    that the scale has something to find there from the first step on. Small models that were trained on from
    there ended lower than from a random projection, and had moved the scale two to five times as far.
    """

    def __init__(self, attention: nn.Module):
        super().__init__()
        heads, head_dim = count_heads(attention), _head_dim(attention)
        self.arguments = _arguments(attention)
        self.rotate = _rotation(attention, self.arguments)
        self.head_dim = head_dim
        self.r_proj = _projection(attention, heads * head_dim)
        self.r_norm, self.normed = _norm(attention, heads, head_dim)
        self.r_scale = nn.Parameter(torch.zeros(heads, **_factory(attention)))

    def forward(self, x: Tensor, position_embeddings: tuple[Tensor, Tensor] | None) -> Tensor:
        """r, ``[batch, heads, seq, head_dim]``, of inputs ``[batch, seq, width]``."""
        r: Tensor = self.r_proj(x)
        if self.r_norm is not None:
            r = self.r_norm(r.unflatten(-1, (-1, self.normed))).flatten(-2)
        r = r.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if self.rotate is not None and position_embeddings is not None:
            cos, sin = position_embeddings
            turning, rest = r.tensor_split([cos.shape[-1]], dim=-1)
            turned, _ = self.rotate(turning, turning[:, :1], cos, sin)
            r = torch.cat([turned, rest], -1)
        return r * self.r_scale[:, None, None]


PARTS = {"lla": RidgeAndGate, "parallax": Probe}


def is_attention(module: nn.Module) -> bool:
    """Whether a module calls the attention function that its configuration names."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def converted_to(module: nn.Module) -> str | None:
    """What a layer has been converted to."""
    return next((name for name in PARTS if isinstance(getattr(module, name, None), PARTS[name])), None)


def attach(attention: nn.Module, name: str, part: nn.Module) -> None:
    """Give a layer what its attention function will look for."""
    attention.add_module(name, part.train(attention.training))
    if name == "parallax":
        attention.register_forward_pre_hook(_hand_probe_over, with_kwargs=True)


def record(config: Any, to: str, options: dict[str, Any]) -> None:
    """Let a configuration say, also when it is saved, what its layers are."""
    setattr(config, RECORD, {"to": to, **options})
    config.attn_implementation = to  # saved; transformers 5 refuses to load it where it is not registered
    config._attn_implementation = to


def convert_as_recorded(_parent: nn.Module, _name: str, module: nn.Module) -> None:
    """A hook on modules that become part of another: convert a layer if its configuration says that it was.

    Layers are complete then before weights are loaded into them, whoever builds the model.
    """
    recorded = getattr(getattr(module, "config", None), RECORD, None)
    if not isinstance(recorded, dict) or not is_attention(module) or converted_to(module) is not None:
        return
    to, options = recorded["to"], {name: value for name, value in recorded.items() if name != "to"}
    attach(module, to, PARTS[to](module, **options))
    record(module.config, to, options)


def _hand_probe_over(
    attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before a layer runs: the probe, among the arguments that it hands on. Nothing is kept between calls."""
    config: Any = attention.config
    if config._attn_implementation != "parallax":
        return None
    probe: Any = attention.parallax
    given = dict(zip(probe.arguments, args, strict=False)) | kwargs
    r = probe(given["hidden_states"], given.get("position_embeddings"))
    return args, {**kwargs, PROBE: r}


# ---- what is known of a layer --------------------------------------------------------------------------


def count_heads(attention: nn.Module) -> int:
    """Query heads of a layer."""
    for name in ("num_heads", "num_attention_heads"):
        if isinstance(heads := getattr(attention, name, None), int):
            return heads
    config: Any = attention.config
    number: int = config.num_attention_heads
    return number


def _head_dim(attention: nn.Module) -> int:
    for name in ("head_dim", "attention_head_size"):
        if isinstance(head_dim := getattr(attention, name, None), int):
            return head_dim
    return _width(attention) // count_heads(attention)


def _width(attention: nn.Module) -> int:
    config: Any = attention.config
    width: int = config.hidden_size
    return width


def _projection(attention: nn.Module, size: int) -> nn.Linear:
    """A projection of the inputs that starts as the one of the queries, or at random where that is part of
    another.
    """
    candidates = (getattr(attention, name, None) for name in ("q_proj", "query"))
    query = next((module for module in candidates if isinstance(module, nn.Linear)), None)
    width, bias = (_width(attention), False) if query is None else (query.in_features, query.bias is not None)
    projection = nn.Linear(width, size, bias=bias, **_factory(attention))
    if query is not None and query.weight.shape == projection.weight.shape:
        with torch.no_grad():
            for p, of_query in zip(projection.parameters(), query.parameters(), strict=True):
                p.copy_(of_query)
    return projection


def _factory(attention: nn.Module) -> dict[str, Any]:
    """Device and dtype of a layer's weights."""
    weight = next(p for p in attention.parameters() if p.is_floating_point())
    return {"device": weight.device, "dtype": weight.dtype}


def _arguments(attention: nn.Module) -> list[str]:
    """Names of the arguments of a layer, in their order.

    Raises:
        NotImplementedError: none of them is hidden_states, or it takes no others than it names.
    """
    _, *parameters = inspect.signature(type(attention).forward).parameters.values()  # all but self
    names = [p.name for p in parameters]
    if "hidden_states" not in names or not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise NotImplementedError(
            f"{type(attention).__name__} has to take hidden_states and any keywords to be given a probe; its "
            f"arguments are {', '.join(names)}"
        )
    return names


def _norm(attention: nn.Module, heads: int, head_dim: int) -> tuple[nn.Module | None, int]:
    """A copy of the norm of the queries, if they have one, and how many entries it takes at a time."""
    norm = getattr(attention, "q_norm", None)
    if norm is None:
        return None, head_dim
    weight = getattr(norm, "weight", None)
    return copy.deepcopy(norm).requires_grad_(), head_dim if weight is None else weight.shape[-1]


def _rotation(attention: nn.Module, arguments: list[str]) -> Callable[..., Any] | None:
    """The function that turns the queries of a layer by their positions; None if the layer turns none.

    Raises:
        NotImplementedError: it turns them by one of its own.
    """
    if "position_embeddings" not in arguments:
        return None
    module = sys.modules[type(attention).__module__]
    rotate: Callable[..., Any] | None = getattr(module, "apply_rotary_pos_emb", None)
    latent = hasattr(attention, "qk_rope_head_dim")  # turns the end of a head, and has no input for all of it
    if latent or rotate is None or list(inspect.signature(rotate).parameters)[:4] != ["q", "k", "cos", "sin"]:
        raise NotImplementedError(
            f"{type(attention).__name__} turns its queries by positions in a way of its own, which its probe "
            "would have to share; convert(model, to='lla') needs no probe"
        )
    return rotate
