"""OPME with a reward transformer, and the same transformer trained by regression; round by round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..common.costs import costs
from ..common.training import History, train
from .moments import LinearRisk
from .networks import (
    FEATURES,
    INSTRUMENTS,
    RewardTransformer,
    discriminator_features,
    encoder_config,
    minimax_loss,
    regression_loss,
)
from .sequences import ACTIONS, CELLS, CONTEXTS, FormInteraction, Forms

ENSEMBLE = 5  # heads, each from a bootstrap sample; the one with the largest optimal value is played
GROWTH = 0.125  # new heads when there are so many more episodes
UNIFORM = 0.5  # share of uniform actions: the contexts alone do not identify the features of a network
PROBES = 256  # forms of each (s, a) from the target population: what values are means over
SOFTER = 0.2  # the rate of the minimax loss over that of regression
ARMS = ("opme", "regression")


class Recipe(NamedTuple):
    """Sizes and training of a reward transformer; ``steps`` are those of a round."""

    mixer: str
    dim: int
    depth: int
    heads: int
    steps: int
    batch: int
    learning_rate: float
    device: str


class Learner:
    """One arm: episodes, the network, and the heads on its features.

    Args:
        arm: ``opme`` has heads by two-stage least squares and trains by the minimax loss, but for the first
            half of the first round: regression finds features sooner. ``regression`` has heads by least
            squares and trains by regression alone.
    """

    def __init__(self, interaction: FormInteraction, arm: str, recipe: Recipe, seed: int):
        self.interaction, self.minimax, self.recipe, self.seed = interaction, arm == "opme", recipe, seed
        self.rng = np.random.default_rng((seed, 1))
        torch.manual_seed(seed)
        sizes = recipe.dim, recipe.depth, recipe.heads
        config = encoder_config(recipe.mixer, interaction.vocabulary, FEATURES - 1, *sizes)
        self.model = RewardTransformer(config).to(recipe.device)
        config = encoder_config(recipe.mixer, CONTEXTS + ACTIONS, INSTRUMENTS, *sizes)
        self.instruments = discriminator_features(config)
        probes = np.repeat(np.arange(CELLS), PROBES)
        self.probes, _ = interaction.fill(probes, interaction.target, np.random.default_rng((seed, 2)))
        self.paid = interaction.reward(self.probes).reshape(CELLS, PROBES).mean(1)
        self.histories: list[History] = []

    def collect(self, until: int) -> None:
        """Play up to so many episodes.

        Those of the first round are uniform. Then the policies are those of the most optimistic head, with
        the features as they are.
        """
        if not self.histories:
            self.seen = self._collect(until)
            return
        means, features = self._target_features(), self._features(self.seen.forms)
        while (done := len(features)) < until:
            heads = [self._head(features, self.rng.poisson(1.0, done)) for _ in range(ENSEMBLE)]
            thought = max((means @ head for head in heads), key=_best_value)
            new = self._collect(min(max(1, int(GROWTH * done)), until - done), _greedy(thought))
            features = np.concatenate([features, self._features(new.forms)])
            self.seen = self.seen.join(new)

    def learn(self, folder: Path) -> None:
        """Train the network further, on all episodes so far."""
        steps, rate = self.recipe.steps, self.recipe.learning_rate
        if not self.minimax:
            self._train(regression_loss, folder, steps, rate)
            return
        first = 0 if self.histories else steps // 2
        if first:
            self._train(regression_loss, folder / "regression", first, rate)
        self._train(minimax_loss, folder / "minimax", steps - first, SOFTER * rate)

    def measures(self) -> Iterator[dict[str, Any]]:
        """For every head: the error of values in the target population, and what the greedy policy lacks."""
        means, features = self._target_features(), self._features(self.seen.forms)
        for head in ("2sls", "ols"):
            thought = means @ self._head(features, np.ones(len(features)), head)
            error = float(np.sqrt(np.square(thought - self.paid).mean()))
            paid = self.paid.reshape(CONTEXTS, ACTIONS)[np.arange(CONTEXTS), _greedy(thought)].mean()
            yield {"head": head, "value_error": error, "greedy": _best_value(self.paid) - float(paid)}

    # ---- parts ----------------------------------------------------------------------------------------

    def _collect(self, episodes: int, policy: np.ndarray | None = None) -> Forms:
        """Episodes of a policy, but for a share with uniform actions; without one all are uniform."""
        contexts = self.rng.integers(CONTEXTS, size=episodes)
        actions = self.rng.integers(ACTIONS, size=episodes)
        if policy is not None:
            actions = np.where(self.rng.random(episodes) < UNIFORM, actions, policy[contexts])
        return self.interaction.play(contexts * ACTIONS + actions, self.rng)

    def _train(self, loss, folder: Path, steps: int, rate: float) -> None:
        device, batch = self.recipe.device, self.recipe.batch
        seen, instruments = Forms(*(t.to(device) for t in self.seen)), self.instruments.to(device)

        def draw(generator: torch.Generator) -> Forms:
            return seen.take(torch.randint(len(seen.cells), (batch,), generator=generator).to(device))

        history = train(
            self.model,
            lambda model, batch: loss(model, batch, instruments),
            draw,
            folder,
            steps=steps,
            learning_rate=rate,
            seed=self.seed,
            optimizer="muon",
            weight_decay=0.0,
        )
        self.histories.append(history)

    @torch.no_grad()
    def _features(self, forms: Tensor) -> np.ndarray:
        self.model.eval()
        parts = [self.model.features(part.to(self.recipe.device)).cpu() for part in forms.split(2048)]
        return torch.cat(parts).double().numpy()

    def _target_features(self) -> np.ndarray:
        """Mean features of each (s, a) in the target population, ``[CELLS, FEATURES]``."""
        return self._features(torch.from_numpy(self.probes)).reshape(CELLS, PROBES, -1).mean(1)

    def _head(self, features: np.ndarray, weights: np.ndarray, head: str = "") -> np.ndarray:
        """The last layer anew, from weighted episodes; by default the head of the arm."""
        head = head or ("2sls" if self.minimax else "ols")
        instruments = features if head == "ols" else self.instruments[self.seen.cells].double().numpy()
        scale = np.sqrt(weights)[:, None]
        rewards = scale[:, 0] * self.seen.rewards.double().numpy()
        return LinearRisk.of(scale * features, scale * instruments, rewards).estimate()


def play(
    arm: str, recipe: Recipe, fields: int, checkpoints: Sequence[int], seed: int, folder: Path
) -> Iterator[dict[str, Any]]:
    """Interact, learn and tell where things stand, a round for each checkpoint, a row for each head."""
    interaction = FormInteraction.draw(fields, np.random.default_rng((seed, 0)))
    learner = Learner(interaction, arm, recipe, seed)
    for checkpoint in checkpoints:
        learner.collect(checkpoint)
        learner.learn(folder / f"{arm}_{checkpoint}")
        about = {"episodes": checkpoint, **costs(learner.model, *learner.histories)}
        for measured in learner.measures():
            yield {**about, **measured}


def _best_value(rewards: np.ndarray) -> float:
    """The value of the best policy, from what each (s, a) pays, ``[CELLS]``."""
    return float(rewards.reshape(CONTEXTS, ACTIONS).max(1).mean())


def _greedy(rewards: np.ndarray) -> np.ndarray:
    """The best action in each context, ``[CONTEXTS]``."""
    return rewards.reshape(CONTEXTS, ACTIONS).argmax(1)
