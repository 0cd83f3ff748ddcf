"""Configuration, trials, and what one trial computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashlla.models import LanguageModel

from ..common.experiment import ExperimentConfig
from . import theory
from .arms import Study
from .data import Chains
from .model import model_config

EASY = ("base", "sft", "rs_1", "psi", "theta")  # arms of the ablation
CORE = (*EASY, "rs_3", "psi_2", "theta_2")
EXTRA = ("psi_verifier", "psi_ppo", "psi_grpo", "dpo", "brite_dpo")


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """BRiTE on chains of lookups.

    Attributes:
        mixer: token mixers to compare on the hard task.
        extra_mixer: those that have the arms with a verifier, with PPO, GRPO and DPO as well.
        easy_mixer: those that have the ablation, on which rejection sampling covers everything.
        values, links, right: of the hard task: numbers, lookups in a chain, and how often the corpus is right
            about a fact that it does not know.
        easy_values, easy_links, easy_right: of the ablation.
        dim, depth, heads: of the model.
        base_steps, batch, base_rate: of training on the corpus, with Muon; batch is in texts.
        prompts: problems without a rationale, for all that follows.
        candidates: texts a problem that rejection sampling draws.
        tuning_steps, tuning_rate: of every supervised training on them, with Muon.
        rl_steps: draws of a psi-step; the second iteration has a third as many.
        rl_prompts, rl_samples: problems of a draw and texts for each.
        rl_rate: of AdamW.
        dpo_candidates, dpo_steps, dpo_rate: of one of three iterations of DPO, with AdamW; for BRiTE-DPO each
            has a psi-step of a third of rl_steps in front.
        probes, probe_samples: problems that the evidence is enumerated for, and texts for its lower bound.
        beam: beginnings of rationales that the enumeration keeps.
        test: new problems of the test.
        instances: of the theory.
    """

    mixer: tuple[str, ...] = ("softmax", "lla", "parallax", "mesanet", "gated_deltanet")
    extra_mixer: tuple[str, ...] = ("softmax",)
    easy_mixer: tuple[str, ...] = ("softmax",)
    values: int = 9
    links: int = 4
    right: float = 0.2
    easy_values: int = 13
    easy_links: int = 2
    easy_right: float = 0.4
    dim: int = 48
    depth: int = 2
    heads: int = 2
    base_steps: int = 250
    batch: int = 128
    base_rate: float = 1e-2
    prompts: int = 512
    candidates: int = 30
    tuning_steps: int = 60
    tuning_rate: float = 5e-3
    rl_steps: int = 90
    rl_prompts: int = 32
    rl_samples: int = 8
    rl_rate: float = 1e-3
    dpo_candidates: int = 8
    dpo_steps: int = 40
    dpo_rate: float = 3e-4
    probes: int = 8
    probe_samples: int = 64
    beam: int = 1024
    test: int = 512
    instances: int = 8
    seeds: int = 2

    def __post_init__(self):
        super().__post_init__()
        self._check_among_mixers("extra_mixer", "easy_mixer")
        for name in ("right", "easy_right"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1")
        self._check_at_least(_LEAST)
        self._check_positive("base_rate", "tuning_rate", "rl_rate", "dpo_rate")
        if max(self.rl_prompts, self.probes) > self.prompts:
            raise ValueError(
                f"rl_prompts={self.rl_prompts} and probes={self.probes} must be at most "
                f"prompts={self.prompts}"
            )
        for mixer in self.mixer:  # sizes that do not fit are told apart here, not in every trial
            config = model_config(mixer, self.values, self.dim, self.depth, self.heads)
            LanguageModel(config, device="meta")


_LEAST = {
    **dict.fromkeys(("base_steps", "batch", "tuning_steps", "dpo_steps", "candidates", "prompts"), 1),
    **dict.fromkeys(("rl_prompts", "probes", "beam", "test", "instances"), 1),
    **dict.fromkeys(("values", "easy_values", "links", "easy_links", "rl_samples"), 2),
    "rl_steps": 3,
    "probe_samples": 2,
    "dpo_candidates": 2,
}

PRESETS = {
    "smoke": Config(
        mixer=("softmax", "lla"),
        values=7,
        links=2,
        easy_values=7,
        dim=32,
        depth=1,
        base_steps=30,
        batch=64,
        prompts=64,
        candidates=8,
        tuning_steps=4,
        rl_steps=3,
        rl_prompts=8,
        rl_samples=4,
        dpo_candidates=4,
        dpo_steps=2,
        probes=4,
        probe_samples=8,
        test=64,
        instances=2,
        seeds=1,
    ),
    "small": Config(),
    "gpu": Config(
        values=23,
        links=6,
        easy_values=31,
        dim=256,
        depth=4,
        heads=4,
        base_steps=400,
        batch=1024,
        base_rate=5e-3,
        prompts=4096,
        tuning_rate=2e-3,
        rl_steps=80,
        rl_prompts=256,
        rl_samples=16,
        rl_rate=3e-4,
        probes=16,
        probe_samples=512,
        beam=4096,
        test=2048,
        instances=24,
        device="cuda",
    ),
}


@dataclass(frozen=True)
class Trial:
    """One mixer on one task with all its arms; or the theory, which has no mixer and trains nothing."""

    task: str
    mixer: str
    seed: int
    arms: tuple[str, ...]
    values: int
    links: int
    right: float
    dim: int
    depth: int
    heads: int
    base_steps: int
    batch: int
    base_rate: float
    prompts: int
    candidates: int
    tuning_steps: int
    tuning_rate: float
    rl_steps: int
    rl_prompts: int
    rl_samples: int
    rl_rate: float
    dpo_candidates: int
    dpo_steps: int
    dpo_rate: float
    probes: int
    probe_samples: int
    beam: int
    test: int
    instances: int
    device: str


_TASK = ("values", "links", "right")
_SIZES = tuple(Trial.__dataclass_fields__)[7:-2]


def trials(config: Config) -> Iterator[Trial]:
    """Every mixer on the hard task, some on the easy one, and the theory; mixers of a seed share tasks."""
    sizes = {name: getattr(config, name) for name in _SIZES}
    hard = {name: getattr(config, name) for name in _TASK}
    easy = {name: getattr(config, f"easy_{name}") for name in _TASK}
    common = {**sizes, "instances": 0, "device": config.device}
    for seed in range(config.seeds):
        for mixer in config.mixer:
            arms = CORE + (EXTRA if mixer in config.extra_mixer else ())
            yield Trial("hard", mixer, seed, arms, **hard, **common)
        for mixer in config.easy_mixer:
            yield Trial("easy", mixer, seed, EASY, **easy, **common)
    nothing = {name: type(value)() for name, value in {**hard, **sizes}.items()}
    yield Trial("theory", "", 0, (), **nothing, instances=config.instances, device="cpu")


def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """Rows of several kinds: ``arm`` with one for each, ``psi`` and ``tuning`` on the way, ``coverage`` by
    the number of unknown facts, and ``theory``.
    """
    if trial.task == "theory":
        return theory.rows(trial.instances)
    chains = Chains.draw(trial.values, trial.links, trial.right, trial.seed)
    study = Study(trial, chains, folder)
    for arm in trial.arms:
        study.add(arm)
    return study.rows
