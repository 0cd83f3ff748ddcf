"""A trial that learns: one base policy, its arms, and their rows of the table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flashlla.models import LanguageModel, PolicyModel

from ..common.costs import costs
from ..common.training import History, seed_for
from .arms import ARMS, estimate
from .critic import Seen
from .episodes import Episodes, numbers, play, transcript
from .finetuning import finetune, traces
from .learning import as_batch, copied_gradient, learn
from .model import model_config, policy_from
from .task import Task

if TYPE_CHECKING:
    from .run import Trial

TEMPERATURE = 0.4  # of the test, as in the paper
LAST = 0.25  # share of the draws that a mean at the end is over


class Study:
    """The base policy of a trial, what its arms made of it, and their rows of the table."""

    def __init__(self, trial: Trial, folder: Path):
        self.trial, self.folder = trial, folder
        self.rows: list[dict[str, Any]] = []
        self.task = Task(
            trial.subtasks,
            trial.history,
            trial.limit * trial.subtasks,
            trial.kinds,
            trial.receptacles,
        )
        self.base, self.tuning = self._finetuned()
        self.first: dict[bool, Episodes] = {}

    def add_base(self, plan: bool) -> None:
        """Play with the base policy, and append its rows."""
        arm, trial = "base_plan" if plan else "base", self.trial
        houses = [_FIRST + trial.seed * trial.first + i for i in range(trial.first)]
        made = play(self.base, self.task, houses, plan=plan, generator=self._generator(arm))
        self.first[plan] = made
        self._arm(arm, plan, self.base, self.tuning, numbers(made))

    def add(self, name: str) -> None:
        """Train an arm, and append its rows."""
        arm, trial = ARMS[name], self.trial
        if arm.plan not in self.first:
            self.add_base(arm.plan)
        learned = learn(
            policy_from(self.base),
            arm,
            self.task,
            self.first[arm.plan],
            self.folder / name,
            draws=trial.draws,
            episodes=trial.episodes,
            group=trial.group,
            updates=trial.updates,
            learning_rate=trial.rate,
            seed=trial.seed,
        )
        for record in learned.draws:
            self._row("draw", name, **record)
        if arm.estimator == "hae":
            self._mask(name, learned.policy)
        self._arm(name, arm.plan, learned.policy.actor, learned.history, _ending(learned.draws))

    def _finetuned(self) -> tuple[LanguageModel, History]:
        trial = self.trial
        torch.manual_seed(trial.seed)
        model = LanguageModel(model_config(trial.mixer, trial.dim, trial.depth, trial.heads))
        model.embedding.reset_parameters()  # variance 1, as in associative recall
        examples = traces(self.task, trial.traces, trial.noise, trial.seed, shuffled=trial.shuffled)
        history = finetune(
            model.to(trial.device),
            examples,
            self.folder / "base",
            steps=trial.tuning_steps,
            batch=trial.tuning_batch,
            learning_rate=trial.tuning_rate,
            seed=trial.seed,
        )
        return model.eval(), history

    def _arm(
        self, name: str, plan: bool, actor: LanguageModel, history: History, sampled: dict[str, Any]
    ) -> None:
        """The row of an arm, of the houses of the test, and some of its episodes in words.

        Args:
            sampled: numbers of its own episodes at temperature 1.
        """
        made = play(
            actor,
            self.task,
            range(self.trial.test),
            plan=plan,
            generator=self._generator("test"),
            temperature=TEMPERATURE,
        )
        beside = {f"sampled_{key}": sampled[key] for key in ("success", "switch_rate", "segment", "turns")}
        speed = {"steps_per_second": sampled["steps_per_second"]}
        self._row("arm", name, **{**numbers(made), **beside, **speed}, **costs(actor, history))
        for number in range(self.trial.shown):
            self._row("episode", name, number=number, text=transcript(made, number))

    def _mask(self, name: str, policy: PolicyModel) -> None:
        made = self.first[True]
        found = estimate(ARMS[name], Seen(policy, made), self.trial.group)
        self._row("mask", name, **copied_gradient(policy, as_batch(made, found)))

    def _generator(self, purpose: str) -> torch.Generator:
        """A source of randomness that depends on the seed and what it is for."""
        seed = seed_for(self.trial.seed, purpose)
        return torch.Generator(self.trial.device).manual_seed(seed)

    def _row(self, kind: str, arm: str, **columns: Any) -> None:
        self.rows.append({"kind": kind, "arm": arm, **columns})


_FIRST = 10**6  # seeds of the first houses; those of the test are below, and those of the draws above


def _ending(draws: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the last draws."""
    last = draws[-max(1, round(LAST * len(draws))) :]
    return {
        name: None if value is None else sum(record[name] for record in last) / len(last)
        for name, value in last[0].items()
    }
