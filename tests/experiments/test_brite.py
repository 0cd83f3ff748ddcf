"""BRiTE: the theory where it can be enumerated, the chains, the psi-step, and claims on made-up tables."""

import itertools

import numpy as np
import pandas
import pytest
import torch

from flashlla.experiments.brite import theory
from flashlla.experiments.brite.arms import ARMS
from flashlla.experiments.brite.claims import CLAIMS
from flashlla.experiments.brite.data import Chains, joined
from flashlla.experiments.brite.evidence import elbo, log_evidence
from flashlla.experiments.brite.finetuning import reject
from flashlla.experiments.brite.model import model_config
from flashlla.experiments.brite.posterior import (
    CORRECT,
    ESTIMATORS,
    LOWEST,
    Problem,
    learn_posterior,
    token_rewards,
)
from flashlla.experiments.brite.run import CORE, EASY, EXTRA, PRESETS, Config, trials
from flashlla.models import LanguageModel
from flashlla.models.rl import taken_log_probs

# ---- theory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_lemma_and_proposition_are_exact(seed):
    assert theory.variational_error(seed) < 1e-12
    assert theory.token_tree_error(seed) < 1e-12


def test_the_best_policy_is_better_than_others():
    """Reward and entropy of the soft optimum, over a tree, against random policies."""
    rng = np.random.default_rng(0)
    rewards = [rng.normal(size=(3,) * h) for h in (1, 2)]
    returns, beta = rewards[0][:, None] + rewards[1], 0.7
    best = theory.soft_optimum(rewards, beta)
    assert np.exp(best).sum() == pytest.approx(1.0)

    def value(log_p):
        return (np.exp(log_p) * (returns - beta * log_p)).sum()

    others = np.log(rng.dirichlet(np.ones(9), size=50)).reshape(50, 3, 3)
    assert max(map(value, others)) < value(best)


@pytest.mark.parametrize("concave", (False, True))
def test_exact_em_keeps_the_inequalities_of_the_paper(concave):
    for seed in range(2):
        model = theory.LogLinear.draw_concave(seed) if concave else theory.LogLinear.draw(seed)
        found = theory.exact_em(model)
        assert found["smallest_gain"] > -1e-12 and found["smallest_slack"] > -1e-12
        assert found["largest_sum"] <= 1
        if concave:
            assert found["curvature"] < 0 and found["largest_rate"] <= 1


def test_steps_of_em_are_what_they_claim_to_be():
    model = theory.LogLinear.draw(5)
    theta = np.array([0.3, -0.2, 0.1, 0.5])
    joint = np.exp(model.log_p(theta) + model.signal)
    np.testing.assert_allclose(np.exp(model.posterior(theta)), joint / joint.sum())
    assert model.objective(theta) == pytest.approx(np.log(joint.sum()))
    fitted = model.fit(model.posterior(theta), theta)
    q = np.exp(model.posterior(theta))
    np.testing.assert_allclose(np.exp(model.log_p(fitted)) @ model.features, q @ model.features, atol=1e-10)
    shift = 1e-6 * np.eye(4)
    slopes = [(model.objective(theta + s) - model.objective(theta - s)) / 2e-6 for s in shift]
    np.testing.assert_allclose(model.gradient(theta), slopes, atol=1e-7)
    bends = [(model.gradient(theta + s) - model.gradient(theta - s)) / 2e-6 for s in shift]
    assert model.curvature(theta) == pytest.approx(np.linalg.eigvalsh(np.array(bends))[-1], abs=1e-6)


# ---- chains -----------------------------------------------------------------------------------------


@pytest.fixture
def chains():
    return Chains.draw(values=5, links=3, right=0.2, seed=0)


def test_a_rationale_follows_the_table(chains, generator):
    prompts = chains.prompts(50, generator)
    rationales = chains.rationales(prompts)
    assert prompts.shape == (50, 5) and (prompts[:, -1] == chains.separator).all()
    for prompt, rationale in zip(prompts.tolist(), rationales.tolist(), strict=True):
        state = prompt[0]
        for operand, step in zip(prompt[1:4], rationale, strict=True):
            state = int(chains.results[state, operand])
            assert state == step
    answers = chains.answers(rationales)
    assert (answers[:, 0] == chains.separator).all() and torch.equal(answers[:, 1], rationales[:, -1])
    assert joined(prompts, rationales, answers).shape == (50, 10)


def test_the_corpus_is_wrong_as_often_as_it_should_be(generator):
    chains = Chains.draw(values=10, links=2, right=0.2, seed=1)
    assert chains.known.sum() == 50 and (chains.mistakes != chains.results).all()
    prompts = chains.prompts(40_000, generator)
    first = chains.rationales(prompts, generator)[:, 0]
    fact = prompts[:, 0], prompts[:, 1]
    right, known = first == chains.results[fact], chains.known[fact]
    assert right[known].all()
    assert right[~known].double().mean() == pytest.approx(0.2 + 0.3 / 10, abs=0.01)
    assert (first == chains.mistakes[fact])[~known].double().mean() == pytest.approx(0.5 + 0.03, abs=0.01)


def test_unknown_facts_are_counted_along_the_true_rationale(chains, generator):
    prompts = chains.prompts(30, generator)
    for prompt, count in zip(prompts.tolist(), chains.unknown(prompts).tolist(), strict=True):
        state, found = prompt[0], 0
        for operand in prompt[1:4]:
            found += not chains.known[state, operand]
            state = int(chains.results[state, operand])
        assert found == count


# ---- evidence and rewards ---------------------------------------------------------------------------


@pytest.fixture
def problem(chains, generator):
    prompts = chains.prompts(3, generator)
    return Problem(prompts, chains.answers(chains.rationales(prompts)), chains.links)


def make_model(seed, scale=3.0):
    torch.manual_seed(seed)
    model = LanguageModel(model_config("softmax", 5, 16, 1, 2)).eval()
    with torch.no_grad():
        model.head.mul_(scale)
    return model


@torch.no_grad()
def enumerated(model, prompt, answer):
    """``log P(z, y* | x)`` of all rationales z, and these."""
    rationales = torch.tensor(list(itertools.product(range(6), repeat=3)))
    texts = torch.cat([prompt.expand(216, -1), rationales, answer.expand(216, -1)], 1)
    return rationales, taken_log_probs(model, texts, len(prompt)).double().sum(1)


def test_evidence_is_enumerated_or_bounded(problem):
    model = make_model(0)
    pairs = zip(problem.prompts, problem.answers, strict=True)
    true = np.mean([enumerated(model, *pair)[1].logsumexp(0).item() for pair in pairs])
    whole = log_evidence(model, *problem, beam=216)
    assert whole.low == pytest.approx(true, abs=1e-5) and whole.high == pytest.approx(true, abs=1e-4)
    part = log_evidence(model, *problem, beam=10)
    assert part.low < true < part.high


def test_the_sampled_bound_is_the_enumerated_one(problem, generator):
    q, reference = make_model(1), make_model(0)
    found, error = elbo(q, reference, *problem, samples=2000, generator=generator)
    exact = []
    for prompt, answer in zip(problem.prompts, problem.answers, strict=True):
        rationales, joint = enumerated(reference, prompt, answer)
        texts = torch.cat([prompt.expand(216, -1), rationales], 1)
        log_q = taken_log_probs(q, texts, len(prompt)).detach().double().sum(1)
        exact.append((log_q.exp() * (joint - log_q)).sum().item())
    assert abs(found - np.mean(exact)) < 4 * error
    assert found < log_evidence(reference, *problem, beam=216).low


def test_rewards_sum_to_the_log_ratio_that_the_bound_is_the_mean_of(problem, generator):
    q, reference = make_model(1, scale=1.0), make_model(0, scale=1.0)
    rationales = torch.randint(6, (3, 3), generator=generator)
    tokens = torch.cat([problem.prompts, rationales], 1)
    log_q = taken_log_probs(q, tokens, 5).detach()
    rewards = token_rewards(reference, tokens, log_q, problem.answers, 3, verifier=False)
    joint = taken_log_probs(reference, torch.cat([tokens, problem.answers], 1), 5).detach()
    assert joint.min() > LOWEST and rewards.shape == (3, 3)
    torch.testing.assert_close(rewards.sum(1), joint.sum(1) - log_q.sum(1))
    torch.testing.assert_close(rewards[:, :2], (joint[:, :3] - log_q)[:, :2])


def test_a_verifier_pays_for_right_answers(problem):
    q, reference = make_model(1, scale=1.0), make_model(0, scale=1.0)
    wrong = problem.answers.clone()
    wrong[0, 1] = (wrong[0, 1] + 1) % 5
    tokens = torch.cat([problem.prompts, torch.zeros(3, 3, dtype=torch.int64), wrong], 1)
    log_q = taken_log_probs(q, tokens, 5).detach()
    rewards = token_rewards(reference, tokens, log_q, problem.answers, 3, verifier=True)
    bare = taken_log_probs(reference, tokens, 5).detach() - log_q
    paid = rewards - bare
    torch.testing.assert_close(paid[:, -1], torch.tensor([0.0, CORRECT, CORRECT]), atol=1e-5, rtol=0)
    torch.testing.assert_close(paid[:, :-1], torch.zeros(3, 4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_better_texts_have_larger_advantages(name, generator):
    rewards = torch.zeros(4, 8, 3)
    rewards[:, 0, -1] = 1.0
    found = ESTIMATORS[name].advantages(rewards, torch.zeros_like(rewards))
    assert found.shape == rewards.shape
    assert (found[:, 0] > found[:, 1:].amax(1)).all() and found[:, 1:].mean() < 0


def test_rejection_keeps_right_texts_alone(problem, generator):
    kept = reject(make_model(0), problem, 200, generator)
    assert len(kept.texts) == len(kept.prompts) > 0
    assert torch.equal(kept.texts[:, -2:], problem.answers[kept.prompts])
    assert torch.equal(kept.texts[:, 5:8], kept.rationales)


@pytest.mark.parametrize("estimator", ("leave_one_out", "ppo"))
def test_a_psi_step_that_was_interrupted_ends_where_it_would_have(estimator, problem, tmp_path):
    def learn(folder, measure):
        q, records = learn_posterior(
            make_model(0),
            problem,
            tmp_path / folder,
            estimator=estimator,
            verifier=False,
            steps=5,
            prompts=2,
            samples=4,
            learning_rate=1e-2,
            seed=0,
            measure=measure,
        )
        return q.state_dict(), [record["step"] for record in records]

    asked = []

    def stop(q):
        asked.append(q)
        if len(asked) == 3:  # a checkpoint is behind the second draw
            raise KeyboardInterrupt
        return {}

    whole, steps = learn("whole", lambda q: {})
    with pytest.raises(KeyboardInterrupt):
        learn("parts", stop)
    again, _ = learn("parts", lambda q: {})
    assert steps == [1, 2, 3, 4, 5]
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    before = make_model(0).state_dict()
    assert any(not torch.equal(whole[name], before[name]) for name in whole)


# ---- configurations ---------------------------------------------------------------------------------


def test_trials_are_mixers_with_their_arms_the_ablation_and_the_theory():
    config = Config(mixer=("softmax", "lla"), extra_mixer=("lla",), easy_mixer=("softmax",), seeds=2)
    found = [(t.task, t.mixer, t.seed, t.arms) for t in trials(config)]
    assert found == [
        *(
            row
            for seed in range(2)
            for row in (
                ("hard", "softmax", seed, CORE),
                ("hard", "lla", seed, CORE + EXTRA),
                ("easy", "softmax", seed, EASY),
            )
        ),
        ("theory", "", 0, ()),
    ]
    assert {*CORE, *EXTRA} == set(ARMS)
    for preset in PRESETS.values():
        assert {t.values for t in trials(preset) if t.task == "easy"} == {preset.easy_values}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    (
        ({"extra_mixer": ("mamba2",)}, "extra_mixer 'mamba2' must be among mixer="),
        ({"easy_mixer": ("magic",)}, "easy_mixer 'magic' must be among mixer="),
        ({"links": 1}, "links=1 must be at least 2"),
        ({"right": 1.0}, "right=1.0 must lie between 0 and 1"),
        ({"rl_steps": 2}, "rl_steps=2 must be at least 3"),
        ({"rl_samples": 1}, "rl_samples=1 must be at least 2"),
        ({"rl_rate": 0.0}, "rl_rate=0.0 must be positive"),
        ({"prompts": 16}, "rl_prompts=32 and probes=8 must be at most prompts=16"),
        ({"heads": 5}, "heads"),
    ),
)
def test_wrong_values_are_told_in_one_line(changes, complaint, refused):
    refused(Config, changes, complaint)


# ---- claims -----------------------------------------------------------------------------------------

NUMBERS = {  # greedy accuracy, true share, loss
    "base": (0.2, None, 0.5),
    "sft": (1.0, 1.0, 0.0),
    "rs_1": (0.5, 0.45, 0.4),
    "rs_3": (0.7, 0.7, 0.1),
    "theta": (0.98, 0.95, 0.05),
    "theta_2": (0.98, 0.95, 0.02),
    "dpo": (0.3, None, None),
    "brite_dpo": (0.4, None, None),
}


def made_up(changes=None, **columns):
    """A table with two mixers and three seeds; ``changes`` are other numbers of arms."""
    rows = []
    for mixer, seed in itertools.product(("softmax", "lla"), range(3)):
        common = {"task": "hard", "mixer": mixer, "seed": seed}
        for arm, (accuracy, share, loss) in {**NUMBERS, **(changes or {})}.items():
            row = {"accuracy": accuracy + 0.001 * seed, "true_share": share, "loss": loss, "coverage": 0.9}
            rows.append({**common, "kind": "arm", "arm": arm, **row})
            if arm in ("rs_1", "theta"):
                gap = 0.0 if columns.get("covered", True) else 0.3
                easy = {**row, "accuracy": 0.97 - (gap if arm == "rs_1" else 0.0)}
                rows.append({**common, "task": "easy", "kind": "arm", "arm": arm, **easy})
        for step, bound in ((0, -6.0), (50, columns.get("bound", -3.0))):
            known = {"evidence_low": -2.0, "evidence_high": -1.99, "elbo_error": 0.05}
            rows.append({**common, "kind": "psi", "arm": "psi", "step": step, "elbo": bound, **known})
        for unknown, coverage in ((0, 1.0), (1, 0.98), (2, columns.get("hard", 0.8))):
            found = {"unknown": unknown, "coverage": coverage, "problems": 100}
            rows.append({**common, "kind": "coverage", "arm": "rs_1", **found})
    for concave in (False, True):
        exact = {"lemma_error": 1e-15, "proposition_error": 1e-15, "smallest_gain": 1e-9}
        rates = {"smallest_slack": columns.get("slack", 1e-10), "largest_sum": 0.5}
        rows.append(
            {"task": "theory", "mixer": "", "seed": 0, "kind": "theory", "concave": concave}
            | {**exact, **rates, "largest_rate": columns.get("rate", 0.2) if concave else 5.0}
        )
    return pandas.DataFrame(rows)


@pytest.mark.parametrize("name", [claim.name for claim in CLAIMS])
def test_every_claim_holds_on_a_table_that_is_as_the_paper_says(name, judged):
    assert judged(name, made_up()).outcome == "supported"


@pytest.mark.parametrize(
    ("name", "table"),
    (
        ("gain", {"slack": -1e-6}),
        ("rate", {"rate": 1.5}),
        ("bound_rises", {"bound": -7.0}),
        ("bound_holds", {"bound": -1.0}),
        ("rejection", {"changes": {"rs_1": (0.8, 0.45, 0.4)}}),
        ("rounds", {"changes": {"rs_3": (0.99, 0.9, 0.1)}}),
        ("human", {"changes": {"theta": (0.95, 0.9, 0.1)}}),
        ("true_share", {"changes": {"rs_1": (0.5, 0.96, 0.4)}}),
        ("loss", {"changes": {"rs_1": (0.5, 0.45, 0.01)}}),
        ("second", {"changes": {"theta_2": (0.95, 0.9, 0.1)}}),
        ("dpo", {"changes": {"brite_dpo": (0.2, None, None)}}),
        ("coverage_falls", {"hard": 1.0}),
        ("ablation", {"covered": False}),
    ),
)
def test_a_claim_fails_where_it_should(name, table, judged):
    assert judged(name, made_up(**table)).outcome == "not supported"


def test_without_its_arms_nothing_is_answered(judged):
    table = made_up()
    assert judged("dpo", table[table["arm"] != "dpo"]).outcome == "inconclusive"
    for name in ("bound_rises", "bound_holds", "coverage_falls", "rejection"):
        assert judged(name, table[table["task"] != "hard"]).outcome == "inconclusive"
    assert judged("ablation", table[table["task"] != "easy"]).outcome == "inconclusive"
    assert judged("lemma", table[table["kind"] != "theory"]).outcome == "inconclusive"
