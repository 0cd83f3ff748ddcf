"""Stage 3: denoising as a policy, paid for the 4-D Chamfer distance of what it makes (PPO as in Flow-GRPO).

The reward lifts pixels to space with the depth that a frozen model of stage 2 says, as the paper does with
its own depth. The evaluation lifts balls by the areas of their discs, and knows no learned depth.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flashlla.models import training
from flashlla.models.diffusion import FlowSDE, Trajectory, levels
from flashlla.models.rl import clipped_surrogate, group_normalized

from ..common.training import History, train_policy
from .data import rows
from .lifting import chamfer_4d, depth_cloud
from .model import FLOW, PREDICTION, WorldModel, adapted, colors, denoiser, merged, scaled
from .render import Clip
from .stages import Batch, draw_batch, tuning_loss

UPDATES = 2  # of the policy for every draw
NOISE = 0.7  # of the stochastic equation
CLIP = 1e-2  # of the ratio; log-probabilities are means over numbers, so that ratios stay near 1
POINTS = 24  # pixels of a frame that the reward lifts
PASSES = 3  # what a step with a gradient costs, in forward passes of as many clips


class PolicyRecipe(NamedTuple):
    """How stage 3 goes.

    Attributes:
        draws: of clips, each with UPDATES updates behind it.
        prompts: beginnings of a draw.
        samples: clips for each beginning.
        steps: of denoising.
        trained: of these, with a gradient, dealt out to the updates.
        batch: clips of the fine-tuning loss beside each update.
        learning_rate: of AdamW.
        divergence: weight of the KL to the model that it starts from.
        tuning: weight of the loss of stage 2.
        rank: of the adapters.
        shuffled: rewards of a beginning are dealt out anew, so that they say nothing.
    """

    draws: int
    prompts: int
    samples: int
    steps: int
    trained: int
    batch: int
    learning_rate: float
    divergence: float
    tuning: float
    rank: int
    shuffled: bool

    @property
    def passes(self) -> int:
        """Forward passes of one clip through the network, a backward pass counted as two."""
        clips = self.prompts * self.samples
        sampling, training = self.steps, (1 + PASSES) * self.trained  # 1 is for the reference
        return self.draws * (clips * (sampling + training) + UPDATES * PASSES * self.batch)


class Experience(NamedTuple):
    """What a draw gives to an update.

    Attributes:
        path: of all clips, ``prompts * samples`` rows.
        known: scaled known frames, a row a clip.
        steps: numbers of the steps to train.
        reference: means of these under the reference, ``[clips, trained, ...]``.
        advantages: ``[clips]``.
        tuning: clips of the fine-tuning loss.
    """

    path: Trajectory
    known: Tensor
    steps: list[int]
    reference: Tensor
    advantages: Tensor
    tuning: Batch


def reinforce(
    model: WorldModel,
    data: Clip,
    known: int,
    recipe: PolicyRecipe,
    *,
    seed: int,
    folder: Path,
    measure: Callable[[WorldModel], dict[str, float]],
    parts: int,
) -> tuple[WorldModel, History]:
    """A copy that has learned from rewards, by adapters that are merged in the end.

    Args:
        model: of stage 2, frozen: where it starts, what it is held to, and whose depth the reward reads.
        data: true clips, whose beginnings are the prompts.
        folder: one that was interrupted goes on from the checkpoint there.
        measure: numbers that are asked for behind each of ``parts`` of the draws.
    """
    reference = deepcopy(model).requires_grad_(False).eval()
    policy = adapted(model, recipe.rank)

    def draw(step: int) -> list[Experience]:
        return _draw(policy, reference, data, known, recipe, seed, step)

    def loss(policy: WorldModel, experience: Experience) -> Tensor:
        tuning = tuning_loss(policy, data, experience.tuning, known, warp=True)
        return _policy_loss(policy, experience, recipe.divergence) + recipe.tuning * tuning

    history = train_policy(
        policy,
        loss,
        draw,
        folder,
        draws=recipe.draws,
        updates=UPDATES,
        learning_rate=recipe.learning_rate,
        seed=seed,
        weight_decay=0.0,
        floor=1.0,
        evaluate=lambda policy, step: measure(policy),
        evaluate_every=max(1, recipe.draws // parts),
    )
    return merged(policy), history


@torch.no_grad()
def rewards(reference: WorldModel, generated: Tensor, truth: Clip, known: int) -> Tensor:
    """``-4DCD`` of generated frames to the simulation, ``[clips]``.

    Args:
        generated: ``[clips, frames, height, width, 3]`` in [0, 1], the known frames in front.
    """
    depth = reference.geometry(generated)[0]
    mine = depth_cloud(generated[:, known:], depth[:, known:], POINTS)
    real = depth_cloud(truth.rgb[:, known:], truth.depth[:, known:], POINTS)
    return -chamfer_4d(mine, real)


def _draw(
    policy: WorldModel,
    reference: WorldModel,
    data: Clip,
    known: int,
    recipe: PolicyRecipe,
    seed: int,
    step: int,
) -> list[Experience]:
    """One for each update: the same clips, other steps of them, and other clips to fine-tune on."""
    generator = training.batch_generator(seed, step, 0)
    device = data.rgb.device
    prompts = torch.randperm(len(data.rgb), generator=generator)[: recipe.prompts]
    truth = rows(data, prompts.repeat_interleave(recipe.samples).to(device))
    beginnings = scaled(truth.rgb[:, :known])
    noise = torch.randn(truth.rgb[:, known:].shape, generator=generator).to(device)
    drawing = torch.Generator(device).manual_seed(training.batch_seed(seed, step, 1))
    sampler = FlowSDE(FLOW, PREDICTION, noise=NOISE)
    times = levels(recipe.steps)
    path = sampler.sample(denoiser(policy, beginnings), noise, times, generator=drawing)
    paid = rewards(reference, torch.cat([truth.rgb[:, :known], colors(path.sample)], 1), truth, known)
    grouped = paid.view(recipe.prompts, recipe.samples)
    if recipe.shuffled:
        order = torch.rand(grouped.shape, generator=generator).argsort(1).to(device)
        grouped = grouped.gather(1, order)
    advantages = group_normalized(grouped, dim=1).flatten()
    experiences = []
    for chosen in torch.randperm(recipe.steps, generator=generator)[: recipe.trained].chunk(UPDATES):
        with torch.no_grad():
            means, _ = sampler.replay(denoiser(reference, beginnings), path, chosen.tolist())
        tuning = draw_batch(data, recipe.batch, generator)
        experiences.append(Experience(path, beginnings, chosen.tolist(), means, advantages, tuning))
    return experiences


def _policy_loss(policy: WorldModel, experience: Experience, divergence: float) -> Tensor:
    """PPO's at every step, and the KL to the reference; both by the mean of all numbers of a state."""
    path, steps = experience.path, experience.steps
    sampler = FlowSDE(FLOW, PREDICTION, noise=NOISE)
    means, log_probs = sampler.replay(denoiser(policy, experience.known), path, steps)
    numbers = means[0, 0].numel()
    surrogate = clipped_surrogate(
        log_probs / numbers,
        path.log_probs[:, steps] / numbers,
        experience.advantages[:, None].expand_as(log_probs),
        clip=CLIP,
    )
    std = path.stds[steps].to(means).view(1, -1, 1, 1, 1, 1)
    kl = ((means - experience.reference) / std).square().mean() / 2
    return surrogate.mean() + divergence * kl
