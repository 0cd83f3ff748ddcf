"""The arms of a trial: every way to train on from one base model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flashlla.models import LanguageModel
from flashlla.models.rl import taken_log_probs

from ..common.costs import peak_megabytes
from ..common.training import seed_for, train
from .data import Chains, joined
from .evidence import Bounds, elbo, log_evidence
from .finetuning import finetune, prefer, reject
from .model import accuracies, complete, model_config
from .posterior import Problem, learn_posterior

if TYPE_CHECKING:
    from .run import Trial

ROUNDS = 3  # of rejection sampling, and of DPO
PARTS = 5  # of a supervised training: rows of the table


class Study:
    """The base model of a trial, what its arms made of it, and their rows of the table.

    An arm may build on others, which are then there before it: ``theta`` on ``psi``, and what ends in ``_2``
    on ``theta``.
    """

    def __init__(self, trial: Trial, chains: Chains, folder: Path):
        self.trial, self.chains, self.folder = trial, chains, folder
        self.models: dict[str, LanguageModel] = {}
        self.rows: list[dict[str, Any]] = []
        prompts = chains.prompts(trial.prompts, self._generator("prompts", "cpu"))
        self.true_rationales = chains.rationales(prompts).to(trial.device)
        self.unknown = chains.unknown(prompts)
        answers = chains.answers(self.true_rationales)
        self.problem = Problem(prompts.to(trial.device), answers, chains.links)
        self.probes = Problem(*(t[: trial.probes] for t in self.problem[:2]), chains.links)
        self.test = chains.prompts(trial.test, self._generator("test", "cpu")).to(trial.device)
        self._evidence: dict[str, Bounds] = {}

    def add(self, arm: str) -> None:
        """Train an arm and append its rows."""
        begun = time.perf_counter()
        self.models[arm], about = ARMS[arm](self, arm)
        seconds = time.perf_counter() - begun
        found = accuracies(self.models[arm], self.chains, self.test, self._generator(f"{arm} test"))
        row = {"arm_seconds": seconds, "peak_megabytes": peak_megabytes(), **found, **about}
        self._row("arm", arm, **row, parameters=self.models[arm].num_parameters())

    # ---- arms -----------------------------------------------------------------------------------------

    def base(self, arm: str) -> tuple[LanguageModel, dict[str, Any]]:
        trial = self.trial
        torch.manual_seed(trial.seed)
        model = LanguageModel(model_config(trial.mixer, trial.values, trial.dim, trial.depth, trial.heads))
        model.embedding.reset_parameters()  # variance 1, as in associative recall

        def draw(generator: torch.Generator) -> Tensor:
            prompts = self.chains.prompts(trial.batch, generator)
            rationales = self.chains.rationales(prompts, generator)
            return joined(prompts, rationales, self.chains.answers(rationales))

        history = train(
            model.to(trial.device),
            lambda model, texts: -taken_log_probs(model, texts, self.chains.prompt_length).mean(),
            draw,
            self.folder / arm,
            steps=trial.base_steps,
            learning_rate=trial.base_rate,
            seed=trial.seed,
            optimizer="muon",
        )
        return model.eval(), {"loss": _ending(history.steps)}

    def sft(self, arm: str) -> tuple[LanguageModel, dict[str, Any]]:
        return self._tuned(arm, "base", self.true_rationales)

    def rejection(self, arm: str) -> tuple[LanguageModel, dict[str, Any]]:
        """One round from the base model, or what further rounds make of that."""
        rounds = range(1, ROUNDS) if arm == "rs_3" else range(1)
        model, samples = self.models["rs_1" if arm == "rs_3" else "base"], rounds[0] * self._candidates
        for i in rounds:
            kept = reject(model, self.problem, self.trial.candidates, self._generator(f"rs {i}"))
            samples += self._candidates
            covered = torch.zeros(len(self.unknown), dtype=torch.bool)
            covered[kept.prompts.cpu()] = True
            model, records = self._finetune(model, kept.texts, f"{arm}_{i}")
        for unknown in sorted(set(self.unknown.tolist())):
            of = covered[self.unknown == unknown].double()
            self._row("coverage", arm, unknown=unknown, coverage=of.mean().item(), problems=len(of))
        self._curve(arm, records)
        return model, {
            "coverage": covered.double().mean().item(),
            "true_share": self._true(kept.rationales, kept.prompts),
            "loss": _ending(records),
            "samples": samples,
        }

    def psi(self, arm: str) -> tuple[LanguageModel, dict[str, Any]]:
        """Q for the base model, or in the second iteration for its successor."""
        second = arm == "psi_2"
        estimator = arm.removeprefix("psi_") if arm in ("psi_ppo", "psi_grpo") else "leave_one_out"
        return self._posterior(
            arm,
            "theta" if second else "base",
            self.trial.rl_steps // 3 if second else self.trial.rl_steps,
            estimator=estimator,
            verifier=arm == "psi_verifier",
        )

    def theta(self, arm: str) -> tuple[LanguageModel, dict[str, Any]]:
        """Supervised training on rationales that Q draws, with the right answers."""
        second = arm == "theta_2"
        q, before = ("psi_2", "theta") if second else ("psi", "base")
        rationales = complete(
            self.models[q], self.problem.prompts, self.chains.links, generator=self._generator(arm)
        )[:, 0]
        model, about = self._tuned(arm, before, rationales)
        return model, {**about, "coverage": 1.0, "samples": len(rationales)}

    def dpo(self, arm: str) -> tuple[LanguageModel, dict[str, Any]]:
        """Rounds of DPO on texts of the model itself, or of a Q that is learned anew before each."""
        trial, model, samples = self.trial, self.models["base"], 0
        for i in range(ROUNDS):
            source = model
            if arm == "brite_dpo":
                self.models[f"{arm}_{i}"] = model
                steps = max(1, trial.rl_steps // ROUNDS)
                source, about = self._posterior(
                    f"{arm}_{i}_psi", f"{arm}_{i}", steps, estimator="leave_one_out", verifier=True
                )
                samples += about["samples"]
            samples += trial.prompts * trial.dpo_candidates
            model = prefer(
                model,
                source,
                self.problem,
                self.folder / f"{arm}_{i}",
                candidates=trial.dpo_candidates,
                steps=trial.dpo_steps,
                batch=trial.batch // 2,
                learning_rate=trial.dpo_rate,
                seed=trial.seed,
                generator=self._generator(f"{arm} {i}"),
            )
        return model, {"samples": samples}

    # ---- what they share ------------------------------------------------------------------------------

    @property
    def _candidates(self) -> int:
        return self.trial.prompts * self.trial.candidates

    def _generator(self, purpose: str, device: str | None = None) -> torch.Generator:
        """A source of randomness that depends on the seed and what it is for."""
        seed = seed_for(self.trial.seed, purpose)
        return torch.Generator(device or self.trial.device).manual_seed(seed)

    def _row(self, kind: str, arm: str, **columns: Any) -> None:
        self.rows.append({"kind": kind, "arm": arm, **columns})

    def _true(self, rationales: Tensor, prompts: Tensor | slice = slice(None)) -> float:
        """The share of rationales that are right from end to end."""
        return (rationales == self.true_rationales[prompts]).all(1).double().mean().item()

    def _tuned(self, arm: str, before: str, rationales: Tensor) -> tuple[LanguageModel, dict[str, Any]]:
        texts = joined(self.problem.prompts, rationales, self.problem.answers)
        model, records = self._finetune(self.models[before], texts, arm)
        self._curve(arm, records)
        return model, {"true_share": self._true(rationales), "loss": _ending(records)}

    def _finetune(self, model: LanguageModel, texts: Tensor, name: str):
        trial = self.trial
        return finetune(
            model,
            texts,
            self.chains.prompt_length,
            self.folder / name,
            steps=trial.tuning_steps,
            batch=trial.batch // 2,
            learning_rate=trial.tuning_rate,
            seed=trial.seed,
        )

    def _posterior(self, arm: str, reference: str, steps: int, *, estimator: str, verifier: bool):
        """Q for a reference, with rows of its lower bound on the way."""
        trial, p = self.trial, self.models[reference]

        def measure(q: LanguageModel) -> dict[str, float]:
            drawing = self._generator("bound")  # the same noise for all
            bound, error = elbo(q, p, *self.probes, trial.probe_samples, drawing)
            return {"elbo": bound, "elbo_error": error}

        q, records = learn_posterior(
            p,
            self.problem,
            self.folder / arm,
            estimator=estimator,
            verifier=verifier,
            steps=steps,
            prompts=trial.rl_prompts,
            samples=trial.rl_samples,
            learning_rate=trial.rl_rate,
            seed=trial.seed,
            measure=measure,
        )
        records = [{"step": 0, **measure(p)}, *records]
        evidence = self._log_evidence(reference)
        for record in records:
            self._row("psi", arm, **{n: record[n] for n in ("step", "elbo", "elbo_error")}, **evidence)
        samples = steps * trial.rl_prompts * trial.rl_samples
        return q, {"elbo": records[-1]["elbo"], **evidence, "samples": samples}

    def _log_evidence(self, reference: str) -> dict[str, float]:
        """Bounds for a model, enumerated once."""
        if reference not in self._evidence:
            self._evidence[reference] = log_evidence(self.models[reference], *self.probes, self.trial.beam)
        found = self._evidence[reference]
        return {"evidence_low": found.low, "evidence_high": found.high}

    def _curve(self, arm: str, records: Sequence[dict[str, Any]]) -> None:
        """Rows with the mean loss of every part of the steps."""
        for part in np.array_split(np.arange(len(records)), min(PARTS, len(records))):
            loss = float(np.mean([records[i]["loss"] for i in part]))
            self._row("tuning", arm, step=int(part[-1]) + 1, loss=loss)


def _ending(records: Sequence[dict[str, Any]]) -> float:
    """The mean loss of the last quarter of the steps."""
    return float(np.mean([record["loss"] for record in records[-max(1, len(records) // 4) :]]))


_Arm = Callable[[Study, str], tuple[LanguageModel, dict[str, Any]]]
ARMS: dict[str, _Arm] = {
    "base": Study.base,
    "sft": Study.sft,
    "rs_1": Study.rejection,
    "rs_3": Study.rejection,
    **dict.fromkeys(("psi", "psi_2", "psi_verifier", "psi_ppo", "psi_grpo"), Study.psi),
    **dict.fromkeys(("theta", "theta_2"), Study.theta),
    **dict.fromkeys(("dpo", "brite_dpo"), Study.dpo),
}
