"""Models on disk. Every file is written aside and moved into place: a save that is interrupted at any point
leaves the previous one as it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch

from flashlla._files import check_writable, parse_json, replace_file, writing

from .backbone import Model
from .config import LanguageModelConfig
from .diffusion import TrajectoryConfig, TrajectoryTransformer, VideoConfig, VideoTransformer
from .encoder import Encoder, EncoderConfig
from .language_model import LanguageModel
from .policy import PolicyConfig, PolicyModel

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
KINDS = {  # what a file may hold: nothing else is ever built from one
    f"flashlla.{model.__name__}": (config, model)
    for config, model in (
        (LanguageModelConfig, LanguageModel),
        (EncoderConfig, Encoder),
        (PolicyConfig, PolicyModel),
        (TrajectoryConfig, TrajectoryTransformer),
        (VideoConfig, VideoTransformer),
    )
}


def save_model(
    model: Model, directory: str | os.PathLike, *, weights: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Write weights and configuration into ``directory``, which is created.

    ``model.safetensors`` holds both, so that they cannot come apart; ``config.json`` is a copy for people and
    other tools, which :func:`load_model` does not read.

    Args:
        model: a model of this package; gives the configuration, and the weights unless they are given.
        directory: where to.
        weights: tensors by the names of the model's own: a moving average, or what a sharded run has gathered
            (:meth:`flashlla.models.training.Trainer.weights`).

    Raises:
        ImportError: safetensors is not installed.
        TypeError: a model of another kind.
        ValueError: weights with other names or shapes than the model's.
        OSError: the files cannot be written.
    """
    _safetensors()  # or say at once that it is missing
    kind = f"flashlla.{type(model).__name__}"
    if KINDS.get(kind, (None, None))[1] is not type(model):
        raise TypeError(f"model is a {type(model).__name__}; one of {', '.join(KINDS)} can be saved")
    weights = model.state_dict() if weights is None else weights
    shapes = {name: t.shape for name, t in model.state_dict().items()}
    if {name: t.shape for name, t in weights.items()} != shapes:
        raise ValueError("weights has other names or shapes than the model; pass those of this model")
    directory = Path(directory)
    check_writable(directory)
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    config = json.dumps(model.config.to_dict(), indent=2)
    tensors = {name: t.detach().contiguous() for name, t in weights.items()}
    metadata = {"format": kind, "config": config}
    replace_file(directory / WEIGHTS, lambda path: _write(path, tensors, metadata))
    replace_file(directory / CONFIG, lambda path: path.write_text(config + "\n"))


def load_model(directory: str | os.PathLike, device: torch.device | str = "cpu") -> Model:
    """The model that :func:`save_model` wrote, with its dtype, on ``device``.

    Raises:
        ImportError: safetensors is not installed.
        FileNotFoundError: the directory holds no model.
        ValueError: the file is corrupt, or was not written by :func:`save_model`.
    """
    safetensors = _safetensors()
    path = Path(directory) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; save_model() writes it")
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
            model = _build(path, file.metadata() or {}, shapes)
            tensors = {name: file.get_tensor(name) for name in shapes}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is corrupt ({error}); restore it from a copy") from error
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:  # a dtype that no parameter has
        raise ValueError(f"{path} does not fit its own configuration: {error}") from error
    return model


def _build(path: Path, metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> Model:
    """The model that a file describes, on the meta device: what a stranger asks for takes no memory."""
    if metadata.get("format") not in KINDS:
        raise ValueError(
            f"{path} was not written by save_model(): its format is {metadata.get('format')!r}, none of "
            f"{', '.join(KINDS)}"
        )
    config_class, model_class = KINDS[metadata["format"]]
    try:
        config = config_class.from_dict(parse_json(metadata.get("config", "")))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} has a configuration that no model has: {error}") from error
    if config.depth > len(shapes):  # before blocks are made that no tensor is there for
        raise ValueError(
            f"{path} does not fit its own configuration: depth={config.depth} and {len(shapes)} tensors"
        )
    try:
        with torch.device("meta"):
            model = model_class(config)
    except Exception as error:  # whatever torch says of sizes that no tensor can have
        raise ValueError(f"{path} has a configuration that no model has: {error}") from error
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    if wrong := sorted(n for n in wanted.keys() | shapes.keys() if wanted.get(n) != shapes.get(n)):
        raise ValueError(
            f"{path} does not fit its own configuration: {wrong[0]} is {_shape(shapes, wrong[0])} there "
            f"and {_shape(wanted, wrong[0])} in its model; restore it from a copy"
        )
    return model


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return str(shapes.get(name, "missing"))


def _write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    safetensors = _safetensors()
    try:
        safetensors.torch.save_file(dict(tensors), path, metadata)
    except safetensors.SafetensorError as error:  # what it makes of a full disk
        raise OSError(str(error)) from error


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "saving and loading models needs safetensors: pip install 'flashlla[experiments]'"
        ) from error
    return safetensors
