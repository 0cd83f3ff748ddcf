"""BARL: weights and values, triplets, exact trees and gradients, sums, and claims on made-up tables."""

import itertools
from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch
from scipy.optimize import minimize

from flashlla.experiments.barl import answers, arithmetic, exploration, gradients, trees
from flashlla.experiments.barl.chance import run_probability
from flashlla.experiments.barl.claims import BARL, BLIND, CLAIMS, WIDE, correlation, tokens_needed
from flashlla.experiments.barl.measures import episode_text, measures
from flashlla.experiments.barl.model import model_config
from flashlla.experiments.barl.objectives import ARMS, first_values, fixed_values, repeated_values
from flashlla.experiments.barl.posterior import answer_values, bayes_values, posterior_weights
from flashlla.experiments.barl.results import transcript
from flashlla.experiments.barl.run import MAIN, PRESETS, Config, trials
from flashlla.experiments.barl.triplets import REPEATS, TRIPLETS, completions, floor, until_first
from flashlla.models import LanguageModel

# ---- weights and values -----------------------------------------------------------------------------


def test_weights_are_what_the_formula_says(generator):
    prior = torch.rand(4, 1, generator=generator)
    observed, hypothesised = torch.rand(6, generator=generator), torch.rand(4, 6, generator=generator)
    found = posterior_weights(prior.log(), observed, hypothesised, beta=0.7)
    for t in range(6):
        errors = [sum(abs(observed[s] - hypothesised[i, s]) for s in range(t)) for i in range(4)]
        raw = torch.stack([prior[i, 0] * torch.exp(-0.7 * torch.as_tensor(errors[i])) for i in range(4)])
        torch.testing.assert_close(found[:, t], raw / raw.sum())


def test_a_reward_counts_behind_its_step():
    observed = torch.zeros(3)
    hypothesised = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    found = posterior_weights(torch.zeros(2, 3), observed, hypothesised, beta=2.0)
    refuted = 1 / (1 + np.exp(2.0))
    torch.testing.assert_close(found[0], torch.tensor([0.5, 0.5, refuted], dtype=torch.float32))
    blind = posterior_weights(torch.zeros(2, 3), observed, hypothesised, beta=0.0)
    assert (blind == 0.5).all()


def test_values_are_weighted_returns(generator):
    weights, returns = torch.rand(2, 3, 5, generator=generator), torch.rand(2, 3, 5, generator=generator)
    torch.testing.assert_close(bayes_values(weights, returns), torch.einsum("bht,bht->bt", weights, returns))


def test_answers_are_valued_by_progress_and_outcome():
    p = torch.tensor([[0.2, 0.5, 0.9], [0.6, 0.3, 0.1], [0.0, 0.0, 0.0]])  # true, other, none
    right = torch.tensor(1.0)
    torch.testing.assert_close(answer_values(p, right, None), torch.tensor([0.7 + 1, 0.4 + 1]))
    first = (0.2 * 0.7 + 0.6 * -0.5) / 0.8
    kept = np.exp(-abs(-0.3 - 0.3))  # consistency of the other answer behind the first part
    second = (0.5 * 0.4 + kept * 0.3 * -0.2) / (0.5 + kept * 0.3)
    torch.testing.assert_close(
        answer_values(p, right, 1.0), torch.tensor([first + 1, second + 1], dtype=torch.float32)
    )


# ---- triplets ---------------------------------------------------------------------------------------


def test_completions_and_ends_by_hand():
    actions = torch.tensor([[0, 0, 0, 0, 1, 1, 1]])
    found = completions(actions, REPEATS)[0]
    assert found.int().tolist() == [[0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1], [0] * 7]
    assert until_first(found).sum(1).tolist() == [3, 7, 7]
    assert completions(actions, TRIPLETS).sum((1, 2)).tolist() == [5]  # one triplet ends at every place


def test_the_floor_is_that_of_all_texts():
    texts = torch.tensor(list(itertools.product(range(3), repeat=9)))
    shares = completions(texts, REPEATS).any(2).double().mean(0)
    np.testing.assert_allclose(shares, floor(9), rtol=1e-12)
    assert floor(29) == pytest.approx(0.52, abs=0.01)


def test_runs_against_a_recursion():
    def brute(chances, row, left):
        if left == 0:
            return 0.0
        ahead = 1.0 if row + 1 == len(chances) else brute(chances, row + 1, left - 1)
        return chances[row] * ahead + (1 - chances[row]) * brute(chances, 0, left - 1)

    for chances in ((0.3,), (0.5, 0.2), (0.4, 0.9, 0.6)):
        assert run_probability(chances, 7) == pytest.approx(brute(chances, 0, 7))


def signal(name, prompts, actions):
    generator = torch.Generator().manual_seed(0)
    return ARMS[name].signal(torch.tensor(prompts), torch.tensor(actions), generator)


def test_outcomes_and_progress_by_hand():
    actions = [[1, 0, 1, 1, 1, 0], [0, 0, 1, 1, 2, 2]]
    found = signal("reinforce", [1, 1], actions)
    assert found.mask.tolist() == [[True] * 5 + [False], [True] * 6]
    assert found.values.tolist() == [[1, 1, 1, 1, 1, 0], [0] * 6]
    found = signal("progress", [1, 1], actions).values
    matched = [[0, 1, 0, 1, 2], [0, 0, 0, 1, 2, 0]]  # of the pattern, in front of each token
    torch.testing.assert_close(found[0, :5], 2 - torch.tensor(matched[0]) / 3)
    torch.testing.assert_close(found[1], -torch.tensor(matched[1]) / 3)
    assert found[0, 5] == 0


def test_hypotheses_pay_each_time_or_once():
    actions = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 0, 0, 0]])
    found = completions(actions, REPEATS)
    true = found[:, 1]
    sure = repeated_values(true, found, beta=50.0)
    assert sure.mask.sum() == 7  # the episode ends with 111
    expected = (
        torch.tensor([5, 5, 5, 3, 3, 3, 3]) / 6
    )  # a third for 000, nothing for it again, a half for 111
    torch.testing.assert_close(sure.values[0, :7], expected)
    fixed = fixed_values(true, found, beta=50.0)
    torch.testing.assert_close(fixed.values[0, :7], torch.tensor([2, 2, 2, 1, 1, 1, 1]) / 2)  # 000 pays twice
    for values in (repeated_values, fixed_values):
        blind = values(true, found, beta=0.0).values[0]
        torch.testing.assert_close(blind, torch.tensor([3, 3, 3, 2, 1, 1, 1, 0, 0, 0]) / 3)
    once = first_values(true, found, beta=0.0)
    assert once.mask.all()
    torch.testing.assert_close(once.values[0, :8], torch.tensor([2, 2, 2, 1, 1, 1, 1, 0]) / 3)


def test_the_target_of_meta_learning_has_nothing_to_do_with_the_prompt(generator):
    actions = torch.zeros(300, 3, dtype=torch.int64)
    values = signal("meta", [2] * 300, actions.tolist()).values[:, 0]
    assert values.mean() == pytest.approx(1 / 3, abs=0.1)


def test_measures_by_hand():
    actions = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 2, 2, 2], [2, 2, 2, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]])
    found = measures(2, actions)
    assert found["success"] == 1 and found["success_9"] == 0.5
    assert found["steps"] == (13 + 3) / 2
    assert found["distinct_per_9"] == pytest.approx(9 * 4 / 16)
    assert found["retests"] == 1.0  # 0000 and the second 000 of the first
    assert found["switches"] == 1.5  # 000 111 000 222, and none
    assert found["switch_variance"] == 2.25 and found["switch_success"] == 0
    assert found["bayes_value"] == 1
    assert episode_text(2, actions[1]) == "222" and episode_text(2, actions[0]) == "0000111000222"
    lost = measures(1, actions[:1, :4])
    assert lost["success"] == 0 and lost["steps"] is None and lost["bayes_value"] == pytest.approx(1 / 3)


def test_correlations_of_pooled_texts(generator):
    switches = torch.randint(4, (3, 50), generator=generator).double()
    success = (torch.rand(3, 50, generator=generator) < 0.3 + 0.1 * switches).double()
    rows = [
        {
            "switches": x.mean().item(),
            "switch_variance": x.var(correction=0).item(),
            "success": y.mean().item(),
            "switch_success": ((x - x.mean()) * y).mean().item(),
        }
        for x, y in zip(switches, success, strict=True)
    ]
    expected = np.corrcoef(switches.flatten(), success.flatten())[0, 1]
    assert correlation(pandas.DataFrame(rows)) == pytest.approx(expected)


# ---- exact: trees and gradients ---------------------------------------------------------------------


def walked(paths, known, place, left):
    """Return of the best policy that remembers which paths can still be the hidden one: the most that comes
    of any branch, over paths that are alike likely.
    """
    if left == 0:
        return 0.0
    best = 0.0
    for branch in {path[len(place)] for path in known}:
        here = (*place, branch)
        right = tuple(path for path in known if path[: len(here)] == here)
        wrong = tuple(path for path in known if path[: len(here)] != here)
        total = 0.0
        if right:
            depth = len(right[0])
            value = 1.0 if len(here) == depth else walked(paths, right, here, left - 1)
            total += len(right) / len(known) * value
        if wrong:
            total += len(wrong) / len(known) * walked(paths, wrong, (), left - 1)
        best = max(best, total)
    return best


@pytest.mark.parametrize(("children", "depth"), ((2, 1), (4, 1), (2, 2), (3, 2)))
def test_the_adaptive_return_by_enumeration_of_paths(children, depth):
    paths = tuple(itertools.product(range(children), repeat=depth))
    enough = trees.horizon(children, depth)
    for steps in range(1, enough + 1):
        assert trees.adaptive_return(children, depth, steps) == pytest.approx(walked(paths, paths, (), steps))
    assert trees.adaptive_return(children, depth, enough) == 1
    assert trees.adaptive_return(children, depth, enough - 1) < 1


def memoryless(logits, depth):
    """Mean return over the hidden paths in a binary tree; logits are those of its nodes, level by level."""
    chances = 1 / (1 + np.exp(-np.asarray(logits)))
    steps, total = trees.horizon(2, depth), 0.0
    for path in itertools.product((0, 1), repeat=depth):
        node, taken = 0, []
        for branch in path:
            taken.append(chances[node] if branch else 1 - chances[node])
            node = 2 * node + 1 + branch
        total += run_probability(taken, steps)
    return total / 2**depth


@pytest.mark.parametrize("depth", (1, 2, 3))
def test_no_memoryless_policy_is_better_than_chance(depth):
    nodes = 2**depth - 1
    best = trees.stochastic_return(2, depth)
    assert memoryless(np.zeros(nodes), depth) == pytest.approx(best)
    assert memoryless(np.full(nodes, 50.0), depth) == pytest.approx(trees.deterministic_return(2, depth))
    starts = np.random.default_rng(0).normal(scale=2, size=(4, nodes))
    found = max(-minimize(lambda x: -memoryless(x, depth), start).fun for start in starts)
    assert found == pytest.approx(best, abs=1e-6)
    assert best <= trees.memoryless_bound(2, depth)


def test_arms_have_their_closed_form():
    for arms in (2, 5, 10):
        assert trees.horizon(arms, 1) == arms
        assert trees.stochastic_return(arms, 1) == pytest.approx(1 - (1 - 1 / arms) ** arms)
        assert trees.deterministic_return(arms, 1) == 1 / arms


@pytest.mark.parametrize("seed", range(3))
def test_blind_barl_is_reinforce_with_less_variance(seed):
    found = gradients.compare(seed)
    assert max(found["barl_error"], found["reinforce_error"]) < 1e-6
    assert found["barl_variance"] < 0.9 * found["reinforce_variance"]


def test_gradients_of_texts_are_scores():
    """The mean score is zero, and the gradient of the success that of finite differences."""
    policy = gradients.Policy(0)
    chances = policy.log_probs(policy.logits).sum(1).exp()
    assert chances.sum().item() == pytest.approx(1)
    ones = torch.ones(len(policy.texts), gradients.STEPS, dtype=torch.float64)
    assert (chances @ policy.gradients(ones)).abs().max() < 1e-12
    success = torch.arange(len(policy.texts)).double()
    shift = torch.zeros_like(policy.logits)
    shift[3, 1] = 1e-6
    ends = [policy.log_probs(policy.logits + s).sum(1).exp() @ success for s in (shift, -shift)]
    slope = (ends[0] - ends[1]) / 2e-6
    assert policy.exact_gradient(success).view_as(shift)[3, 1].item() == pytest.approx(slope.item(), rel=1e-6)


# ---- sums -------------------------------------------------------------------------------------------


def test_sums_are_right_and_texts_go_on_from_what_they_say(generator):
    given = arithmetic.problems(200, 3, generator)
    tokens, mask = arithmetic.texts(given, generator)
    start = given.prompts.shape[1]
    assert tokens.shape == (200, start + arithmetic.longest(3)) and mask.shape[1] == arithmetic.longest(3)
    shares = []
    for row, result in zip(tokens, given.results, strict=True):
        prompt, thought = arithmetic.as_text(row).split("=")
        number, *operations = (
            prompt.replace(" ", "").replace("+", " +").replace("-", " -").replace("*", " *").split()
        )
        steps, said = thought.split("so")
        state = true = int(number)
        for operation, step, expected in zip(operations, steps.split(";")[:-1], result.tolist(), strict=True):
            true = eval(f"{true} {operation}") % 100
            assert true == expected
            first, *again = (int(text) for text in step.split("wait"))
            right = eval(f"{state} {operation}") % 100
            assert not again or (again == [right] and first != right)
            shares.append((first == right, bool(again)))
            state = again[0] if again else first
        assert int(said.strip(" .")) == state
    correct, corrected = np.mean(shares, 0)
    assert correct == pytest.approx(1 - arithmetic.WRONG, abs=0.06)
    assert corrected == pytest.approx(arithmetic.WRONG * arithmetic.CORRECTED, abs=0.05)


def sum_model(seed=0):
    torch.manual_seed(seed)
    return LanguageModel(model_config(arithmetic.VOCABULARY, "softmax", 16, 1, 1)).eval()


def sampled(generator, operations=2, prompts=3, samples=4):
    problem = arithmetic.problems(prompts, operations, generator)
    out = answers._sampled(sum_model(), problem, samples, generator)
    return problem, out


def test_plausibility_is_the_mean_of_both_digits(generator):
    model = sum_model()
    tokens = torch.randint(10, (2, 7), generator=generator)
    ends, numbers = torch.tensor([7, 4]), torch.tensor([[31, 5], [99, -1]])
    found = answers.plausibilities(model, tokens, ends, numbers)
    for row, column in ((0, 0), (0, 1), (1, 0)):
        number = int(numbers[row, column])
        text = [*tokens[row, : ends[row]].tolist(), arithmetic.END, number // 10, number % 10]
        with torch.no_grad():
            log_p = model(torch.tensor([text]))[0].log_softmax(-1)
        mean = (log_p[-3, text[-2]] + log_p[-2, text[-1]]) / 2
        assert found[row, column].item() == pytest.approx(mean.exp().item(), rel=1e-5)
    assert found[1, 1] == 0


def test_reading_and_candidates():
    from flashlla.models.rl import Rollout

    end, stop = arithmetic.END, arithmetic.STOP
    taken = torch.tensor(
        [[1, 2, end, 4, 5, stop], [end, 7, stop, 0, 0, 0], [1, 2, 3, 4, 5, end], [3, stop, 0, 0, 0, 0]]
    )
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3, [True] * 6, [True] * 2 + [False] * 4])
    found = answers.read(Rollout(taken, 0, mask, mask))
    assert found.answers.tolist() == [45, -1, -1, -1]
    assert found.lengths.tolist() == [2, 0, 5, 2]
    made = answers.candidates(torch.tensor([[7, 3, 3, -1]]), torch.tensor([7]))
    assert made.tolist() == [[7, 3, -1, -1, -1]]


def test_values_are_constant_in_a_part_and_the_outcome_behind_the_thought(generator):
    problem, out = sampled(generator)
    thoughts = answers.read(out)
    for beta in (None, 1.0):
        values = answers.token_values(sum_model(), out, thoughts, problem, chunk=2, beta=beta)
        assert values.shape == out.mask.shape and torch.isfinite(values).all()
        right = (thoughts.answers == problem.answers.repeat_interleave(4)).float()
        for row, length in enumerate(thoughts.lengths.tolist()):
            assert (values[row, length:] == right[row]).all()
            inside = values[row, : length - length % 2].view(-1, 2)
            assert (inside[:, 0] == inside[:, 1]).all()


def test_passing_in_k_tries_by_enumeration():
    right = np.array([0, 2, 5])
    found = answers.pass_at(right, 5, 2)
    for count, share in zip(right, found, strict=True):
        tries = [i < count for i in range(5)]
        pairs = [any(pair) for pair in itertools.combinations(tries, 2)]
        assert share == pytest.approx(np.mean(pairs))


# ---- interruptions ----------------------------------------------------------------------------------


def without_times(rows):
    frame = pandas.DataFrame(rows)
    times = ["training_seconds", "peak_megabytes", "environment_steps_per_second"]
    return frame.drop(columns=[name for name in times if name in frame])


def interrupted(monkeypatch, module, name, calls):
    """Let a function of a module stop the run at one of its calls."""
    real, seen = getattr(module, name), []

    def stop(*args):
        seen.append(None)
        if len(seen) == calls:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, name, stop)


@pytest.mark.parametrize(("task", "name", "calls"), (("triplets", "draw", 4), ("sums", "_advantages", 3)))
def test_a_run_that_was_interrupted_ends_where_it_would_have(task, name, calls, monkeypatch, tmp_path):
    module = {"triplets": exploration, "sums": answers}[task]
    monkeypatch.setattr(answers, "ARMS", ("answer_barl",))
    config = replace(PRESETS["smoke"], updates=6, every=2, answer_draws=4, horizon=9, base_steps=4)
    trial = next(t for t in trials(config) if t.task == task)
    whole = module.learn(trial, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted(patch, module, name, calls)
        module.learn(trial, tmp_path / "parts")
    again = module.learn(trial, tmp_path / "parts")
    pandas.testing.assert_frame_equal(without_times(again), without_times(whole))


# ---- configurations ---------------------------------------------------------------------------------


def test_trials_are_mixers_with_their_arms_sums_and_what_is_exact():
    config = Config(mixer=("softmax", "lla"), side_mixer=("lla",), answer_mixer=("softmax",), seeds=2)
    found = [(t.task, t.mixer, t.arm, t.seed) for t in trials(config)]
    expected = [
        row
        for seed in range(2)
        for row in (
            *(("triplets", "softmax", arm, seed) for arm in MAIN),
            *(("triplets", "lla", arm, seed) for arm in ARMS),
            ("sums", "softmax", "", seed),
        )
    ]
    assert found == [*expected, ("exact", "", "", 0)]
    assert {BARL, BLIND, WIDE, *MAIN} <= set(ARMS)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    (
        ({"side_mixer": ("mamba2",)}, "side_mixer 'mamba2' is unknown"),
        ({"answer_mixer": ("magic",)}, "answer_mixer 'magic' is unknown"),
        ({"horizon": 8}, "horizon=8 must be at least 9"),
        ({"episodes": 5}, "episodes=5 must be even"),
        ({"samples": 1}, "samples=1 must be at least 2"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be positive"),
        ({"heads": 5}, "heads"),
    ),
)
def test_wrong_values_are_told_in_one_line(changes, complaint, refused):
    refused(Config, changes, complaint)


# ---- claims -----------------------------------------------------------------------------------------

SUCCESS = {  # on seen prompts and on the unseen one
    "reinforce": (1.0, 0.5),
    "meta": (1.0, 0.97),
    BLIND: (0.0, 1.0),
    BARL: (1.0, 0.97),
    WIDE: (0.6, 0.5),
}


def made_up(**columns):
    """A table that is as the paper says, but for what ``columns`` say."""
    rows = []
    success = {**SUCCESS, **columns.get("success", {})}
    same = {"dim": 64, "depth": 2, "heads": 2, "episodes": 128, "learning_rate": 0.01, "horizon": 29}
    for mixer, seed, arm in itertools.product(("softmax", "lla"), range(3), success):
        common = {"mixer": mixer, "seed": seed, "arm": arm, "every": 10}
        common |= {**same, "updates": columns.get("updates", 100) if arm == BARL else 100}
        for prompt in range(3):
            tests = {
                "retests": 8.0 if arm == BLIND else columns.get("retests", 0.5),
                "bayes_value": columns.get("value", 0.95),
            }
            chance = success[arm][prompt == 2] - 0.001 * seed
            switches = {
                "switches": columns.get("slope", 0.0) * chance,
                "switch_variance": 0.02,
                "switch_success": 0.0,
            }
            found = {"prompt": prompt, "unseen": prompt == 2, "success": chance, "parameters": 1000}
            rows.append({**common, "kind": "prompt", **found, **tests, **switches})
        when = columns.get("when", {BARL: 40, WIDE: 200}).get(arm, 20)
        for step in (0, 20, 40, 100):
            rows.append({**common, "kind": "curve", "step": step, "seen": float(step >= when)})
    for mixer, seed, arm in itertools.product(("softmax", "lla"), range(3), ("base", *answers.ARMS)):
        common = {"mixer": mixer, "seed": seed, "arm": arm}
        length = {"answer_barl": columns.get("tokens", 10.0)}.get(arm, 20.0) + seed
        for k, passed in ((1, 0.5), (2, 0.7), (4, 0.8)):
            rows.append({**common, "kind": "pass", "k": k, "passed": passed, "tokens": k * length})
        found = {"success": 0.5 + 0.1 * (arm != "base"), "switches": 1.0, "switch_variance": 1.0}
        rows.append({**common, "kind": "answers", **found, "switch_success": columns.get("waits", 0.01)})
    for depth, other in ((1, 0.75), (2, 0.6), (3, columns.get("memoryless", 0.4))):
        tree = {"children": 2, "depth": depth, "adaptive": 1.0, "stochastic": other, "bound": other}
        rows.append({"kind": "tree", "mixer": "", "seed": 0, **tree})
    variances = {"barl_variance": columns.get("variance", 0.5), "reinforce_variance": 1.0}
    errors = {"barl_error": columns.get("error", 1e-9), "reinforce_error": 1e-9}
    rows.append({"kind": "gradient", "mixer": "", "seed": 0, **errors, **variances})
    rows.append({"kind": "floor", "mixer": "", "seed": 0, "arm": "random", "success": 0.52})
    return pandas.DataFrame(rows)


@pytest.mark.parametrize("name", [claim.name for claim in CLAIMS])
def test_every_claim_holds_on_a_table_that_is_as_the_paper_says(name, judged):
    assert judged(name, made_up()).outcome == "supported"


@pytest.mark.parametrize(
    ("name", "table"),
    (
        ("adapts", {"success": {BARL: (1.0, 0.7)}}),
        ("tries_all", {"value": 0.4}),
        ("memorises", {"success": {"reinforce": (1.0, 0.9)}}),
        ("prior", {"when": {BARL: 100, WIDE: 40}}),
        ("retests", {"retests": 9.0}),
        ("collapse", {"success": {BLIND: (0.9, 1.0)}}),
        ("ratio", {"memoryless": 0.7}),
        ("mean", {"error": 1e-3}),
        ("variance", {"variance": 1.5}),
        ("same", {"updates": 200}),
        ("meta", {"success": {"meta": (1.0, 0.7)}}),
        ("tokens_grpo", {"tokens": 30.0}),
        ("tokens_progress", {"tokens": 30.0}),
        ("switches", {"slope": 10.0}),
        ("waits", {"waits": 0.4}),
    ),
)
def test_a_claim_fails_where_it_should(name, table, judged):
    assert judged(name, made_up(**table)).outcome == "not supported"


def test_without_its_rows_nothing_is_answered(judged):
    table = made_up()
    exact = table[table["kind"].isin(("tree", "gradient", "floor"))]
    learned = table[~table["kind"].isin(("tree", "gradient", "floor"))]
    for claim in CLAIMS:
        outcomes = {claim.judge(exact).outcome, claim.judge(learned).outcome}
        assert "inconclusive" in outcomes
    bare = table[~table["arm"].isin(("meta", BLIND, WIDE))]
    for name in ("prior", "retests", "collapse", "meta"):
        assert judged(name, bare).outcome == "inconclusive"


def test_tokens_at_equal_accuracy():
    found = tokens_needed(made_up())
    np.testing.assert_allclose(found["grpo"] / found["answer_barl"], [20 / 10, 21 / 11, 22 / 12] * 2)


def test_episodes_are_written_for_readers():
    common = {"kind": "episode", "seed": 0, "mixer": "lla"}
    rows = [{**common, "arm": BARL, "prompt": 2.0, "episode": n, "text": "000222"} for n in range(5)]
    rows.append({**common, "arm": "grpo", "prompt": np.nan, "episode": 0, "text": "12 + 3 = 15 ; so 15 ."})
    text = transcript(pandas.DataFrame(rows), 2)
    assert text.splitlines()[:3] == ["BARL 3, β = 5, LLA", "    2: 000222", "    2: 000222"]
    assert text.endswith("    12 + 3 = 15 ; so 15 .\n")
