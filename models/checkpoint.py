"""Models on disk. Every file is written aside and moved into place: a save that is interrupted at any point
leaves the previous one as it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import torch

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
    safetensors = _safetensors()
    kind = f"flashlla.{type(model).__name__}"
    if KINDS.get(kind, (None, None))[1] is not type(model):
        raise TypeError(f"model is a {type(model).__name__}; one of {', '.join(KINDS)} can be saved")
    weights = model.state_dict() if weights is None else weights
    shapes = {name: t.shape for name, t in model.state_dict().items()}
    if {name: t.shape for name, t in weights.items()} != shapes:
        raise ValueError("weights has other names or shapes than the model; pass those of this model")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = json.dumps(model.config.to_dict(), indent=2)
    tensors = {name: t.detach().contiguous() for name, t in weights.items()}
    metadata = {"format": kind, "config": config}
    replace_file(directory / WEIGHTS, lambda path: safetensors.torch.save_file(tensors, path, metadata))
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
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is corrupt ({error}); restore it from a copy") from error
    if metadata.get("format") not in KINDS:
        raise ValueError(
            f"{path} was not written by save_model(): its format is {metadata.get('format')!r}, none of "
            f"{', '.join(KINDS)}"
        )
    config_class, model_class = KINDS[metadata["format"]]
    try:
        config = config_class.from_dict(json.loads(metadata.get("config", "")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has a configuration that no model has: {error}") from error
    if config.depth > len(tensors):  # before blocks are made that no tensor is there for
        raise ValueError(
            f"{path} does not fit its own configuration: depth={config.depth} and {len(tensors)} tensors"
        )
    with torch.device("meta"):
        model = model_class(config)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit its own configuration: {error}") from error
    return model


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` a file next to ``path``, see it on the disk, and move it into place."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask wants it; safetensors would leave the file private
        write(temporary)
        temporary.chmod(mode)
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)  # the move itself


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "saving and loading models needs safetensors: pip install 'flashlla[experiments]'"
        ) from error
    return safetensors
