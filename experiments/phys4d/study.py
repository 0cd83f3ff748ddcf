"""The stages of a trial, each from the one before it, with controls, and what the evaluation says of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..common.costs import costs
from ..common.training import History, seed_for
from .data import Library, on_device, rows
from .evaluation import drifts, geometry_metrics, physics_iq_score, video_metrics
from .films import save_film
from .lifting import Tracks, track
from .model import WorldModel, generate
from .policy import PASSES, PolicyRecipe, reinforce, rewards
from .render import Clip
from .stages import Recipe, finetune, pretrain, train_heads

if TYPE_CHECKING:
    from .run import Trial

KNOWN = 2  # frames, from which position and velocity follow
SHOWN = 5  # clips of a film
PROBES = 32  # clips that rewards are looked at on during stage 3
PARTS = 4  # of stage 3; looked at behind each
MIDDLE = 2.5  # the constant depth that a head is held against

Trained = tuple[WorldModel, History]


class Study:
    """The models of a trial by arm, and the rows of the table."""

    def __init__(self, trial: Trial, folder: Path):
        self.trial, self.folder = trial, folder
        self.models: dict[str, WorldModel] = {}
        self.base_frames: Tensor | None = None
        self.rows: list[dict[str, Any]] = []
        frames = KNOWN + trial.generated
        sizes = (trial.clips, trial.test, frames, trial.size)
        self.library = Library.make(*sizes, seed=trial.seed, device=trial.device)
        shape = self.library.test.rgb[:, KNOWN:].shape
        self.noise = torch.randn(shape, generator=self._generator("noise")).to(trial.device)
        self.takes = means(video_metrics(self.library.retake.rgb, self.library.test, KNOWN))
        self._references()

    def add(self, arm: str) -> None:
        """Train an arm, and append what the evaluation says of it."""
        begun = time.perf_counter()
        model, history = ARMS[arm](self, arm)
        self.models[arm] = model
        seconds = time.perf_counter() - begun
        test = self.library.test
        rgb = generate(model, test.rgb, KNOWN, self.noise, self.trial.sampler_steps)
        found = means(video_metrics(rgb, test, KNOWN))
        with torch.no_grad():
            said, said_of_truth = model.geometry(rgb), model.geometry(test.rgb)
        found |= means(geometry_metrics(*said, test))
        found |= {f"true_{n}": v for n, v in means(geometry_metrics(*said_of_truth, test)).items()}
        found["score"] = physics_iq_score(found, self.takes)
        if self.base_frames is None:
            self.base_frames = rgb
        found["changed"] = float(not torch.equal(rgb, self.base_frames))
        self._row("arm", arm, **found, arm_seconds=seconds, **costs(model, history))
        self._drift(arm, rgb)
        if self.trial.seed == 0:
            self._film(arm, rgb, said)

    # ---- arms -----------------------------------------------------------------------------------------

    def base(self, arm: str) -> Trained:
        """Pretrained on broken worlds; its heads have learned nothing."""
        trial = self.trial
        torch.manual_seed(trial.seed)
        model = WorldModel(trial.mixer, trial.dim, trial.depth, trial.heads).to(trial.device)
        return pretrain(
            model, self.library.broken, KNOWN, self._recipe(arm, trial.base_steps, trial.base_rate)
        )

    def heads(self, arm: str) -> Trained:
        recipe = self._recipe(arm, self.trial.head_steps, self.trial.head_rate)
        return train_heads(self.models["base"], self.library.labels, KNOWN, recipe)

    def sft(self, arm: str) -> Trained:
        """Stage 2 with warp consistency, its twin without, and the control that goes on with stage 2."""
        trial, more = self.trial, arm == "more_sft"
        steps = self.matched_steps if more else trial.tuning_steps
        return finetune(
            self.models["sft" if more else "heads"],
            self.library.true,
            KNOWN,
            self._recipe(arm, steps, trial.tuning_rate),
            rank=trial.rank,
            warp=arm != "sft_plain",
        )

    def rl(self, arm: str) -> Trained:
        """Stage 3, and the control whose rewards are shuffled."""
        start = self.models["sft"]
        recipe = self.policy_recipe._replace(shuffled=arm == "rl_shuffled")
        model, history = reinforce(
            start,
            self.library.true,
            KNOWN,
            recipe,
            seed=self.trial.seed,
            folder=self.folder / arm,
            measure=self._measure,
            parts=PARTS,
        )
        for record in [{"step": 0, **self._measure(start)}, *history.evaluations]:
            self._row("reward", arm, **{n: record[n] for n in ("step", "reward", "chamfer", "mse")})
        return model, history

    # ---- what they share ------------------------------------------------------------------------------

    @property
    def policy_recipe(self) -> PolicyRecipe:
        trial = self.trial
        return PolicyRecipe(
            draws=trial.rl_draws,
            prompts=trial.rl_prompts,
            samples=trial.rl_samples,
            steps=trial.rl_steps,
            trained=trial.rl_trained,
            batch=trial.batch,
            learning_rate=trial.rl_rate,
            divergence=trial.divergence,
            tuning=trial.tuning_weight,
            rank=trial.rank,
            shuffled=False,
        )

    @property
    def matched_steps(self) -> int:
        """Steps of fine-tuning that take as many passes of clips through the network as stage 3."""
        return max(1, round(self.policy_recipe.passes / (PASSES * self.trial.batch)))

    def _recipe(self, arm: str, steps: int, learning_rate: float) -> Recipe:
        return Recipe(steps, self.trial.batch, learning_rate, self.trial.seed, self.folder / arm)

    def _generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(seed_for(self.trial.seed, purpose))

    def _row(self, kind: str, arm: str, **columns: Any) -> None:
        self.rows.append({"kind": kind, "arm": arm, **columns})

    def _measure(self, model: WorldModel) -> dict[str, float]:
        """The reward, through learned depth, beside what the evaluation says of the same samples."""
        some = slice(PROBES)
        test = rows(self.library.test, some)
        rgb = generate(model, test.rgb, KNOWN, self.noise[some], self.trial.sampler_steps)
        found = means(video_metrics(rgb, test, KNOWN))
        paid = rewards(self.models["sft"], rgb, test, KNOWN).mean().item()
        return {"reward": paid, "chamfer": found["chamfer"], "mse": found["mse"]}

    def _references(self) -> None:
        """Rows of what needs no model: the second take, the truth as it is lifted, the last known frame
        repeated, and a constant depth without motion.
        """
        test, retake = self.library.test, self.library.retake
        still = torch.cat(
            [test.rgb[:, :KNOWN], test.rgb[:, KNOWN - 1 : KNOWN].expand_as(test.rgb[:, KNOWN:])], 1
        )
        constant = geometry_metrics(test.depth * 0 + MIDDLE, test.flow * 0, test.rise * 0, test)
        self._row("reference", "constant", **means(constant))
        for name, rgb in {"retake": retake.rgb, "truth": test.rgb, "still": still}.items():
            found = means(video_metrics(rgb, test, KNOWN))
            self._row("reference", name, **found, score=physics_iq_score(found, self.takes))
            self._drift(name, rgb)

    def _drift(self, arm: str, rgb: Tensor) -> None:
        test = self.library.test
        away = drifts(track(rgb), Tracks.of(test.motion).outside(test.hidden))
        for frame in range(KNOWN, rgb.shape[1]):
            self._row("drift", arm, frame=frame, drift=away[:, frame].nanmean().item())

    def _film(self, arm: str, rgb: Tensor, said: tuple[Tensor, Tensor, Tensor]) -> None:
        """The first clips of the test, whatever their kinds."""
        some = slice(SHOWN)
        truth: Clip = on_device(rows(self.library.test, some), "cpu")
        save_film(
            self.folder / f"{arm}.gif", truth, rgb[some].cpu(), tuple(t[some].cpu() for t in said), KNOWN
        )


def means(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Over the clips that have a metric; those that no clip has are left out."""
    found = {name: values.nanmean().item() for name, values in metrics.items()}
    return {name: value for name, value in found.items() if math.isfinite(value)}


ARMS: dict[str, Callable[[Study, str], Trained]] = {
    "base": Study.base,
    "heads": Study.heads,
    **dict.fromkeys(("sft_plain", "sft", "more_sft"), Study.sft),
    **dict.fromkeys(("rl", "rl_shuffled"), Study.rl),
}
