"""Configuration, trials, and what one trial computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashlla.models import LanguageModel

from ..common.experiment import ExperimentConfig
from ..worlds.errors import check_pair
from .arms import INITS
from .domains import DOMAINS, Domains
from .study import Study, model_config


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """Training in one text world and testing in three others.

    What has four values has one for each of house, shop, sokoban, lab.

    Attributes:
        mixer: token mixers to compare.
        designs, inits: arms that all of them have, of plain and augmented, and from which initial policies,
            of V1 and V2.
        extra_mixer, extra_designs, extra_inits: mixers that have more arms, these, and the initial policies
            of all their arms.
        thinking_mixer, thinking_designs: those that are trained with a scratchpad as well, and their arms.
        ablation_mixer, ablation_worlds: mixers that have the controls, in these worlds, and the doses.
        factorial_mixer: those that have the factorial of distractors and subtasks.
        limits: steps of an episode, by world.
        factorial_limit: the same of MiniHouse in the factorial.
        distance: least and most steps that the expert needs from the start of an episode.
        receptacles: least and most in MiniHouse.
        history: observations and actions of the past in a prompt.
        volumes: distractors of the augmented arms, eps of the paper, by world.
        worlds, augmented: worlds that are trained in, and those that have augmented arms as well.
        dim, depth, heads: of the model.
        traces: episodes of the expert by world, for supervised training.
        noise: share of their actions that is random.
        base_steps, extra_steps: of supervised training, V1 and then V2.
        batch, base_rate: of both, with Muon; batch is in turns.
        draws, groups, samples: of GRPO: a draw has so many groups of so many episodes.
        updates, states: behind every draw, and turns of each at most.
        rate, kl: of AdamW, and weight of the KL to the initial policy.
        evaluate_every: draws between two evaluations.
        reported: evaluations, the last ones, that the reported success is the mean of.
        test: episodes of an evaluation, by world.
        temperature: of answers in the tests.
        measured, longest: episodes that richness and planning complexity are from, and their limit.
        shown: episodes of each arm that are kept as text.
    """

    mixer: tuple[str, ...] = ("lla", "softmax")
    designs: tuple[str, ...] = ("plain",)
    inits: tuple[str, ...] = ("V1",)
    extra_mixer: tuple[str, ...] = ("softmax",)
    extra_designs: tuple[str, ...] = ("augmented",)
    extra_inits: tuple[str, ...] = INITS
    thinking_mixer: tuple[str, ...] = ()
    thinking_designs: tuple[str, ...] = ("plain",)
    ablation_mixer: tuple[str, ...] = ()
    ablation_worlds: tuple[str, ...] = ("sokoban",)
    factorial_mixer: tuple[str, ...] = ()
    limits: tuple[int, int, int, int] = (8, 8, 8, 8)
    factorial_limit: int = 50
    distance: tuple[int, int] = (2, 4)
    receptacles: tuple[int, int] = (8, 8)
    history: int = 0
    volumes: tuple[int, int, int, int] = (36, 40, 30, 36)
    worlds: tuple[str, ...] = DOMAINS
    augmented: tuple[str, ...] = ("house", "shop", "sokoban")
    dim: int = 64
    depth: int = 2
    heads: int = 2
    traces: int = 128
    noise: float = 0.3
    base_steps: int = 400
    extra_steps: int = 40
    batch: int = 32
    base_rate: float = 1e-2
    draws: int = 16
    groups: int = 8
    samples: int = 8
    updates: int = 2
    states: int = 256
    rate: float = 1e-3
    kl: float = 0.01
    evaluate_every: int = 4
    reported: int = 1
    test: int = 96
    temperature: float = 0.4
    measured: int = 48
    longest: int = 16
    shown: int = 20
    seeds: int = 2

    def __post_init__(self):
        super().__post_init__()
        self._check_among_mixers("extra_mixer", "thinking_mixer", "ablation_mixer", "factorial_mixer")
        for name, choices in _CHOICES.items():
            self._check_names(name, choices)
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={' '.join(values)!r} must name at least one, and each once")
        self._check_at_least(_LEAST)
        self._check_positive("base_rate", "rate")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise={self.noise} must lie between 0 and 1")
        check_pair("distance", self.distance, 1, 99)
        if min(self.volumes) < 0:
            raise ValueError(f"volumes={self.volumes} must not be negative")
        for mixer in self.mixer:  # sizes that do not fit are told apart here, not in every trial
            LanguageModel(model_config(mixer, self.dim, self.depth, self.heads), device="meta")
        domains = Domains(self.limits, self.distance, self.receptacles, self.history, thinking=False)
        for domain in DOMAINS:
            domains.make(domain, 1)


_MAIN = ("plain", "augmented")
_ABLATIONS = ("controls", "doses")
_CHOICES = {
    **dict.fromkeys(("designs", "extra_designs", "thinking_designs"), _MAIN),
    **dict.fromkeys(("inits", "extra_inits"), INITS),
    **dict.fromkeys(("worlds", "augmented", "ablation_worlds"), DOMAINS),
}
_LEAST = {
    **dict.fromkeys(("traces", "base_steps", "extra_steps", "batch", "draws", "groups", "updates"), 1),
    **dict.fromkeys(("states", "evaluate_every", "reported", "test", "measured", "longest"), 1),
    **dict.fromkeys(("kl", "temperature", "shown"), 0),
    "samples": 2,
}

PRESETS = {
    "smoke": Config(
        limits=(4, 4, 4, 4),
        factorial_limit=4,
        extra_inits=("V1",),
        worlds=("sokoban",),
        augmented=("sokoban",),
        dim=16,
        depth=1,
        heads=1,
        traces=4,
        base_steps=2,
        extra_steps=1,
        batch=8,
        draws=1,
        groups=2,
        samples=2,
        updates=1,
        states=8,
        test=4,
        measured=4,
        longest=4,
        shown=1,
        seeds=1,
    ),
    "small": Config(),
    "gpu": Config(
        designs=("plain", "augmented"),
        inits=INITS,
        extra_mixer=(),
        thinking_mixer=("lla", "softmax"),
        thinking_designs=("plain", "augmented"),
        ablation_mixer=("lla",),
        ablation_worlds=DOMAINS,
        factorial_mixer=("lla", "softmax"),
        limits=(50, 15, 15, 50),
        factorial_limit=90,
        distance=(1, 99),
        receptacles=(8, 15),
        history=1,
        volumes=(300, 30, 80, 300),
        augmented=DOMAINS,
        dim=256,
        depth=4,
        heads=4,
        traces=1024,
        base_steps=1000,
        extra_steps=100,
        batch=256,
        base_rate=5e-3,
        draws=150,
        groups=16,
        states=256,
        rate=1e-4,
        evaluate_every=15,
        reported=4,
        test=256,
        measured=128,
        longest=50,
        seeds=3,
        device="cuda",
    ),
}


@dataclass(frozen=True)
class Trial:
    """One mixer with its initial policies and all arms of some designs."""

    mixer: str
    seed: int
    thinking: bool
    designs: tuple[str, ...]
    inits: tuple[str, ...]
    limits: tuple[int, ...]
    factorial_limit: int
    distance: tuple[int, ...]
    receptacles: tuple[int, ...]
    history: int
    volumes: tuple[int, ...]
    worlds: tuple[str, ...]
    augmented: tuple[str, ...]
    dim: int
    depth: int
    heads: int
    traces: int
    noise: float
    base_steps: int
    extra_steps: int
    batch: int
    base_rate: float
    draws: int
    groups: int
    samples: int
    updates: int
    states: int
    rate: float
    kl: float
    evaluate_every: int
    reported: int
    test: int
    temperature: float
    measured: int
    longest: int
    shown: int
    device: str


_SETTINGS = tuple(Trial.__dataclass_fields__)[5:]


def trials(config: Config) -> Iterator[Trial]:
    """Every mixer and seed; scratchpads and the factorial have initial policies of their own, controls and
    doses the same once more.
    """
    settings = {name: getattr(config, name) for name in _SETTINGS}
    for seed in range(config.seeds):
        for mixer in config.mixer:
            extra = mixer in config.extra_mixer
            designs = tuple(dict.fromkeys(config.designs + config.extra_designs * extra))
            yield Trial(
                mixer, seed, False, designs, config.extra_inits if extra else config.inits, **settings
            )
            if mixer in config.thinking_mixer:
                yield Trial(mixer, seed, True, config.thinking_designs, config.inits, **settings)
            if mixer in config.ablation_mixer:
                worlds = {**settings, "augmented": config.ablation_worlds}
                yield Trial(mixer, seed, False, _ABLATIONS, ("V1",), **worlds)
            if mixer in config.factorial_mixer:
                yield Trial(mixer, seed, False, ("factorial",), ("V1",), **settings)


def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """The rows of :class:`Study`."""
    return Study(trial, folder).run()
