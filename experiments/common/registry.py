"""The experiments by name. A package is loaded when it is asked for."""

from __future__ import annotations

import importlib
import pkgutil

import flashlla.experiments

from .experiment import Experiment, ExperimentError

NOT_EXPERIMENTS = {"common", "demo", "worlds"}


def names() -> list[str]:
    """All experiments there are, sorted."""
    found = pkgutil.iter_modules(flashlla.experiments.__path__)
    return sorted(module.name for module in found if module.ispkg and module.name not in NOT_EXPERIMENTS)


def load(name: str) -> Experiment:
    """The experiment called ``name``.

    Raises:
        ExperimentError: there is none, or a package that it needs is missing.
    """
    if name not in names():
        raise ExperimentError(f"experiment {name!r} is unknown; choose one of {', '.join(names())}")
    try:
        return importlib.import_module(f"flashlla.experiments.{name}").EXPERIMENT
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("flashlla"):
            raise
        raise ExperimentError(
            f"experiment {name} needs the package {error.name}: pip install 'flashlla[experiments]'"
        ) from error
