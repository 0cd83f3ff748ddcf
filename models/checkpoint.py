"""Models and training runs on disk. Every file is written aside and moved into place: a save that is
interrupted at any point leaves the previous one as it was.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import torch

from .config import LanguageModelConfig
from .language_model import LanguageModel

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TRAINING = "training.pt"
_FORMAT = "flashlla.LanguageModel"


def save_model(
    model: LanguageModel, directory: str | os.PathLike, *, weights: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Write weights and configuration into ``directory``, which is created.

    ``model.safetensors`` holds both, so that they cannot come apart; ``config.json`` is a copy for people and
    other tools, which :func:`load_model` does not read.

    Args:
        model: gives the configuration, and the weights unless they are given.
        directory: where to.
        weights: tensors by the names of the model's own: a moving average, or what a sharded run has gathered
            (:meth:`flashlla.models.training.Trainer.weights`).

    Raises:
        ImportError: safetensors is not installed.
        ValueError: weights with other names or shapes than the model's.
        OSError: the files cannot be written.
    """
    safetensors = _safetensors()
    weights = model.state_dict() if weights is None else weights
    shapes = {name: t.shape for name, t in model.state_dict().items()}
    if {name: t.shape for name, t in weights.items()} != shapes:
        raise ValueError("weights has other names or shapes than the model; pass those of this model")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = json.dumps(model.config.to_dict(), indent=2)
    tensors = {name: t.detach().contiguous() for name, t in weights.items()}
    metadata = {"format": _FORMAT, "config": config}
    replace_file(directory / WEIGHTS, lambda path: safetensors.torch.save_file(tensors, path, metadata))
    replace_file(directory / CONFIG, lambda path: path.write_text(config + "\n"))


def load_model(directory: str | os.PathLike, device: torch.device | str = "cpu") -> LanguageModel:
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
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} was not written by save_model(): its metadata names no {_FORMAT}")
    config = LanguageModelConfig.from_dict(json.loads(metadata["config"]))
    with torch.device("meta"):
        model = LanguageModel(config)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit its own configuration: {error}") from error
    return model


def save_training_state(
    directory: str | os.PathLike,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    step: int,
    *,
    generator: torch.Generator | None = None,
) -> None:
    """Write all that a run needs to go on as if it had never stopped, as one file in ``directory``.

    Weights, optimiser, step, torch's random state on every device, and that of ``generator``, say the one
    that draws the batches.

    Raises:
        OSError: the file cannot be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {
        "config": model.config.to_dict(),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all(),
        "generator": None if generator is None else generator.get_state(),
    }
    replace_file(directory / TRAINING, lambda path: torch.save(state, path))


def load_training_state(
    directory: str | os.PathLike,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    *,
    generator: torch.Generator | None = None,
) -> int:
    """Restore in place what :func:`save_training_state` wrote; returns the step.

    Raises:
        FileNotFoundError: the directory holds no training state.
        ValueError: the file is corrupt, or belongs to another model, optimiser or kind of run. Model,
            optimiser and random state are then as before.
    """
    path = Path(directory) / TRAINING
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; save_training_state() writes it")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:  # OSError: cut short
        raise ValueError(f"{path} is corrupt ({error}); restore it from a copy") from error
    _check_training_state(path, state, model, generator)
    try:
        optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:
        raise ValueError(f"{path} was saved with another optimiser: {error}") from error
    model.load_state_dict(state["model"])
    torch.set_rng_state(state["rng"])
    if len(state["cuda_rng"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    if generator is not None:
        generator.set_state(state["generator"])
    return state["step"]


def _check_training_state(path: Path, state: dict, model: LanguageModel, generator) -> None:
    if not isinstance(state, dict) or "config" not in state:
        raise ValueError(f"{path} was not written by save_training_state()")
    ours = model.config.to_dict()
    differing = [
        f"{key}={state['config'].get(key)!r} there, {ours[key]!r} here"
        for key in ours
        if state["config"].get(key) != ours[key]
    ]
    if differing:
        raise ValueError(f"{path} belongs to another model: {'; '.join(differing)}")
    if (generator is None) != (state["generator"] is None):
        there, here = ("without", "with") if state["generator"] is None else ("with", "without")
        raise ValueError(f"{path} was saved {there} a generator and is loaded {here} one; do as at saving")


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
