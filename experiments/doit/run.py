"""Configuration, trials, and what one trial computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashlla.models import Encoder
from flashlla.models.diffusion import TrajectoryTransformer

from ..common.experiment import ExperimentConfig
from . import law, masked, offline
from .actor import actor_config
from .episodes import QUALITIES
from .masked import encoder_config

LOCOMOTION = ("HalfCheetah-v5", "Hopper-v5")


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """DOIT in three tiers: a law in closed form, offline reinforcement learning, masked strings.

    Attributes:
        mixer: token mixers to compare on masked strings.
        offline_mixer: those that act; the first has all data sets, the others the last one.
        quality: data sets of the point mass: medium, medium-replay, medium-expert.
        locomotion: environments of MuJoCo, of the first of offline_mixer and the last data set; they need the
            extra ``locomotion``.
        locomotion_seeds: of these.
        tau: temperature of the tilt ``exp(R / tau)`` of the laws and of the strings.
        samples, steps: of the samplers of tier 1.
        coarse_samples, coarse_steps: the same where full roll-outs are among them.
        gradient_steps: of the roll-outs whose gradients are compared with the exact one.
        episodes: of every controller, in a data set.
        horizon: of the environments of MuJoCo.
        ars_rounds: updates of their controllers.
        chunk: actions that are written at once.
        dim, depth, heads: of the transformer that acts.
        sampling_steps: of it.
        actor_steps, batch, actor_rate: of its training, with Muon.
        critic_width, critic_steps, pool: of the critic, which learns from so many chunks.
        particles: that the best is taken of, in all arms alike.
        candidates, children: of a particle, in DOIT, and where each costs a call of the network.
        tuning_episodes, test_episodes: that a setting is chosen on, and reported on.
        length: of a string.
        strings: samples of it.
        encoder_dim, encoder_depth, encoder_steps, encoder_rate: of the model of strings, with Muon.
    """

    mixer: tuple[str, ...] = ("lla", "softmax", "parallax", "mesanet", "gated_deltanet")
    offline_mixer: tuple[str, ...] = ("lla", "softmax")
    quality: tuple[str, ...] = ("medium-replay", "medium-expert")
    locomotion: tuple[str, ...] = ("HalfCheetah-v5",)
    locomotion_seeds: int = 1
    seeds: int = 5
    tau: float = 0.25
    samples: int = 4000
    steps: int = 50
    coarse_samples: int = 700
    coarse_steps: int = 25
    gradient_steps: int = 50
    episodes: int = 100
    horizon: int = 80
    ars_rounds: int = 60
    chunk: int = 8
    dim: int = 32
    depth: int = 2
    heads: int = 2
    sampling_steps: int = 10
    actor_steps: int = 300
    batch: int = 128
    actor_rate: float = 1e-2
    critic_width: int = 64
    critic_steps: int = 600
    pool: int = 512
    particles: int = 4
    candidates: int = 16
    children: int = 4
    tuning_episodes: int = 8
    test_episodes: int = 24
    length: int = 8
    strings: int = 5000
    encoder_dim: int = 32
    encoder_depth: int = 1
    encoder_steps: int = 100
    encoder_rate: float = 1e-2

    def __post_init__(self):
        super().__post_init__()
        self._check_among_mixers("offline_mixer")
        self._check_names("quality", QUALITIES)
        self._check_names("locomotion", LOCOMOTION)
        self._check_at_least(_LEAST)
        self._check_positive("tau", "actor_rate", "encoder_rate")
        if self.candidates % 2 or self.children % 2:
            raise ValueError(
                f"candidates={self.candidates} and children={self.children} must be even: antithetic ones "
                "come in pairs"
            )
        if self.horizon % self.chunk or offline.PointMass.horizon % self.chunk:
            raise ValueError(
                f"chunk={self.chunk} must divide horizon={self.horizon} and the point mass's "
                f"{offline.PointMass.horizon}"
            )
        for mixer in self.mixer:  # sizes that do not fit are told apart here, not in every trial
            strings = encoder_config(mixer, self.encoder_dim, self.encoder_depth, self.heads)
            Encoder(strings, device="meta")
            acting = actor_config(mixer, 1, 1, self.dim, self.depth, self.heads)
            TrajectoryTransformer(acting, device="meta")


_LEAST = {
    **dict.fromkeys(("actor_steps", "critic_steps", "encoder_steps", "batch", "pool", "ars_rounds"), 1),
    **dict.fromkeys(("chunk", "tuning_episodes", "test_episodes", "strings", "locomotion_seeds"), 1),
    **dict.fromkeys(("samples", "coarse_samples", "sampling_steps", "gradient_steps", "particles"), 2),
    **dict.fromkeys(("steps", "coarse_steps", "episodes", "candidates", "children"), 2),
    "length": 3,
}

PRESETS = {
    "smoke": Config(
        mixer=("lla", "softmax"),
        offline_mixer=("lla",),
        quality=("medium-expert",),
        locomotion=(),
        seeds=1,
        samples=200,
        steps=6,
        coarse_samples=50,
        coarse_steps=4,
        gradient_steps=3,
        episodes=8,
        horizon=32,
        dim=16,
        depth=1,
        chunk=32,
        sampling_steps=3,
        actor_steps=4,
        batch=32,
        critic_steps=4,
        pool=32,
        particles=2,
        candidates=4,
        children=2,
        tuning_episodes=1,
        test_episodes=2,
        length=5,
        strings=200,
        encoder_dim=16,
        encoder_steps=10,
    ),
    "small": Config(),
    "gpu": Config(
        offline_mixer=("lla", "softmax", "parallax", "mesanet", "gated_deltanet"),
        quality=("medium", "medium-replay", "medium-expert"),
        locomotion=LOCOMOTION,
        locomotion_seeds=5,
        samples=20_000,
        coarse_samples=4000,
        coarse_steps=50,
        gradient_steps=200,
        episodes=1000,
        horizon=1000,
        ars_rounds=500,
        dim=128,
        depth=4,
        heads=4,
        sampling_steps=15,
        actor_steps=5000,
        batch=1024,
        actor_rate=5e-3,
        critic_width=256,
        critic_steps=10_000,
        pool=20_000,
        candidates=32,
        tuning_episodes=32,
        test_episodes=128,
        strings=20_000,
        encoder_dim=64,
        encoder_depth=2,
        encoder_steps=1000,
        encoder_rate=5e-3,
        device="cuda",
    ),
}


@dataclass(frozen=True)
class Trial:
    """A seed of a tier; what the tier does not have is zero."""

    tier: str
    mixer: str
    seed: int
    environment: str = ""
    quality: str = ""
    proto: bool = False
    tau: float = 0.0
    samples: int = 0
    steps: int = 0
    coarse_samples: int = 0
    coarse_steps: int = 0
    gradient_steps: int = 0
    episodes: int = 0
    horizon: int = 0
    ars_rounds: int = 0
    chunk: int = 0
    dim: int = 0
    depth: int = 0
    heads: int = 0
    sampling_steps: int = 0
    actor_steps: int = 0
    batch: int = 0
    actor_rate: float = 0.0
    critic_width: int = 0
    critic_steps: int = 0
    pool: int = 0
    particles: int = 0
    candidates: int = 0
    children: int = 0
    tuning_episodes: int = 0
    test_episodes: int = 0
    length: int = 0
    strings: int = 0
    encoder_steps: int = 0
    encoder_rate: float = 0.0
    device: str = "cpu"


_LAW = ("tau", "samples", "steps", "coarse_samples", "coarse_steps", "gradient_steps")
_LOCOMOTION = ("horizon", "ars_rounds")
_OFFLINE = ("episodes", "chunk", "dim", "depth", "heads", "sampling_steps", "actor_steps", "batch")
_OFFLINE += ("actor_rate", "critic_width", "critic_steps", "pool", "particles", "candidates", "children")
_OFFLINE += ("tuning_episodes", "test_episodes", "device")
_MASKED = ("tau", "heads", "batch", "length", "strings", "encoder_steps", "encoder_rate", "device")


def trials(config: Config) -> Iterator[Trial]:
    """The laws; every data set for the first mixer that acts, the last one for the others, and where one of
    them tries full roll-outs; locomotion; the strings.
    """
    acting, strings = _fields(config, _OFFLINE), _fields(config, _MASKED)
    strings.update(dim=config.encoder_dim, depth=config.encoder_depth)
    for seed in range(config.seeds):
        yield Trial("law", "", seed, **_fields(config, _LAW))
        for i, mixer in enumerate(config.offline_mixer):
            for quality in config.quality[-1:] if i else config.quality:
                proto = (seed, i, quality) == (0, 0, config.quality[-1])
                yield Trial("offline", mixer, seed, "pointmass", quality, proto, **acting)
        for mixer in config.mixer:
            yield Trial("masked", mixer, seed, **strings)
    for environment in config.locomotion:
        for seed in range(config.locomotion_seeds):
            sizes = {**acting, **_fields(config, _LOCOMOTION)}
            yield Trial("offline", config.offline_mixer[0], seed, environment, config.quality[-1], **sizes)


def _fields(config: Config, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """Rows of the kinds ``sampler``, ``target`` and ``gradient``, or ``offline``, or ``masked``."""
    if trial.tier == "law":
        return list(law.rows(trial))
    return list((offline if trial.tier == "offline" else masked).rows(trial, folder))
