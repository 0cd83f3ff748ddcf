"""Changes to modules in place, prepared as a whole before the first of them is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

TARGETS = ("lla", "parallax")


@dataclass(frozen=True)
class Target:
    """What attention is to become: the name in ``convert(to=...)``, and the options of the layers."""

    name: str
    options: dict[str, Any]

    @classmethod
    def of(cls, to: str, options: dict[str, Any], defaults: Mapping[str, Any]) -> Target:
        """What a caller asked for.

        Args:
            to: one of ``TARGETS``.
            options: those of ``"lla"``; Parallax takes none but their defaults.
            defaults: theirs, ``__kwdefaults__`` of the function that was called.

        Raises:
            ValueError: an unknown target, or an option of the other one.
        """
        if to not in TARGETS:
            raise ValueError(f"to={to!r} is unknown; choose one of {', '.join(TARGETS)}")
        if to == "lla":
            return cls(to, options)
        if given := [f"{name}={value!r}" for name, value in options.items() if value != defaults[name]]:
            raise ValueError(
                f"{', '.join(given)} is for to='lla'; leave it out: Parallax has no ridge, and in place "
                "of the gate a scale of its own, learned from 0"
            )
        return cls(to, {})


@dataclass(frozen=True)
class Change:
    """A module, the class that it is to have, and the attributes that it is to get.

    The module itself stays, and with it its parameters, hooks, mode and flags, and all that refers to it:
    optimizers, other modules that share it, lists of the user. Everything that can fail has been done when a
    change is made, so that a model is changed as a whole or not at all.
    """

    module: nn.Module
    becomes: type[nn.Module]
    attributes: dict[str, Any]

    def apply(self) -> None:
        for name, value in self.attributes.items():
            setattr(self.module, name, value)
        self.module.__class__ = self.becomes


def become(module: nn.Module, template: nn.Module, *, device: torch.device, **attributes: Any) -> Change:
    """Let ``module`` have the class of ``template``, and what that has beyond it; the rest stays as it is.

    Args:
        template: a module as its constructor makes it, on the device "meta": nothing of it is kept but its
            class and what is new, which starts on ``device`` as the template would.
        attributes: those that are to have another value than module has.
    """
    new = {name: value for name, value in vars(template).items() if name not in vars(module)}
    for name, part in template.named_children():
        if name not in module._modules:
            new[name] = _started(part, device).train(module.training)
    for name, p in template.named_parameters(recurse=False):
        if name not in module._parameters:  # the scale of Parallax: what is no part of a part starts at 0
            new[name] = nn.Parameter(torch.zeros_like(p, device=device))
    return Change(module, type(template), {**new, **attributes})


def _started(part: nn.Module, device: torch.device) -> nn.Module:
    """A part that was made on "meta", with its initial values on ``device``."""
    part = part.to_empty(device=device)
    for module in part.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    return part
