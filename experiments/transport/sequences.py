"""Feedback that is a form: a sequence of fields, some of which agents inflate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .interaction import FEATURES, JITTER, NORM, PULL, SOURCE, TARGET, best_action, features

CONTEXTS, ACTIONS, TRACKS, LEVELS = 6, 3, 2, 5  # a field has a level of 0 to 4
CELLS = CONTEXTS * ACTIONS
SPREAD = 0.6  # standard deviation of a field in front of rounding


class Forms(NamedTuple):
    """What the principal has seen: cells (s, a) as ``s ACTIONS + a``, forms, rewards; a row an episode."""

    cells: Tensor
    forms: Tensor
    rewards: Tensor

    def take(self, rows: Tensor) -> Forms:
        """Some of the episodes."""
        return Forms(*(values[rows] for values in self))

    def join(self, more: Forms) -> Forms:
        """These episodes and others."""
        return Forms(*map(torch.cat, zip(self, more, strict=True)))


@dataclass(frozen=True)
class FormInteraction:
    """One step whose feedback is a form ``[1 + fields]``: a track, and fields that take turns between tracks.

    The latent level of a field is ``base[s, a] + 0.6 N``; an agent adds ``b = gain[s, a] t`` to the fields of
    its track, which are those that count. With q the mean level of these less 2, the reward is
    ``theta . (1, q, q^2) + xi``, where xi is that of the linear interaction.

    Attributes:
        base, gain: ``[cells]``.
        theta: ``[3]``.
        fields: of a form, a multiple of the tracks.
    """

    base: np.ndarray
    gain: np.ndarray
    theta: np.ndarray
    fields: int
    source: float = SOURCE
    target: float = TARGET

    @classmethod
    def draw(cls, fields: int, rng: np.random.Generator) -> FormInteraction:
        theta = rng.standard_normal(FEATURES)
        base, gain = rng.uniform(0.3, 2.7, CELLS), rng.uniform(0.4, 1.6, CELLS)
        return cls(base, gain, theta * NORM / np.linalg.norm(theta), fields)

    @property
    def vocabulary(self) -> int:
        """Tracks, and a token for every level of every field."""
        return TRACKS + self.fields * LEVELS

    def fill(
        self, cells: np.ndarray, population: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Forms of agents from a population, ``[episodes, 1 + fields]``, and their types."""
        types = (rng.random(len(cells)) < population).astype(float)
        track = rng.integers(TRACKS, size=len(cells))
        latent = self.base[cells, None] + SPREAD * rng.standard_normal((len(cells), self.fields))
        counts = np.arange(self.fields) % TRACKS == track[:, None]
        latent += best_action(self.gain[cells], types)[:, None] * counts
        levels = np.clip(np.rint(latent), 0, LEVELS - 1).astype(np.int64)
        return np.hstack([track[:, None], TRACKS + LEVELS * np.arange(self.fields) + levels]), types

    def reward(self, forms: np.ndarray) -> np.ndarray:
        """``R*`` of forms, ``[...]``."""
        levels = (forms[..., 1:] - TRACKS) % LEVELS
        counts = np.arange(self.fields) % TRACKS == forms[..., :1]
        quality = (levels * counts).sum(-1) / (self.fields // TRACKS) - LEVELS // 2
        return features(quality) @ self.theta

    def play(self, cells: np.ndarray, rng: np.random.Generator) -> Forms:
        """Episodes of given (s, a) in the source population."""
        forms, types = self.fill(cells, self.source, rng)
        noise = PULL * (types - self.source) + JITTER * rng.standard_normal(len(cells))
        rewards = torch.tensor(self.reward(forms) + noise, dtype=torch.float32)
        return Forms(torch.from_numpy(cells), torch.from_numpy(forms), rewards)
