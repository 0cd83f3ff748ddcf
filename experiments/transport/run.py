"""Configuration, trials, and what one trial computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flashlla.models import Encoder

from ..common.costs import peak_megabytes
from ..common.experiment import ExperimentConfig
from ..common.statistics import geometric_mean
from . import deep, finite
from .gaps import GAPS, family
from .hardness import hardness
from .interaction import SOURCE, TARGET, FiniteInteraction, LinearInteraction
from .linear import METHODS, Record, play
from .networks import FEATURES, encoder_config
from .sequences import TRACKS

CONTEXTS, ACTIONS = 6, 3  # of a linear instance
FIRST = 128  # episodes at which a run is looked at first, and then whenever there are twice as many
SPREADS, TARGETS = (0.25, 0.5, 0.75, 1.0), (0.8, 0.5, 0.2, 0.05)  # of the instances of growing hardness
GAP_METHODS = ("opme", "ols", "direct")
ROUNDS = 3  # of a reward transformer, each with four times as many episodes as the one before


@dataclass(frozen=True)
class Case:
    """A variant of the linear interaction: who plays, and what is another than in ``main``."""

    methods: tuple[str, ...]
    contexts: int = CONTEXTS
    confounding: float = 1.0
    target: float = TARGET
    spread: float = 1.0


CASES = {
    "main": Case(("opme", "uniform", "epsilon_greedy", "ols", "no_transport", "direct")),
    "unconfounded": Case(("opme", "ols"), confounding=0.0),
    "same_population": Case(("opme", "ols", "direct_uniform"), target=SOURCE),
    "context_free": Case(("opme",), contexts=1),
    **{
        f"hard_{spread:g}_{target:g}": Case(("opme",), spread=spread, target=target)
        for spread in SPREADS
        for target in TARGETS
    },
}


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """OPME: strategic decisions with information asymmetry and transportability.

    Attributes:
        mixer: token mixers of the reward transformers; the other parts have none.
        episodes: of a run of the linear and of the finite interaction, and of the gaps; a power of 2.
        runs: linear instances a seed.
        gap_runs: runs of every gap a seed.
        hard_runs, hard_episodes: of the instances of growing hardness.
        instances: finite instances a seed.
        sampled: episodes by which the moments are checked.
        form_seeds: repetitions of the reward transformers.
        form_episodes: in the last round of these; those before have a quarter and a sixteenth.
        fields: of a form.
        dim, depth, heads: of a reward transformer.
        steps, batch: of its training in each round.
        learning_rate: of Muon, at its peak.
    """

    mixer: tuple[str, ...] = ("softmax", "lla", "parallax", "mesanet", "gated_deltanet")
    seeds: int = 4
    episodes: int = 32768
    runs: int = 96
    gap_runs: int = 128
    hard_runs: int = 24
    hard_episodes: int = 8192
    instances: int = 6
    sampled: int = 250_000
    form_seeds: int = 3
    form_episodes: int = 16384
    fields: int = 6
    dim: int = 32
    depth: int = 1
    heads: int = 2
    steps: int = 120
    batch: int = 128
    learning_rate: float = 1e-2

    def __post_init__(self):
        super().__post_init__()
        self._check_at_least(_LEAST)
        self._check_positive("learning_rate")
        for name in ("episodes", "hard_episodes"):
            if getattr(self, name) & (getattr(self, name) - 1):
                raise ValueError(f"{name}={getattr(self, name)} must be a power of 2")
        if self.fields % TRACKS:
            raise ValueError(f"fields={self.fields} must be a multiple of the {TRACKS} tracks")
        for mixer in self.mixer:  # sizes that do not fit are told apart here, not in every trial
            Encoder(encoder_config(mixer, 2, FEATURES, self.dim, self.depth, self.heads), device="meta")


_LEAST = {
    **dict.fromkeys(("episodes", "hard_episodes"), FIRST),
    **dict.fromkeys(("runs", "gap_runs", "hard_runs", "instances", "form_seeds", "dim", "depth"), 1),
    **dict.fromkeys(("heads", "fields"), 1),
    **dict.fromkeys(("steps", "batch"), 2),
    "sampled": 1000,
    "form_episodes": 4**ROUNDS,
}

PRESETS = {
    "smoke": Config(
        mixer=("lla",),
        seeds=1,
        episodes=256,
        runs=2,
        gap_runs=1,
        hard_runs=2,
        hard_episodes=128,
        instances=1,
        sampled=10_000,
        form_seeds=1,
        form_episodes=256,
        fields=4,
        dim=16,
        steps=4,
        batch=32,
    ),
    "small": Config(),
    "gpu": Config(
        seeds=8,
        episodes=131072,
        runs=192,
        gap_runs=128,
        hard_runs=64,
        instances=16,
        form_seeds=5,
        form_episodes=65536,
        fields=16,
        dim=64,
        depth=2,
        heads=4,
        steps=600,
        batch=1024,
        learning_rate=5e-3,
        device="cuda",
    ),
}


@dataclass(frozen=True)
class Trial:
    """One part of the experiment with one seed.

    Attributes:
        part: ``moments``, ``linear``, ``gaps``, ``finite`` or ``forms``.
        case: of the linear interaction, a key of ``CASES``.
        mixer: of the reward transformer.
        size: instances, or runs of every gap.
        fields, dim, depth, heads, steps, batch, learning_rate: of the reward transformer; 0 elsewhere.
    """

    part: str
    seed: int
    episodes: int
    case: str = ""
    size: int = 0
    mixer: str = ""
    fields: int = 0
    dim: int = 0
    depth: int = 0
    heads: int = 0
    steps: int = 0
    batch: int = 0
    learning_rate: float = 0.0
    device: str = "cpu"


def trials(config: Config) -> Iterator[Trial]:
    """Those that take longest first; the mixers of a seed meet the same interaction."""
    names = ("fields", "dim", "depth", "heads", "steps", "batch", "learning_rate", "device")
    network = {name: getattr(config, name) for name in names}
    for seed in range(config.form_seeds):
        for mixer in config.mixer:
            yield Trial("forms", seed, config.form_episodes, mixer=mixer, **network)
    for seed in range(config.seeds):
        yield Trial("gaps", seed, config.episodes, size=config.gap_runs)
        yield Trial("finite", seed, config.episodes, size=config.instances)
        for case in CASES:
            hard = case.startswith("hard")
            episodes, runs = (
                (config.hard_episodes, config.hard_runs) if hard else (config.episodes, config.runs)
            )
            yield Trial("linear", seed, episodes, case, runs)
        yield Trial("moments", seed, config.sampled)


def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """Rows by method and number of episodes; of the gaps by gap, of the finite part by instance, and of the
    forms by head as well.
    """
    rows = PARTS[trial.part](trial, folder)
    return [{"peak_megabytes": peak_megabytes(), **row} for row in rows]


def _moments(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """What xi does given (s, a), in the linear interaction.

    ``noise_mean`` is its mean in every cell, over the standard error, root mean square over cells;
    ``correlation`` is that with e in a cell, mean over cells.
    """
    rng = np.random.default_rng((trial.seed, 0))
    instance = LinearInteraction.draw(1, CONTEXTS, ACTIONS, rng)
    contexts, actions = (rng.integers(count, size=(1, trial.episodes)) for count in (CONTEXTS, ACTIONS))
    feedback, _, noise = instance.play(contexts, actions, rng)
    scores, correlations = [], []
    for cell in range(CONTEXTS * ACTIONS):
        inside = contexts * ACTIONS + actions == cell
        xi = noise[inside]
        scores.append(xi.mean() / (xi.std() / len(xi) ** 0.5))
        correlations.append(np.corrcoef(xi, feedback[inside])[0, 1])
    rms = float(np.sqrt(np.mean(np.square(scores))))
    return [{"noise_mean": rms, "correlation": float(np.mean(correlations))}]


def _linear(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """Every method on the same instances. Errors of values are geometric means over instances, as a power of
    the number of episodes is one of each instance; ``value_error_mean`` is the plain mean.
    """
    case = CASES[trial.case]
    rng = np.random.default_rng((trial.seed, 0))
    options = {"confounding": case.confounding, "target": case.target, "spread": case.spread}
    instance = LinearInteraction.draw(trial.size, case.contexts, ACTIONS, rng, **options)
    tau, transfer = (float(geometric_mean(found)) for found in hardness(instance))
    about = {"ill_posedness": tau, "transfer": transfer}
    hard = trial.case.startswith("hard")
    checkpoints = (trial.episodes,) if hard else _checkpoints(trial.episodes)
    rows = []
    for i, method in enumerate(case.methods):
        rng = np.random.default_rng((trial.seed, 1, i))
        for record in play(instance, METHODS[method], checkpoints, rng):
            rows.append({"method": method, **about, **_means(record)})
    constant = float(_source_optimal(instance).mean())
    for checkpoint in checkpoints:
        short = {"suboptimality": constant, "mixture": constant}
        rows.append({"method": "source_optimal", "episodes": checkpoint, **about, **short})
    return rows


def _means(record: Record) -> dict[str, Any]:
    means = {name: float(np.mean(values)) for name, values in record._asdict().items()}
    error = {
        "value_error": float(geometric_mean(record.value_error)),
        "value_error_mean": means["value_error"],
    }
    known = {name: mean for name, mean in means.items() if not np.isnan(mean)}
    return {**known, **error, "episodes": record.episodes}


def _source_optimal(instance: LinearInteraction) -> np.ndarray:
    """What the best policy of the source population lacks in the target population, ``[runs]``."""
    paid = instance.rewards(instance.target)
    chosen = instance.rewards(instance.source).argmax(2)[..., None]
    return (paid.max(2) - np.take_along_axis(paid, chosen, 2)[..., 0]).mean(1)


def _gaps(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    instance = family(trial.size, GAPS, np.random.default_rng((trial.seed, 0)))
    rows = []
    for i, method in enumerate(GAP_METHODS):
        rng = np.random.default_rng((trial.seed, 1, i))
        for record in play(instance, METHODS[method], _checkpoints(trial.episodes), rng):
            for gap, mixture, greedy in zip(
                GAPS,
                *(v.reshape(len(GAPS), -1).mean(1) for v in (record.mixture, record.greedy)),
                strict=True,
            ):
                found = {"mixture": float(mixture), "greedy": float(greedy)}
                rows.append({"method": method, "gap": gap, "episodes": record.episodes, **found})
    return rows


def _finite(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    rows = []
    for instance in range(trial.size):
        seed = 1000 * trial.seed + instance
        truth = FiniteInteraction.draw(np.random.default_rng((seed, 0)))
        for method in finite.METHODS:
            for found in finite.play(truth, method, _checkpoints(trial.episodes), seed):
                rows.append({"method": method, "instance": instance, **found})
    return rows


def _forms(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    recipe = deep.Recipe(**{name: getattr(trial, name) for name in deep.Recipe._fields})
    rounds = [trial.episodes // 4**i for i in reversed(range(ROUNDS))]
    return [
        {"method": arm, **row}
        for arm in deep.ARMS
        for row in deep.play(arm, recipe, trial.fields, rounds, trial.seed, folder)
    ]


def _checkpoints(episodes: int) -> list[int]:
    """Powers of 2 from the first on."""
    return [FIRST << i for i in range((episodes // FIRST).bit_length())]


PARTS: dict[str, Callable[[Trial, Path], list[dict[str, Any]]]] = {
    "moments": _moments,
    "linear": _linear,
    "gaps": _gaps,
    "finite": _finite,
    "forms": _forms,
}
