"""A trial at work: the initial policies, what training in each world makes of them, and rows of the table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flashlla.models import LanguageModel, LanguageModelConfig

from ..common.costs import costs
from ..common.training import History, seed_for
from ..worlds import WorldVectorEnv, tokenizer
from .arms import SUBTASKS, Arm, arms, needed_inits
from .domains import DOMAINS, Domains, episode_seeds
from .effects import INITIAL
from .episodes import Episodes, play
from .finetuning import Texts, finetune
from .grpo import Recipe, learn
from .measures import planning_complexity, richness, similarities

if TYPE_CHECKING:
    from .run import Trial

MIXTURE = {"lab": 19, "house": 3, "shop": 1}  # turns of the second supervised training; no Sokoban
TEST_SEED = 10**6  # apart from the seeds of training


def model_config(mixer: str, dim: int, depth: int, heads: int) -> LanguageModelConfig:
    """A model of the words of the worlds.

    Raises:
        ValueError: sizes that do not fit.
    """
    return LanguageModelConfig(
        vocab_size=len(tokenizer()), dim=dim, depth=depth, heads=heads, mixer=mixer, tie_embeddings=False
    )


class Study:
    """The policies of a trial and their rows.

    Rows are of four kinds. ``arm``: success and steps in a world, at an evaluation of an arm, or of an
    initial policy. ``domain``: richness and planning complexity of a world. ``similarity``: of two worlds.
    ``episode``: one as text.
    """

    def __init__(self, trial: Trial, folder: Path):
        self.trial, self.folder = trial, folder
        self.domains = Domains(trial.limits, trial.distance, trial.receptacles, trial.history, trial.thinking)
        self.tests = {domain: self.domains.make(domain, trial.test) for domain in DOMAINS}
        self.policies: dict[str, LanguageModel] = {}
        self.rows: list[dict[str, Any]] = []

    def run(self) -> list[dict[str, Any]]:
        """All arms; an arm that was done before is read from its folder."""
        chosen = arms(self.trial)
        inits = needed_inits(chosen)
        for init in inits:
            self._initial(init)
        if "plain" in self.trial.designs:
            self._measure(inits[-1])
        for arm in chosen:
            self._train(arm)
        return self.rows

    # ---- initial policies -------------------------------------------------------------------------------

    def _initial(self, init: str) -> None:
        model, history = self._from_experts() if init == "V1" else self._from_mixture()
        self.policies[init] = model
        about = {"init": init, "trained": "", "variant": INITIAL, **costs(model, history)}
        self._evaluations(about, [{"step": 0, **self._success(model)}])

    def _from_experts(self) -> tuple[LanguageModel, History]:
        """V1: the turns of noisy experts in all worlds, each as often as another."""
        trial = self.trial
        torch.manual_seed(trial.seed)
        model = LanguageModel(model_config(trial.mixer, trial.dim, trial.depth, trial.heads))
        model.embedding.reset_parameters()  # variance 1, as in associative recall
        sources = [self._expert_texts(domain, trial.noise) for domain in DOMAINS]
        if "factorial" in trial.designs:
            sources.append(self._expert_texts("house", trial.noise, SUBTASKS[-1]))
        return finetune(
            model.to(trial.device),
            sources,
            [1.0] * len(sources),
            self.folder / "V1",
            steps=trial.base_steps,
            **self._recipe(),
        )

    def _from_mixture(self) -> tuple[LanguageModel, History]:
        """V2: V1 trained on, with turns of MiniLab's expert and of its own in two other worlds."""
        own = [self._own_texts(domain) for domain in list(MIXTURE)[1:]]
        sources = [self._expert_texts("lab", 0.0), *own]
        weights = [float(turns) for turns in MIXTURE.values()]
        steps = self.trial.extra_steps
        return finetune(
            self.policies["V1"], sources, weights, self.folder / "V2", steps=steps, **self._recipe()
        )

    def _recipe(self) -> dict[str, Any]:
        trial = self.trial
        return {
            "batch": trial.batch,
            "learning_rate": trial.base_rate,
            "seed": trial.seed,
            "optimizer": "muon",
        }

    def _expert_texts(self, domain: str, noise: float, subtasks: int = 1) -> Texts:
        env = self._env(domain, self.trial.traces, subtasks=subtasks)
        return Texts.of_expert(env, noise, seed_for(self.trial.seed, "experts", DOMAINS.index(domain)))

    def _own_texts(self, domain: str) -> Texts:
        """What V1 does, whether it succeeds or not."""
        seeds = episode_seeds(self.trial.seed, "own", self.trial.traces)
        env = self._env(domain, self.trial.traces)
        return Texts.of_policy(play(self.policies["V1"], env, seeds, self._generator("own")).turns)

    # ---- training in one world --------------------------------------------------------------------------

    def _train(self, arm: Arm) -> None:
        trial = self.trial
        recipe = Recipe(
            trial.draws * arm.longer,
            trial.groups,
            trial.samples,
            trial.updates,
            trial.states,
            trial.rate,
            trial.kl * arm.higher,
            trial.evaluate_every,
        )
        policy, history = learn(
            self.policies[arm.init],
            self._world_of(arm, trial.groups * trial.samples),
            self.folder / arm.name.replace(" ", "_"),
            recipe,
            seed=trial.seed,
            evaluate=self._success,
        )
        about = {
            "init": arm.init,
            "trained": arm.trained,
            "variant": arm.variant,
            "dose": arm.dose,
            "lines": arm.lines,
            "subtasks": arm.subtasks,
        }
        self._evaluations({**about, **costs(policy, history)}, history.evaluations)
        if trial.shown:
            episodes = self._play(policy, "shown", self._world_of(arm, trial.shown))
            for number, success in enumerate(episodes.success.tolist()):
                found = {"success": float(success), "text": episodes.transcript(number)}
                self._row("episode", **about, domain=arm.trained, **found)

    def _world_of(self, arm: Arm, episodes: int) -> WorldVectorEnv:
        """What the arm is trained in."""
        options = {"subtasks": arm.subtasks or 1, "augmentation": arm.augmentation}
        return self._env(arm.trained, episodes, **options)

    # ---- measuring --------------------------------------------------------------------------------------

    def _success(self, policy: LanguageModel) -> dict[str, float]:
        """Success and steps in the test of every world, and how many steps a second were made."""
        found, steps, seconds = {}, 0, 0.0
        for domain, env in self.tests.items():
            episodes = self._play(policy, f"test {domain}", env)
            found[f"{domain}_success"] = float(episodes.success.double().mean())
            found[f"{domain}_steps"] = float(episodes.steps.double().mean())
            steps, seconds = steps + int(episodes.steps.sum()), seconds + episodes.seconds
        return {**found, "steps_per_second": round(steps / seconds)}

    def _measure(self, init: str) -> None:
        """Richness and planning complexity of the worlds, from episodes of an initial policy."""
        trial, prompts = self.trial, {}
        for domain in DOMAINS:
            env = self.domains.make(domain, trial.measured, limit=trial.longest)
            episodes = self._play(self.policies[init], f"measured {domain}", env)
            prompts[domain] = episodes.prompts
            self._row(
                "domain",
                init=init,
                domain=domain,
                richness=richness(episodes.prompts),
                bare_richness=richness(episodes.observations),
                length=planning_complexity(episodes, trial.longest),
            )
        for (domain, other), similarity in similarities(prompts).items():
            self._row("similarity", init=init, domain=domain, other=other, similarity=similarity)

    def _play(self, policy: LanguageModel, purpose: str, env: WorldVectorEnv) -> Episodes:
        """The same episodes with the same noise for every policy."""
        seeds = episode_seeds(TEST_SEED + self.trial.seed, purpose, env.num_envs)
        return play(policy, env, seeds, self._generator(purpose), temperature=self.trial.temperature)

    def _evaluations(self, about: dict[str, Any], records: list[dict[str, Any]]) -> None:
        """A row for every world and evaluation; the last ones are what is reported."""
        for number, record in enumerate(records):
            final = int(number >= len(records) - self.trial.reported)
            for domain in DOMAINS:
                self._row(
                    "arm",
                    **about,
                    step=record["step"],
                    final=final,
                    domain=domain,
                    success=record[f"{domain}_success"],
                    steps=record[f"{domain}_steps"],
                    steps_per_second=record["steps_per_second"],
                )

    def _row(self, kind: str, **columns: Any) -> None:
        self.rows.append({"kind": kind, **columns})

    def _env(self, domain: str, episodes: int, *, subtasks: int = 1, **options: Any) -> WorldVectorEnv:
        limit = (
            self.trial.factorial_limit if "factorial" in self.trial.designs and domain == "house" else None
        )
        return self.domains.make(domain, episodes, limit=limit, subtasks=subtasks, **options)

    def _generator(self, purpose: str) -> torch.Generator:
        return torch.Generator(self.trial.device).manual_seed(seed_for(self.trial.seed, purpose))
