"""Pretraining, and the first two stages: heads on a frozen backbone, then fine-tuning on the simulation.

The weights of the terms are ours; the paper's are not known to us.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.training import History, train
from .data import rows
from .evaluation import warp_error
from .model import FLOW, PREDICTION, RISE_SCALE, Prediction, WorldModel, adapted, behind, merged, scaled
from .render import Clip

DEPTH_WEIGHT, MOTION_WEIGHT, WARP_WEIGHT = 1.0, 0.2, 0.5
EDGES = 0.5  # weight of differences between neighbouring pixels in the loss of depth
LOWEST = 0.1  # level; below it the error of the velocity is that of the clean frames times the same factor
CHARBONNIER = 1e-2  # below it errors of motion count by their square


class Batch(NamedTuple):
    """Numbers of clips ``[batch]``, noise for their frames, and levels ``[batch]``."""

    clips: Tensor
    noise: Tensor
    level: Tensor


def draw_batch(data: Clip, size: int, generator: torch.Generator) -> Batch:
    """A batch with more of high levels, at which motion is decided: their squares are uniform."""
    clips = torch.randint(len(data.rgb), (size,), generator=generator)
    noise = torch.randn(size, *data.rgb.shape[1:], generator=generator)
    level = torch.rand(size, generator=generator).sqrt()
    return Batch(*(t.to(data.rgb.device) for t in (clips, noise, level)))


def predict(model: WorldModel, truth: Clip, batch: Batch, known: int) -> Prediction:
    """What a model says of clips whose frames behind the known ones are noisy."""
    level = behind(batch.level, known, truth.rgb.shape[1])
    return model(FLOW.noised(scaled(truth.rgb), batch.noise, level), level)


# ---- terms ------------------------------------------------------------------------------------------


def generation_loss(clean: Tensor, truth: Clip, level: Tensor, known: int) -> Tensor:
    """The squared error of the velocity behind the known frames."""
    error = (clean - scaled(truth.rgb))[:, known:].square().flatten(1).mean(1)
    return (error * FLOW.loss_weight(level.clamp(min=LOWEST), PREDICTION, like="velocity")).mean()


def depth_loss(depth: Tensor, truth: Clip) -> Tensor:
    """Absolute errors, and those of differences between neighbours."""
    inside = truth.foreground
    error = balanced((depth - truth.depth).abs(), inside)
    across = ((depth - truth.depth).diff(dim=-1).abs(), inside[..., 1:] | inside[..., :-1])
    down = ((depth - truth.depth).diff(dim=-2).abs(), inside[..., 1:, :] | inside[..., :-1, :])
    return error + EDGES * (balanced(*across) + balanced(*down)) / 2


def motion_loss(flow: Tensor, rise: Tensor, truth: Clip) -> Tensor:
    """Charbonnier's loss of flow in pixels and of changes of depth in RISE_SCALE."""
    errors = torch.cat([flow - truth.flow, ((rise - truth.rise) / RISE_SCALE)[..., None]], -1)
    size = (errors.square() + CHARBONNIER**2).sqrt().sum(-1)
    return balanced(size, truth.foreground[:, :-1])


def warp_loss(depth: Tensor, flow: Tensor, rise: Tensor, truth: Clip) -> Tensor:
    """The Depth-Warp L1 where the simulator says that a ball stays visible: a mask that was predicted could
    be made empty.
    """
    return warp_error(depth, flow, rise)[truth.steady].sum() / truth.steady.sum().clamp(min=1)


def balanced(values: Tensor, inside: Tensor) -> Tensor:
    """The mean of the mean inside and that outside: balls are 6 % of the pixels."""
    parts = [values[mask].sum() / mask.sum().clamp(min=1) for mask in (inside, ~inside)]
    return sum(parts) / 2


def geometry_loss(said: Prediction, truth: Clip) -> Tensor:
    motion = motion_loss(said.flow, said.rise, truth)
    return DEPTH_WEIGHT * depth_loss(said.depth, truth) + MOTION_WEIGHT * motion


def tuning_loss(model: WorldModel, data: Clip, batch: Batch, known: int, warp: bool) -> Tensor:
    """The loss of stage 2: generation, depth, motion, and warp consistency if it is wanted."""
    truth = rows(data, batch.clips)
    said = predict(model, truth, batch, known)
    loss = generation_loss(said.clean, truth, batch.level, known) + geometry_loss(said, truth)
    if not warp:
        return loss
    return loss + WARP_WEIGHT * warp_loss(said.depth, said.flow, said.rise, truth)


# ---- stages -----------------------------------------------------------------------------------------


class Recipe(NamedTuple):
    """Of a training: steps, clips a step, peak learning rate, seed, and where its checkpoints are."""

    steps: int
    batch: int
    learning_rate: float
    seed: int
    folder: Path

    def train(
        self,
        model: WorldModel,
        loss: Callable[[WorldModel, Batch], Tensor],
        data: Clip,
        optimizer: str = "adamw",
    ) -> History:
        """Train what wants a gradient, in place."""
        return train(
            model,
            loss,
            lambda generator: draw_batch(data, self.batch, generator),
            self.folder,
            steps=self.steps,
            learning_rate=self.learning_rate,
            seed=self.seed,
            optimizer=optimizer,
            weight_decay=0.0,
        )


def pretrain(model: WorldModel, data: Clip, known: int, recipe: Recipe) -> tuple[WorldModel, History]:
    """The backbone, in place, on clips whose motion is wrong; the heads stay as they are."""

    def loss(model: WorldModel, batch: Batch) -> Tensor:
        truth = rows(data, batch.clips)
        return generation_loss(predict(model, truth, batch, known).clean, truth, batch.level, known)

    for head in model.heads:
        head.requires_grad_(False)
    history = recipe.train(model, loss, data, optimizer="muon")
    return model.requires_grad_(False).eval(), history


def train_heads(model: WorldModel, labels: Clip, known: int, recipe: Recipe) -> tuple[WorldModel, History]:
    """Stage 1: a copy whose heads learn from labels; its backbone is frozen."""
    copy = deepcopy(model).requires_grad_(False)
    for head in copy.heads:
        head.requires_grad_(True)

    def loss(model: WorldModel, batch: Batch) -> Tensor:
        truth = rows(labels, batch.clips)
        return geometry_loss(predict(model, truth, batch, known), truth)

    history = recipe.train(copy, loss, labels)
    return copy.requires_grad_(False).eval(), history


def finetune(
    model: WorldModel, data: Clip, known: int, recipe: Recipe, *, rank: int, warp: bool
) -> tuple[WorldModel, History]:
    """Stage 2: a copy that has learned from the simulation, by adapters that are merged in the end."""
    tuned = adapted(model, rank)
    history = recipe.train(tuned, lambda model, batch: tuning_loss(model, data, batch, known, warp), data)
    return merged(tuned), history
