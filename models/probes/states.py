"""Hidden states of any model that is a stack of blocks: ours, and those of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NORM = "norm"  # the place behind the final norm


def load_transformers(folder: str | Path, **options: Any) -> nn.Module:
    """A causal language model of transformers from a local folder, in evaluation mode; nothing is downloaded.

    Args:
        options: of ``AutoModelForCausalLM.from_pretrained``, such as dtype.

    Raises:
        ValueError: the folder holds no such model.
        ModuleNotFoundError: transformers is missing.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; give a folder that save_pretrained() has written")
    try:
        from transformers import AutoModelForCausalLM
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "load_transformers needs the package transformers: pip install 'flashlla[hf]'"
        ) from error
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options).eval()


@torch.no_grad()
def hidden_states(
    model: nn.Module,
    *inputs: Any,
    layers: Sequence[int | str] = (NORM,),
    position: int | Sequence[int] | None = -1,
    **options: Any,
) -> Tensor:
    """What stands at a position of every row, at some places of the stack.

    Args:
        model: a stack of blocks in a ``ModuleList``, as all of :mod:`flashlla.models` are and the decoders of
            transformers. Put it into evaluation mode yourself.
        inputs, options: of a call of the model: ``tokens``, or ``attention_mask=...`` too.
        layers: 0 is what the first block reads and ``i`` what block i writes, before the final norm;
            ``-1`` is the last block; ``"norm"`` is behind the final norm.
        position: of the sequence, ``-1`` for the last; or one for every row, for those that are padded on the
            right. None is all positions.

    Returns:
        ``[len(layers), batch, dim]``, in the dtype of the model; ``[len(layers), batch, seq, dim]`` of all
        positions.

    Raises:
        ValueError: a layer that the model has not, no stack of blocks or several of them, or no final norm.
    """
    name, blocks = _stack(model)
    owner = model.get_submodule(name.rpartition(".")[0])
    places = [place if place == NORM else _resolve(place, len(blocks)) for place in layers]
    recorder = _Recorder(owner, blocks, places, position)
    with recorder:
        model(*inputs, **options)
    if NORM in places and NORM not in recorder.states:
        raise ValueError(f"{type(model).__name__} has no final norm behind its {len(blocks)} blocks")
    return torch.stack([recorder.states[place] for place in places])


class _Recorder(ExitStack):
    """Hooks on a stack of blocks and on what its owner calls behind it; they are gone when it is left.

    Attributes:
        states: ``[batch, dim]``, or ``[batch, seq, dim]`` of all positions, by place.
    """

    def __init__(
        self, owner: nn.Module, blocks: nn.ModuleList, places: list, position: int | Sequence[int] | None
    ):
        super().__init__()
        self.states: dict[int | str, Tensor] = {}
        self._places, self._position, self._depth, self._done = places, position, len(blocks), False
        norms = [child for child in owner.children() if "norm" in type(child).__name__.lower()]
        handles = [blocks[0].register_forward_pre_hook(self._read, with_kwargs=True)]
        handles += [
            block.register_forward_hook(partial(self._wrote, place)) for place, block in enumerate(blocks, 1)
        ]
        handles += [norm.register_forward_hook(self._normed) for norm in norms]
        for handle in handles:
            self.callback(handle.remove)

    def _read(self, block: nn.Module, args: tuple, options: dict) -> None:
        self._keep(0, args[0] if args else options["hidden_states"])

    def _wrote(self, place: int, block: nn.Module, args: tuple, output: Any) -> None:
        self._keep(place, output if isinstance(output, Tensor) else output[0])
        self._done = place == self._depth

    def _normed(self, norm: nn.Module, args: tuple, output: Tensor) -> None:
        if self._done:  # some models have norms in front of their blocks as well
            self._keep(NORM, output)

    def _keep(self, place: int | str, state: Tensor) -> None:
        if place in self._places:
            self.states[place] = _at(state, self._position)


def _at(state: Tensor, position: int | Sequence[int] | None) -> Tensor:
    if position is None:
        return state
    if isinstance(position, int):
        return state[:, position]
    rows = torch.arange(len(state), device=state.device)
    return state[rows, torch.as_tensor(position, device=state.device)]


def _stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The outermost list of blocks and its name; those inside a block are parts of it."""
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outer) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(outer)} stacks of blocks ({', '.join(outer)}); "
            "give the part of it that has one"
        )
    return outer[0], lists[outer[0]]


def _resolve(layer: int | str, depth: int) -> int:
    if not isinstance(layer, int) or not -depth - 1 <= layer <= depth:
        raise ValueError(f"layer {layer!r} must be {NORM!r} or an int from {-depth - 1} to {depth}")
    return layer % (depth + 1)
