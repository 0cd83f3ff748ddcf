"""The generalisation tax: the paper's formulas and tables, episodes, GRPO, resuming, and the claims."""

import itertools
from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch

from flashlla.experiments.ood_agents import EXPERIMENT, effects, formulas, paper
from flashlla.experiments.ood_agents.arms import DESIGNS, DOSES, INITS, LINES, SUBTASKS, arms, needed_inits
from flashlla.experiments.ood_agents.claims import CLAIMS
from flashlla.experiments.ood_agents.domains import DOMAINS, Domains, episode_seeds
from flashlla.experiments.ood_agents.episodes import answer_grammar, play
from flashlla.experiments.ood_agents.finetuning import Texts, ends, finetune, join_texts, text_loss
from flashlla.experiments.ood_agents.grpo import Recipe, batches, episode_advantages, grpo_loss
from flashlla.experiments.ood_agents.measures import planning_complexity, similarities
from flashlla.experiments.ood_agents.run import PRESETS, Config, run, trials
from flashlla.experiments.ood_agents.study import Study, model_config
from flashlla.experiments.worlds import expert_turns, tokenizer
from flashlla.models import LanguageModel

SETTINGS = {"limits": (6, 6, 6, 6), "distance": (1, 4), "receptacles": (8, 8), "history": 0}

# ---- formulas, on the tables of the paper -----------------------------------------------------------


def test_ranking_scores_follow_from_the_tables_of_the_paper():
    second = formulas.ranking_scores(paper.PLAIN["V2"], tie=0.5)
    first = formulas.ranking_scores(paper.PLAIN["V1"], tie=0.5)
    assert second == paper.SCORES
    assert {name: first[name] + second[name] for name in first} == paper.SCORES_OF_BOTH


def test_printed_changes_follow_for_the_second_policy_and_not_for_the_first():
    found = paper.recomputed(paper.AUGMENTED)
    assert found["V2"] == pytest.approx(paper.CHANGES["V2"], abs=0.051)
    assert found["V1"] == {"house": 19.9, "shop": 22.0, "sokoban": 29.6}
    assert all(abs(found["V1"][name] - printed) > 10 for name, printed in paper.CHANGES["V1"].items())


def test_changes_from_the_initial_policy_follow():
    for (trained, tested), printed in paper.TRADE_OFF.items():
        for init, value in zip(("V1", "V2"), printed, strict=True):
            before, after = paper.BEFORE[init][tested], paper.PLAIN[init][trained][tested]
            assert 100 * formulas.relative_change([before], [after]) == pytest.approx(value, abs=0.06)


def test_printed_changes_without_thinking_cannot_follow():
    """No success is below 0, so that nothing falls by more than 100 %."""
    assert sum(printed < -100 for printed in paper.CHANGES_WITHOUT_THINKING) == 4
    found = paper.recomputed(paper.WITHOUT_THINKING)
    assert found["V1"] == {"house": -71.6, "shop": 10.2, "sokoban": -6.5}
    assert found["V2"] == {"shop": -29.6, "sokoban": -36.1, "lab": -22.0}


def test_ranks_tie_within_half_a_point_of_the_best_of_a_rank():
    assert formulas.ranks({"a": 0.5, "b": 0.496, "c": 0.494, "d": 0.1}) == {"a": 1, "b": 1, "c": 2, "d": 3}
    assert np.isnan(formulas.relative_change([0.0], [0.2]))
    assert formulas.nearest([0.1, 0.3, 0.2], 0.21) == 2 and formulas.nearest([0.25, 0.75], 0.5) == 0


# ---- episodes and supervised texts ------------------------------------------------------------------


def domains(**changes):
    return Domains(**{**SETTINGS, "thinking": False, **changes})


def make_model(seed=0, mixer="softmax"):
    torch.manual_seed(seed)
    return LanguageModel(model_config(mixer, 16, 1, 1)).eval()


def played(domain="sokoban", episodes=4, seeds=None, thinking=False, **options):
    env = domains(thinking=thinking).make(domain, episodes)
    seeds = episode_seeds(0, "test", episodes) if seeds is None else seeds
    return play(make_model(), env, seeds, torch.Generator().manual_seed(0), **options)


def test_only_admissible_actions_can_be_answered():
    reader = answer_grammar([["up", "left"], ["go to sofa 1", "go to sofa 2"]], think=False).reader()
    up, left, go = tokenizer().encode("up left go")
    assert [row.nonzero()[:, 0].tolist() for row in reader.allowed()] == [sorted((up, left)), [go]]


@pytest.mark.parametrize("domain", DOMAINS)
def test_an_episode_begins_where_the_expert_has_so_many_steps_to_go(domain):
    env = domains(distance=(3, 3)).make(domain, 8)
    turns = expert_turns(env, seed=0)
    assert len(turns) == 24 and all(turn.success for turn in turns)


@pytest.mark.parametrize("domain", DOMAINS)
def test_an_episode_is_what_its_turns_say(domain):
    found = played(domain)
    steps = torch.bincount(found.episode, minlength=4)
    assert torch.equal(steps, found.steps) and (steps <= 6).all()
    assert (found.success | (steps == 6)).all() or domain in ("shop", "lab")  # a wrong answer ends these
    for turn, prompt in enumerate(found.prompts):
        answer = tokenizer().decode(found.turns.taken[turn][found.turns.mask[turn]].tolist())
        assert answer == f"{found.actions[turn]}</action>"
        assert found.observations[turn] in prompt and "actions:" not in prompt
    text = found.transcript(1)
    assert text.startswith("task: ") and text.count("\n> ") == int(steps[1])
    assert text.endswith("success" if found.success[1] else "failure")


def test_a_scratchpad_comes_in_front_of_the_action():
    found = played(thinking=True)
    turn = int((found.episode == 0).nonzero()[0, 0])
    text = tokenizer().decode(found.turns.taken[turn][found.turns.mask[turn]].tolist())
    thought, action = text.split("</think><action>")
    assert thought and f"> {thought} / {action.removesuffix('</action>')}" in found.transcript(0)


def test_episodes_with_one_seed_begin_alike_and_are_played_alike_again():
    seeds = np.repeat(episode_seeds(0, "group", 2), 2)
    found, again = played(seeds=seeds), played(seeds=seeds)
    assert found.prompts[0] == found.prompts[1] != found.prompts[2]
    assert found.prompts == again.prompts and torch.equal(found.turns.taken, again.turns.taken)


@pytest.mark.parametrize("thinking", (False, True))
def test_texts_of_the_expert_are_learned_at_their_answers(thinking):
    env = domains(thinking=thinking).make("house", 3)
    texts, turns = Texts.of_expert(env, 0.3, seed=1), expert_turns(env, 0.3, labels="expert", seed=1)
    assert len(texts.tokens) == len(turns)
    for row, turn in enumerate(turns):
        answer = tokenizer().decode(texts.tokens[row][texts.answers[row]].tolist())
        opening = "<think>" if thinking else "<action>"
        assert f"{opening}{answer}" == turn.answer
        assert "actions:" not in tokenizer().decode(texts.tokens[row].tolist())


def test_texts_of_a_policy_are_its_answers():
    found = played()
    texts = Texts.of_policy(found.turns)
    assert torch.equal(texts.tokens[texts.answers], found.turns.taken[found.turns.mask])
    both = join_texts([texts, Texts.of_expert(domains().make("house", 1), 0.0, seed=0)])
    some = both.select(torch.arange(2))
    ends_of_some = (found.turns.lengths + found.turns.mask.sum(1))[:2]
    assert some.tokens.shape[1] == int(ends_of_some.max()) < both.tokens.shape[1]
    assert ends(both)[:2].tolist() == ends_of_some.tolist()


def test_sources_are_drawn_as_often_as_their_weights_say(tmp_path, monkeypatch):
    texts = [Texts(torch.full((5, 3), n), torch.tensor([[False, False, True]]).expand(5, -1)) for n in (1, 2)]
    drawn = []
    monkeypatch.setattr(
        "flashlla.experiments.ood_agents.finetuning.text_loss",
        lambda model, batch: drawn.append(batch.tokens[:, 0]) or text_loss(model, batch),
    )
    recipe = {"steps": 4, "learning_rate": 1e-3, "seed": 0}
    model, history = finetune(make_model(), texts, [3.0, 1.0], tmp_path, batch=500, **recipe)
    assert torch.cat(drawn).double().mean() == pytest.approx(1.25, abs=0.04)
    assert len(history.steps) == 4 and not model.training


# ---- GRPO -------------------------------------------------------------------------------------------

RECIPE = Recipe(
    draws=2, groups=2, samples=4, updates=2, states=64, learning_rate=1e-2, kl=0.01, evaluate_every=1
)


def with_success(success):
    found = played(episodes=8, seeds=np.repeat(episode_seeds(0, "group", 2), 4))
    return found._replace(success=torch.tensor(success))


def test_an_episode_is_compared_with_its_group():
    found = episode_advantages(torch.tensor([True, False, False, False, True, True, True, True]), 4)
    assert found[0] > 0 > found[1] == found[2] and (found[4:] == 0).all()
    assert found.sum() == pytest.approx(0, abs=1e-6)


def test_turns_without_an_advantage_are_left_out(generator):
    episodes = with_success([True, False, False, False, True, True, True, True])
    found = batches(episodes, make_model(), RECIPE, generator)
    assert len(found) == 2 and sum(len(b[1]) for b in found) == int(episodes.steps[:4].sum())
    assert all((advantages != 0).all() for _, advantages, _ in found)
    nothing = batches(with_success([False] * 8), make_model(), RECIPE, generator)
    assert sum(len(b[1]) for b in nothing) > 0 and all((b[1] == 0).all() for b in nothing)
    few = batches(episodes, make_model(), replace(RECIPE, states=2), generator)
    assert [len(b[1]) for b in few] == [2, 2]


def test_a_step_makes_what_led_to_success_more_likely(generator):
    model = make_model()
    episodes = with_success([True, False, False, False, True, True, True, True])
    (batch,) = batches(episodes, model, replace(RECIPE, updates=1), generator)
    loss = grpo_loss(model, *batch, kl=0.01)
    loss.backward()
    turns, _, reference = batch
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.01 * p.grad
        gained = grpo_loss(model, *batch, kl=0.0)
    assert gained < loss.detach()
    torch.testing.assert_close(reference, turns.log_probs, atol=1e-5, rtol=1e-4)


# ---- worlds -----------------------------------------------------------------------------------------


def test_failures_count_as_the_limit():
    found = played("shop")._replace(
        success=torch.tensor([True, True, False, False]), steps=torch.tensor([2, 4, 3, 6])
    )
    assert planning_complexity(found, 10) == (2 + 4 + 10 + 10) / 4


def test_similar_texts_are_similar():
    texts = {"a": ["red box here", "red box there"], "b": ["red box"], "c": ["up and down"]}
    found = similarities(texts)
    assert found["a", "b"] == found["b", "a"] > 0.5 and found["a", "c"] == 0
    assert len(found) == 6


# ---- trials -----------------------------------------------------------------------------------------


def test_trials_are_mixers_with_their_designs():
    more = dict.fromkeys(("thinking_mixer", "ablation_mixer", "factorial_mixer"), ("softmax",))
    config = Config(**more, seeds=1)
    found = [(t.mixer, t.thinking, t.designs, t.inits, t.augmented) for t in trials(config)]
    worlds = ("house", "shop", "sokoban")
    assert found == [
        ("lla", False, ("plain",), ("V1",), worlds),
        ("softmax", False, ("plain", "augmented"), ("V1", "V2"), worlds),
        ("softmax", True, ("plain",), ("V1",), worlds),
        ("softmax", False, ("controls", "doses"), ("V1",), ("sokoban",)),
        ("softmax", False, ("factorial",), ("V1",), worlds),
    ]


def test_arms_of_all_designs():
    trial = next(trials(Config(seeds=1)))
    found = arms(replace(trial, designs=tuple(DESIGNS), inits=INITS))
    assert len({arm.name for arm in found}) == len(found) == 8 + 6 + 12 + len(DOSES) + 4
    assert needed_inits(found) == ("V1", "V2")
    only = arms(replace(trial, designs=("plain",), inits=("V1",)))
    assert {arm.init for arm in only} == {"V1"} and needed_inits(only) == ("V1",)
    assert {(a.lines, a.subtasks) for a in found if a.lines is not None} == set(
        itertools.product(LINES, SUBTASKS)
    )
    kinds = {arm.variant: arm.augmentation and arm.augmentation.kind for arm in found}
    assert kinds["plain"] is None and kinds["noise"] == "noise" and kinds["dose_4"] == "distractors"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    (
        ({"extra_mixer": ("mamba2",)}, "extra_mixer 'mamba2' must be among mixer="),
        ({"designs": ("factorial",)}, "designs 'factorial' is unknown"),
        ({"inits": ("V3",)}, "inits 'V3' is unknown"),
        ({"inits": ()}, "inits='' must name at least one"),
        ({"samples": 1}, "samples=1 must be at least 2"),
        ({"noise": 2.0}, "noise=2.0 must lie between 0 and 1"),
        ({"rate": 0.0}, "rate=0.0 must be positive"),
        ({"distance": (5, 3)}, "distance=.5, 3. must be two numbers"),
        ({"limits": (24, 12, 100, 24)}, "max_steps=100 must be 1 to 99"),
        ({"heads": 5}, "heads"),
    ),
)
def test_wrong_values_are_told_in_one_line(changes, complaint, refused):
    refused(Config, changes, complaint)


def test_a_trial_that_was_killed_gives_the_same_rows(tmp_path, monkeypatch):
    (first, *_) = trials(PRESETS["smoke"])
    changes = {
        "mixer": "softmax",
        "designs": ("plain",),
        "inits": ("V1", "V2"),
        "draws": 2,
        "evaluate_every": 1,
    }
    trial = replace(first, **changes)

    def rows(folder):
        spent = dict.fromkeys(("training_seconds", "peak_megabytes", "steps_per_second"), 0.0)
        return [{**row, **spent} for row in run(trial, tmp_path / folder)]

    whole, asked, measure = rows("whole"), [], Study._success

    def stop(study, policy):
        asked.append(policy)
        if len(asked) == 6:  # the first arm is done, and half of the second
            raise KeyboardInterrupt
        return measure(study, policy)

    with monkeypatch.context() as patch:
        patch.setattr(Study, "_success", stop)
        with pytest.raises(KeyboardInterrupt):
            rows("parts")
    assert rows("parts") == whole
    assert not {name for row in whole for name in row} & set(vars(trial))
    table = pandas.DataFrame([{**vars(trial), "trial": "a", **row} for row in whole])
    assert set(table["kind"]) == {"arm", "domain", "similarity", "episode"}
    assert len(EXPERIMENT.summary(table)) == 2 + 2
    assert len(effects.reported(table)) == 2 * len(DOMAINS)


# ---- claims -----------------------------------------------------------------------------------------

RICH = {"house": 500.0, "shop": 600.0, "sokoban": 900.0, "lab": 1000.0}
MADE_UP = {
    "gain": 0.3,  # in domain
    "lost": {"house": 0.12, "shop": 0.09, "sokoban": 0.06, "lab": 0.03},  # out of domain, by training world
    "bonus": {"augmented": 0.04, "paraphrase": 0.0, "noise": 0.0, "longer": -0.02, "higher_kl": 0.01},
    "dose": {0.5: 0.02, 2.0: 0.05, 4.0: -0.02},
    "gain_4": -0.2,  # in-domain change at the largest dose
    "covered": 0.5,  # of the loss that is left from V2
    "uncovered": 2.0,
    "quiet": 0.03,  # lost without a scratchpad
    "quiet_gain": 0.0,
    "augmented_gain": 0.0,
    "lines": 0.03,
    "subtasks": 0.02,
    "alike": -1,  # sign of how similarity goes with transfer
    "order": 1,  # of the losses at matched gains
}


def arm_rows(common, about, losses, gain, step=10, reported=True, bonus=0.0):
    rows = []
    for domain in DOMAINS:
        inside = domain == about["trained"]
        success = 0.4 + (gain if inside else bonus - losses[domain])
        found = {"step": step, "final": reported, "domain": domain, "success": success, "steps": 5.0}
        rows.append({**common, "kind": "arm", **about, **found, "steps_per_second": 100.0})
    return rows


def made_up(**changes):
    """A table with three seeds, with and without scratchpad."""
    values = {**MADE_UP, **changes}
    rows = []
    for mixer, seed, thinking in itertools.product(("softmax",), range(3), (False, True)):
        common = {"mixer": mixer, "seed": seed, "thinking": thinking, "trial": f"{mixer} {seed} {thinking}"}
        for init in ("V1", "V2"):
            start = {"init": init, "trained": "", "variant": "initial"}
            rows += arm_rows(common, start, dict.fromkeys(DOMAINS, 0.0), 0.0, step=0)
            for trained in DOMAINS:
                rows += runs_of(common, init, trained, values)
        for domain, richness in RICH.items():
            found = {"init": "V2", "domain": domain, "richness": richness, "bare_richness": richness}
            rows.append({**common, "kind": "domain", **found, "length": richness / 20})
            for other in set(DOMAINS) - {domain}:
                alike = 0.5 + values["alike"] * richness / 5000
                pair = {"domain": domain, "other": other, "similarity": alike}
                rows.append({**common, "kind": "similarity", "init": "V2", **pair})
        if not thinking:
            start = {"init": "V1", "trained": "", "variant": "initial"}  # of a trial with ablations
            own = {**common, "trial": f"{mixer} {seed} ablations"}
            rows += arm_rows(own, start, dict.fromkeys(DOMAINS, 0.0), 0.0, step=0)
            rows += factorial_rows({**common, "trial": f"{mixer} {seed} factorial"}, values)
    table = pandas.DataFrame(rows)
    noise = np.random.default_rng(0).normal(size=len(table)) * 1e-4
    return table.assign(success=table["success"] + noise)


def runs_of(common, init, trained, values):
    """Plain arms at two evaluations, augmented ones, and for V1 controls and doses."""
    factors = {
        d: values["uncovered" if d == "sokoban" else "covered"] if init == "V2" else 1 for d in DOMAINS
    }
    quiet = 0.0 if common["thinking"] else values["quiet"]
    losses = {d: (values["lost"][trained] + quiet) * factors[d] for d in DOMAINS}
    gain = values["gain"] + (0.0 if common["thinking"] else values["quiet_gain"])
    about = {"init": init, "trained": trained}
    early = {d: values["order"] * loss / 2 for d, loss in losses.items()}
    rows = arm_rows(common, {**about, "variant": "plain", "dose": 0.0}, early, gain / 2, 5, False)
    late = gain if trained != "house" else 0.45 * gain  # the common gain is at the first evaluation
    rows += arm_rows(common, {**about, "variant": "plain", "dose": 0.0}, losses, late)
    for variant, bonus in values["bonus"].items():
        if trained == "lab" or (variant != "augmented" and init == "V2"):
            continue
        dose = {"dose": 1.0} if variant == "augmented" else {}
        more = late + (values["augmented_gain"] if variant == "augmented" else 0.0)
        rows += arm_rows(common, {**about, "variant": variant, **dose}, losses, more, bonus=bonus)
    if init == "V1" and trained == "sokoban":
        for dose, bonus in values["dose"].items():
            more = late + (values["gain_4"] if dose == 4 else 0.0)
            variant = {"variant": f"dose_{dose:g}", "dose": dose}
            rows += arm_rows(common, {**about, **variant}, losses, more, bonus=bonus)
    return rows


def factorial_rows(common, values):
    start = {"init": "V1", "trained": "", "variant": "initial"}
    rows = arm_rows(common, start, dict.fromkeys(DOMAINS, 0.0), 0.0, step=0)
    for lines, subtasks in itertools.product(LINES, SUBTASKS):
        bonus = values["lines"] * (lines > 0) + values["subtasks"] * (subtasks > 1)
        about = {"init": "V1", "trained": "house", "variant": f"lines_{lines}_subtasks_{subtasks}"}
        cell = {**about, "lines": lines, "subtasks": subtasks}
        rows += arm_rows(common, cell, dict.fromkeys(DOMAINS, 0.1), 0.2, bonus=bonus)
    return rows


@pytest.fixture(scope="module")
def as_claimed():
    return made_up()


@pytest.mark.parametrize("name", [claim.name for claim in CLAIMS])
def test_every_claim_holds_on_a_table_that_is_as_the_paper_says(name, as_claimed, judged):
    verdict = judged(name, as_claimed)
    assert verdict.outcome == "supported", verdict


BONUS = MADE_UP["bonus"]


@pytest.mark.parametrize(
    ("name", "changes"),
    (
        ("1_gain", {"gain": -0.1}),
        ("1_tax", {"lost": dict.fromkeys(DOMAINS, -0.1)}),
        ("2_predictors", {"lost": {"house": 0.03, "shop": 0.06, "sokoban": 0.09, "lab": 0.12}}),
        ("3_abstract", {"lost": {"house": 0.03, "shop": 0.09, "sokoban": 0.12, "lab": 0.03}}),
        ("4_augmentation", {"bonus": {**BONUS, "augmented": -0.04}}),
        ("4_unchanged", {"augmented_gain": -0.1}),
        ("5_rise", {"bonus": {**BONUS, "augmented": -0.04}, "dose": {0.5: -0.02, 2.0: -0.02, 4.0: 0.0}}),
        ("5_fall", {"gain_4": 0.1}),
        ("6_covered", {"covered": 2.0}),
        ("6_uncovered", {"uncovered": 0.5}),
        ("7_gain", {"quiet_gain": 0.2}),
        ("7_transfer", {"quiet": -0.03}),
        ("8_matched", {"order": -1}),
        ("factorial_lines", {"lines": -0.03}),
        ("factorial_subtasks", {"subtasks": -0.02}),
        ("control_paraphrase", {"bonus": {**BONUS, "paraphrase": 0.1}}),
        ("control_higher_kl", {"bonus": {**BONUS, "higher_kl": 0.1}}),
    ),
)
def test_a_claim_fails_where_it_should(name, changes, judged):
    verdict = judged(name, made_up(**changes))
    assert verdict.outcome == "not supported", verdict


def test_without_its_arms_nothing_is_answered(as_claimed):
    """Of plain arms in two worlds nothing follows but the third claim and the trade-off."""
    arms = as_claimed["variant"].isin(("initial", "plain")) & as_claimed["trained"].isin(("", "house"))
    table = as_claimed[arms & ~as_claimed["thinking"].astype(bool)]
    for claim in CLAIMS:
        if not claim.name.startswith("6"):
            verdict = claim.judge(table)
            assert verdict.outcome == "inconclusive" and verdict.unit == "", claim.name


def test_figures_and_summary_of_all_designs(as_claimed):
    figures = EXPERIMENT.figures(as_claimed)
    assert set(figures) == {"transfer", "training", "augmentation", "doses", "factorial"}
    assert all(figure.get_figwidth() <= 11.8 for figure in figures.values())
    assert {"Delta_ID", "OOD", "score"} <= set(EXPERIMENT.summary(as_claimed))
