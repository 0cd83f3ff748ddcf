"""The description of an experiment: everything that the commands need to know of one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashlla.models.mixers import MIXERS

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from .claims import Claim

PRESETS = {
    "smoke": "seconds, on one core: that everything works",
    "small": "minutes to about an hour on two cores: what the committed results come from",
    "gpu": "sized for one large GPU; none of them has been run",
}


class ExperimentError(Exception):
    """An experiment that cannot start or go on; the message is one line that says why, and what to do."""


class TrialsFailed(ExperimentError):
    """Some trials of a sweep ended with an error; the results of the others are kept."""


@dataclass(frozen=True)
class ExperimentConfig:
    """What a sweep runs over; an experiment adds its own fields.

    Attributes:
        mixer: token mixers to compare.
        seeds: independent repetitions, numbered from 0.
        device: where to run.

    Raises:
        ValueError: an unknown mixer, the same one twice, or fewer than one seed.
    """

    mixer: tuple[str, ...] = ("lla", "softmax")
    seeds: int = 3
    device: str = "cpu"

    def __post_init__(self):
        self._check_names("mixer", MIXERS)
        if not self.mixer or len(set(self.mixer)) < len(self.mixer):
            raise ValueError(f"mixer={' '.join(self.mixer)!r} must name at least one, and each once")
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds} must be at least 1")

    def _check_names(self, field: str, choices: Iterable[str]) -> None:
        """Every value of a field must be one of the choices."""
        for name in getattr(self, field):
            if name not in choices:
                raise ValueError(f"{field} {name!r} is unknown; choose from {', '.join(choices)}")

    def _check_among_mixers(self, *fields: str) -> None:
        """Every value of these must be in ``mixer`` as well."""
        for name in fields:
            for mixer in getattr(self, name):
                if mixer not in self.mixer:
                    raise ValueError(f"{name} {mixer!r} must be among mixer={' '.join(self.mixer)!r}")

    def _check_at_least(self, limits: Mapping[str, float]) -> None:
        """No field may be less than its limit."""
        for name, least in limits.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")

    def _check_positive(self, *fields: str) -> None:
        for name in fields:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")


@dataclass(frozen=True)
class Experiment:
    """One experiment; its package calls it ``EXPERIMENT``.

    Attributes:
        name: of the package, and on the command line.
        title: in words.
        paper: where the question comes from.
        question: what is asked, in a sentence or two.
        config: a subclass of :class:`ExperimentConfig`.
        presets: configurations by the names of ``PRESETS``.
        trial: a frozen dataclass that says all that a trial depends on, in JSON values.
        trials: the trials of a configuration. A trial that two configurations share is computed once.
        run: ``run(trial, folder)`` computes one and returns its rows of the table, as mappings; in ``folder``
            it may keep what lets it go on after an interruption.
        summary: ``summary(table)`` is the small table that readers look at first.
        figures: ``figures(table)`` draws from the rows of all trials, by name.
        claims: what the paper says, each to be judged from the table.
    """

    name: str
    title: str
    paper: str
    question: str
    config: type[ExperimentConfig]
    presets: Mapping[str, ExperimentConfig]
    trial: type
    trials: Callable[[Any], Iterable[Any]]
    run: Callable[[Any, Path], Sequence[Mapping[str, Any]]]
    summary: Callable[[pandas.DataFrame], pandas.DataFrame]
    figures: Callable[[pandas.DataFrame], Mapping[str, Figure]]
    claims: Sequence[Claim] = field(default_factory=tuple)


def trial_key(trial: Any) -> str:
    """A name for a trial that follows from all its fields."""
    return hashlib.sha256(trial_json(trial).encode()).hexdigest()[:16]


def trial_json(trial: Any) -> str:
    """The fields of a trial, always in the same words."""
    return json.dumps(dataclasses.asdict(trial), sort_keys=True, allow_nan=False)


def trial_from_json(experiment: Experiment, text: str) -> Any:
    """The inverse of :func:`trial_json`; lists become the tuples that they were."""
    fields = {n: tuple(v) if isinstance(v, list) else v for n, v in json.loads(text).items()}
    return experiment.trial(**fields)
