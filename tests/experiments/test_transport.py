"""OPME: the interactions, minimax risks and their radii, planning, transformers, and made-up tables."""

import itertools
from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch

from flashlla.experiments.transport import claims, deep, finite, networks
from flashlla.experiments.transport.claims import hard_slopes, linear_slopes, worst_gaps
from flashlla.experiments.transport.gaps import DECISIONS, GAPS, family
from flashlla.experiments.transport.hardness import hardness
from flashlla.experiments.transport.interaction import (
    BAD,
    GOOD,
    HORIZON,
    NORM,
    SOURCE,
    STATES,
    FiniteInteraction,
    LinearInteraction,
    best_action,
    features,
)
from flashlla.experiments.transport.linear import METHODS, Learner, play
from flashlla.experiments.transport.moments import LinearRisk, finite_radius, finite_risk
from flashlla.experiments.transport.run import CASES, PARTS, PRESETS, Config, run, trials
from flashlla.experiments.transport.sequences import CELLS, LEVELS, TRACKS, FormInteraction, Forms


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ---- the linear interaction -------------------------------------------------------------------------


def test_agents_play_what_is_best_for_themselves():
    actions = np.linspace(-3, 3, 6001)
    for gain, kind in itertools.product((-0.7, 0.4, 1.5), (0, 1)):
        best = actions[(gain * kind * actions - actions**2 / 2).argmax()]
        assert best == pytest.approx(best_action(gain, kind), abs=1e-3)


def test_means_are_those_of_the_simulator_and_noise_is_endogenous(rng):
    instance = LinearInteraction.draw(2, 2, 2, rng)
    contexts, actions = (rng.integers(2, size=(2, 400_000)) for _ in range(2))
    feedback, rewards, noise = instance.play(contexts, actions, rng)
    expected, paid = instance.mean_features(SOURCE), instance.rewards(SOURCE)
    for run_, s, a in np.ndindex(2, 2, 2):
        inside = (contexts[run_] == s) & (actions[run_] == a)
        e, xi = feedback[run_, inside], noise[run_, inside]
        np.testing.assert_allclose(features(e).mean(0), expected[run_, s, a], atol=0.03)
        assert rewards[run_, inside].mean() == pytest.approx(paid[run_, s, a], abs=0.05)
        assert abs(xi.mean()) < 5 * xi.std() / len(xi) ** 0.5
        assert np.corrcoef(xi, e)[0, 1] > 0.05
        assert np.exp(xi / instance.noise).mean() < np.exp(0.5), "sub-Gaussian with that sigma"


def test_gaps_are_what_they_are_said_to_be(rng):
    instance = family(3, GAPS, rng)
    paid = instance.rewards(instance.target)
    difference = (paid[..., 0] - paid[..., 1]).reshape(len(GAPS), 3, -1)
    np.testing.assert_allclose(difference[..., :DECISIONS], np.broadcast_to(GAPS, (2, 3, 8)).T, atol=1e-9)
    assert not difference[..., DECISIONS:].any()
    assert np.linalg.norm(instance.theta, axis=1).max() <= NORM


def test_gaps_that_no_geometry_bears_are_refused(rng):
    with pytest.raises(ValueError, match=r"gaps=\(50.0,\): too few geometries"):
        family(2, (50.0,), rng)


def test_hardness_is_one_without_transport_and_grows_with_weak_instruments(rng):
    instance = LinearInteraction.draw(3, 6, 3, rng, target=SOURCE)
    tau, transfer = hardness(instance)
    np.testing.assert_allclose(transfer, 1, atol=1e-9)
    assert (tau >= 1).all()
    weak = replace(instance, base=0.3 * instance.base, gain=0.8 + 0.3 * (instance.gain - 0.8), target=0.1)
    weak_tau, far = hardness(weak)
    assert (weak_tau > tau).all() and (far > 1).all()


# ---- minimax risks ----------------------------------------------------------------------------------


@pytest.fixture
def data(rng):
    x, z = rng.standard_normal((50, 2)), rng.standard_normal((50, 3))
    x[:, 0] += z[:, 0]
    x[:, 1] += z[:, 1] - z[:, 2]
    return x, z, x @ [0.5, -1.0] + rng.standard_normal(50)


def test_the_risk_is_what_the_best_discriminator_gets(data, rng):
    x, z, r = data
    risk, theta = LinearRisk.of(x, z, r), np.array([0.3, 0.2])

    def gain(w):
        return w @ z.T @ (x @ theta - r) - 0.5 * np.square(z @ w).sum() - 0.5 * w @ w

    best = np.linalg.solve(risk.gram, z.T @ (x @ theta - r))
    assert risk(theta) == pytest.approx(gain(best))
    assert all(gain(best + step) < risk(theta) for step in 0.1 * rng.standard_normal((20, 3)))


def test_the_minimiser_is_two_stage_least_squares(data):
    x, z, r = (1000 * part for part in data)  # so that ridges do not count
    first = z @ np.linalg.lstsq(z, x, rcond=None)[0]
    np.testing.assert_allclose(
        LinearRisk.of(x, z, r).estimate(), np.linalg.lstsq(first, r, rcond=None)[0], rtol=1e-4
    )
    np.testing.assert_allclose(
        LinearRisk.of(x, x, r).estimate(), np.linalg.lstsq(x, r, rcond=None)[0], rtol=1e-4
    )


def test_the_set_is_an_ellipsoid_with_the_values_it_is_said_to_have(data, rng):
    risk = LinearRisk.of(*data)
    found = risk.ellipsoid(2.0, norm=1.5)
    directions = rng.standard_normal((4, 2))
    angles = np.linspace(0, 2 * np.pi, 20_001)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    root = np.linalg.cholesky(np.linalg.inv(found.precision))
    edge = found.centre + (2 * found.room) ** 0.5 * (root @ circle).T
    np.testing.assert_allclose(found.largest(directions), (edge @ directions.T).max(0), rtol=1e-6)
    for theta in edge[:20_000:2000]:
        limit = 2.0 + 0.5 * 1.5**2
        assert risk(theta) + 0.5 * theta @ theta == pytest.approx(limit)
        assert found.covers(found.centre + 0.99 * (theta - found.centre))
        assert not found.covers(found.centre + 1.01 * (theta - found.centre))


def test_finite_risks_are_maxima(rng):
    residuals, counts = rng.standard_normal((4, 5)), rng.integers(1, 9, 5)
    functions = rng.standard_normal((7, 5))
    brute = [max(r @ f - 0.5 * counts @ f**2 for f in functions) for r in residuals]
    np.testing.assert_allclose(finite_risk(residuals, counts, functions), brute)


def test_radii_hold_for_all_numbers_of_episodes(rng):
    """The share of runs whose truth ever has a risk above the radius, for both kinds of discriminators."""
    runs, episodes, delta = 400, 300, 0.2
    f, xi = rng.standard_normal((3, 1, episodes)), 0.7 * rng.choice([-1, 1], (runs, episodes))
    gains = (f * xi).cumsum(-1) - 0.5 * np.square(f).cumsum(-1)
    assert (gains > finite_radius(0.7, 3, delta)).any((0, 2)).mean() < delta
    gram = 1 + np.square(f[0, 0]).cumsum()
    risk = LinearRisk(np.zeros((episodes, 1, 1)), np.zeros((episodes, 1)), gram[:, None, None])
    ever = (0.5 * np.square((f[0] * xi).cumsum(1)) / gram > risk.radius(0.7, delta)).any(1)
    assert ever.mean() < delta


# ---- planning ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ("opme", "ols", "direct"))
def test_sums_by_cell_are_enough_for_the_risks(name, rng):
    instance = LinearInteraction.draw(2, 3, 2, rng)
    learner = Learner(instance, METHODS[name])
    contexts, actions = rng.integers(3, size=(2, 40)), rng.integers(2, size=(2, 40))
    feedback, rewards, _ = instance.play(contexts, actions, rng)
    cells = 2 * contexts + actions
    for half in (slice(15), slice(15, None)):
        learner.episodes.add(cells[:, half], feedback[:, half], rewards[:, half])
    phi = features(feedback)
    known = instance.mean_features(SOURCE).reshape(2, 6, 3)
    psi = np.take_along_axis(known, cells[..., None], 1)
    table = np.eye(6)[cells]
    pair = {"opme": (phi, psi), "ols": (phi, phi), "direct": (table, table)}[name]
    for found, wanted in zip(learner.risk(), LinearRisk.of(*pair, rewards), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-10)


def test_opme_gets_closer_than_what_leaves_a_part_out():
    def last(name):
        rng = np.random.default_rng(3)
        instance = LinearInteraction.draw(12, 4, 2, rng)
        return list(play(instance, METHODS[name], (128, 4096), rng))[-1]

    opme, again, ols, direct = (last(name) for name in ("opme", "opme", "ols", "direct"))
    assert all(np.array_equal(a, b) for a, b in zip(opme, again, strict=True))
    assert opme.value_error.mean() < 0.3 * min(ols.value_error.mean(), direct.value_error.mean())
    assert opme.covered.mean() > 0.8 and opme.optimistic.all() and not ols.covered.all()
    assert (opme.suboptimality >= 0).all() and opme.episodes == 4096


# ---- the finite class -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth():
    return FiniteInteraction.draw(np.random.default_rng(1))


@pytest.fixture(scope="module")
def models(truth):
    return finite.ModelClass(truth, truth.target, np.random.default_rng(2))


def test_planning_is_optimal_for_the_truth(truth, models):
    model = (finite.TRUTH,) * finite.PARTS
    policy = models.policy(model)
    best = finite.policy_value(truth, policy, truth.target)
    assert models.optimal_values[model] == pytest.approx(best)
    assert models.optimal_values.shape == (8,) * 5
    for h, s in itertools.product(range(HORIZON), range(STATES)):
        for action in range(3):
            other = policy.copy()
            other[h, s] = action
            assert finite.policy_value(truth, other, truth.target) <= best + 1e-12


def test_planning_is_that_of_any_other_model(truth, models):
    model = (3, 1, 4, 6, 5)
    effect = np.stack([models.effects[h, model[2 * h]] for h in range(HORIZON)])
    push = np.stack([models.pushes[0, 1], models.pushes[1, 6], truth.push[2]])
    other = replace(truth, effect=effect, push=push)
    value = finite.policy_value(other, models.policy(model), truth.target)
    assert models.optimal_values[model] == pytest.approx(value)


def test_types_move_nothing_in_the_mean_of_the_source(truth, rng):
    assert np.allclose(truth.law.sum(-1), 1)
    policy = rng.integers(3, size=(HORIZON, STATES))
    steps = truth.play(policy, 200_000, rng)
    law = truth.feedback_law(SOURCE)
    states, actions, _, rewards, following = steps[0]
    for s in range(STATES):
        a, inside = policy[0, s], states == s
        assert (actions[inside] == a).all()
        mean = truth.plain[0, s, a] + law[s, a] @ truth.effect[0]
        assert rewards[inside].mean() == pytest.approx(mean, abs=0.01)
        chances = truth.still[0, s, a].copy()
        chances[[GOOD, BAD]] += np.array([1, -1]) * (law[s, a] @ truth.push[0])
        np.testing.assert_allclose(np.bincount(following[inside]) / inside.sum(), chances, atol=0.015)


def test_sets_keep_the_truth_and_regression_takes_the_decoy(truth, models, rng):
    seen = finite.Tally()
    for _ in range(20):
        seen.add(truth.play(rng.integers(3, size=(HORIZON, STATES)), 2000, rng))
    minimax, regression = models.minimax_sets(seen), models.regression_sets(seen)
    assert all(kept[finite.TRUTH] for kept in minimax)
    assert sum(kept.sum() for kept in minimax) < 8 * finite.PARTS
    assert not any(minimax[i][finite.DECOY] for i in (0, 2, 4)), "rewards, whose confounding is strong"
    assert any(kept[finite.DECOY] and not kept[finite.TRUTH] for kept in regression)


def test_risks_of_transitions_are_those_of_the_definition(truth, models, rng):
    seen = finite.Tally()
    steps = truth.play(rng.integers(3, size=(HORIZON, STATES)), 300, rng)
    seen.add(steps)
    states, actions, feedback, _, following = steps[1]
    tests = models.tests[1][:2]
    law = truth.feedback_law(SOURCE)
    for j, found in enumerate(models._transition_risk(seen, 1, tests)):
        gains = []
        for g in tests:
            g = g / np.ptp(g)
            expected = truth.still[1] @ g

            def mean(push, e, s, a, g=g, expected=expected):
                return expected[s, a] + push[e] * (g[GOOD] - g[BAD])

            left = mean(models.pushes[1, j], feedback, states, actions) - g[following]
            for one, other in itertools.product(models.pushes[1], repeat=2):
                f = (law[states, actions] @ (one - other)) * (g[GOOD] - g[BAD])
                gains.append(f @ left - 0.5 * f @ f)
        assert found == pytest.approx(max(gains))


# ---- transformers -----------------------------------------------------------------------------------


def test_agents_inflate_the_fields_that_count(rng):
    interaction = FormInteraction.draw(4, rng)
    cells = np.full(4000, 5)
    (honest, _), (inflated, types) = (interaction.fill(cells, share, rng) for share in (0.0, 1.0))
    assert types.all() and honest.max() < interaction.vocabulary

    def level(forms, counts):
        levels = (forms[:, 1:] - TRACKS) % LEVELS
        return levels[(np.arange(4) % TRACKS == forms[:, :1]) == counts].mean()

    assert level(inflated, True) > level(honest, True) + 0.2
    assert level(inflated, False) == pytest.approx(level(honest, False), abs=0.05)
    form = np.array([1, TRACKS + 4, TRACKS + LEVELS + 3, TRACKS + 10 + 4, TRACKS + 15 + 2])
    assert interaction.reward(form) == pytest.approx(interaction.theta @ [1, 0.5, 0.25])


def test_the_minimax_loss_has_the_gradient_of_the_risk(rng):
    """With both halves of a batch alike it is that of the closed form, up to the size of a batch."""
    torch.manual_seed(0)
    config = networks.encoder_config("softmax", 12, networks.FEATURES - 1, 16, 1, 2)
    model = networks.RewardTransformer(config)
    instruments = networks.discriminator_features(
        networks.encoder_config("softmax", 9, networks.INSTRUMENTS, 16, 1, 2)
    )
    assert instruments.shape == (CELLS, networks.INSTRUMENTS)
    assert torch.linalg.matrix_rank(instruments) >= networks.FEATURES
    half = Forms(torch.arange(8), torch.randint(12, (8, 5)), torch.randn(8))
    batch = Forms(*(torch.cat([part, part]) for part in half))
    networks.minimax_loss(model, batch, instruments).backward()
    psi, phi = instruments[half.cells].double(), model.features(half.forms).detach().double()
    risk = LinearRisk.of(phi.numpy(), psi.numpy(), half.rewards.double().numpy())
    w, step = model.weights.detach().double().numpy(), 1e-5
    wanted = [(risk(w + s) - risk(w - s)) / (2 * step) / 8 for s in step * np.eye(networks.FEATURES)]
    np.testing.assert_allclose(model.weights.grad, wanted, rtol=2e-3, atol=1e-4)


def test_a_run_that_was_killed_gives_the_same_numbers(tmp_path, monkeypatch):
    recipe = deep.Recipe("lla", 16, 1, 2, 6, 16, 1e-2, "cpu")
    monkeypatch.setattr(deep, "PROBES", 16)

    def numbers(folder):
        rows = [*deep.play("opme", recipe, 4, (64, 96), 0, folder)]
        return [{n: v for n, v in row.items() if "seconds" not in n and "mega" not in n} for row in rows]

    expected, train, calls = numbers(tmp_path / "whole"), deep.train, []

    def killed(*args, **options):
        calls.append(args)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return train(*args, **options)

    monkeypatch.setattr(deep, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        numbers(tmp_path / "cut")
    monkeypatch.setattr(deep, "train", train)
    assert numbers(tmp_path / "cut") == expected
    assert [row["episodes"] for row in expected] == [64, 64, 96, 96]
    assert all(row["parameters"] > 0 and np.isfinite(row["value_error"]) for row in expected)


# ---- configurations and trials ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "complaint"),
    (
        ({"episodes": 64}, "episodes=64 must be at least 128"),
        ({"episodes": 3000}, "episodes=3000 must be a power of 2"),
        ({"fields": 5}, "fields=5 must be a multiple of the 2 tracks"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be positive"),
        ({"steps": 1}, "steps=1 must be at least 2"),
        ({"heads": 3}, "heads"),
    ),
)
def test_wrong_configurations_are_refused(fields, complaint, refused):
    refused(Config, fields, complaint)


def test_trials_are_all_parts_and_small_ones_have_rows(tmp_path):
    found = list(trials(PRESETS["smoke"]))
    assert {trial.part for trial in found} == set(PARTS)
    assert {trial.case for trial in found} - {""} == set(CASES)
    (moments,) = (trial for trial in found if trial.part == "moments")
    (row,) = run(moments, tmp_path)
    assert row["correlation"] > 0.1 and row["peak_megabytes"] > 0


# ---- claims -----------------------------------------------------------------------------------------

KS = (128, 512, 2048, 8192, 32768)


def linear_rows(powers, case="main"):
    """Errors that are powers of the number of episodes, by method, in three seeds."""
    return [
        {"part": "linear", "case": case, "method": method, "seed": seed, "episodes": k}
        | dict.fromkeys(("value_error", "value_error_mean"), (1 + seed) * k**power)
        for method, power in powers.items()
        for seed in range(3)
        for k in KS
    ]


@pytest.fixture
def outcome(judged):
    return lambda name, rows: judged(name, pandas.DataFrame(rows)).outcome


def test_slopes_are_powers_and_worst_gaps_are_maxima():
    table = pandas.DataFrame(linear_rows({"opme": -0.5, "ols": -0.05}))
    assert np.allclose(linear_slopes(table)["main", "opme"], -0.5)
    assert np.allclose(linear_slopes(table, since=128)["main", "ols"], -0.05)
    rows = [
        {"part": "gaps", "method": "opme", "seed": 0, "episodes": 128, "gap": gap, "mixture": gap * (1 - gap)}
        for gap in (0.1, 0.4, 0.9)
    ]
    assert worst_gaps(pandas.DataFrame(rows), "mixture")["gap"].tolist() == [0.4]


@pytest.mark.parametrize(
    ("name", "case", "method", "yes", "no"),
    (
        ("rate", "main", "opme", -0.48, -0.35),
        ("ols_stalls", "main", "ols", 0.02, -0.2),
        ("no_transport_stalls", "main", "no_transport", -0.1, -0.5),
        ("direct_stalls", "main", "direct", 0.0, -0.5),
        ("unconfounded", "unconfounded", "ols", -0.55, -0.2),
        ("same_population", "same_population", "direct_uniform", -0.5, -0.1),
        ("context_free", "context_free", "opme", 0.0, -0.5),
    ),
)
def test_slopes_are_judged(name, case, method, yes, no, outcome):
    assert outcome(name, linear_rows({method: yes}, case)) == "supported"
    assert outcome(name, linear_rows({method: no}, case)) == "not supported"


@pytest.mark.parametrize(("same", "expected"), ((-0.45, "supported"), (-0.2, "not supported")))
def test_adaptive_data_is_compared_with_uniform(same, expected, outcome):
    assert outcome("adaptive", linear_rows({"opme": same, "uniform": -0.5})) == expected


def test_variance_is_judged_at_the_most_episodes(outcome):
    rows = linear_rows({"opme": -0.4, "ols": -0.5}, "unconfounded")
    assert outcome("lower_variance", rows) == "supported"
    rows = linear_rows({"opme": -0.5, "ols": -0.4}, "unconfounded")
    assert outcome("lower_variance", rows) == "not supported"


@pytest.mark.parametrize("column", ("mixture", "greedy"))
@pytest.mark.parametrize(("power", "expected"), ((-0.5, "supported"), (-0.1, "not supported")))
def test_worst_gaps_are_judged(column, power, expected, outcome):
    rows = [
        {"part": "gaps", "method": "opme", "seed": seed, "episodes": k, "gap": gap, column: gap * k**power}
        for seed in range(2)
        for k in KS
        for gap in (0.1, 0.5)
    ]
    assert outcome(f"worst_{column}", rows) == expected


def hard_rows(of_tau, of_transfer):
    return [
        {"part": "linear", "case": f"hard_{i}_{j}", "method": "opme", "seed": seed, "episodes": 8192}
        | {
            "ill_posedness": 2.0**i,
            "transfer": 1.5**j,
            "value_error": 2.0 ** (of_tau * i) * 1.5 ** (of_transfer * j),
        }
        for seed in range(2)
        for i in range(3)
        for j in range(3)
    ]


def test_hardness_is_judged(outcome):
    found = hard_slopes(pandas.DataFrame(hard_rows(0.5, 0.3)))
    assert np.allclose(found["ill_posedness"], 0.5) and np.allclose(found["transfer"], 0.3)
    names = ("root", "ill_posedness", "transfer")
    assert [outcome(name, hard_rows(0.5, 0.5)) for name in names] == ["supported"] * 3
    assert [outcome(name, hard_rows(-0.1, -0.2)) for name in names] == ["not supported"] * 3
    assert outcome("root", hard_rows(1.5, 1.5)) == "not supported"


@pytest.mark.parametrize("part", ("linear", "finite"))
@pytest.mark.parametrize(("share", "expected"), ((1.0, "supported"), (0.5, "not supported")))
def test_shares_of_runs_are_judged(part, share, expected, outcome):
    rows = [
        {"part": part, "case": "main", "method": "opme", "seed": seed, "episodes": 128}
        | {"covered": share, "optimistic": share}
        for seed in range(3)
    ]
    prefix = {"linear": "", "finite": "finite_"}[part]
    assert outcome(f"{prefix}coverage", rows) == outcome(f"{prefix}optimism", rows) == expected


@pytest.mark.parametrize(("opme", "expected"), ((0.01, "supported"), (0.3, "not supported")))
def test_finite_mixtures_are_judged(opme, expected, outcome):
    rows = [
        {"part": "finite", "method": method, "seed": seed, "episodes": k, "mixture": lacks}
        for method, lacks in {"opme": opme, "regression": 0.1, "no_transport": 0.2}.items()
        for seed in range(2)
        for k in (128, 256)
    ]
    assert outcome("finite_regression", rows) == outcome("finite_transport", rows) == expected


def form_rows(minimax, regression, head, first=1.0):
    errors = {("opme", "2sls"): minimax, ("regression", "ols"): regression, ("regression", "2sls"): head}
    return [
        {"part": "forms", "mixer": mixer, "method": method, "head": kind, "seed": seed, "episodes": k}
        | {"value_error": error * (first if k == 64 else 1.0)}
        for (method, kind), error in errors.items()
        for mixer in ("lla", "softmax")
        for seed in range(2)
        for k in (64, 256)
    ]


@pytest.mark.parametrize("name", ("forms", "forms_head", "forms_loss", "forms_fall"))
def test_transformers_are_judged(name, outcome):
    assert outcome(name, form_rows(0.1, 0.4, 0.2, first=2.0)) == "supported"
    assert outcome(name, form_rows(0.5, 0.3, 0.4, first=0.5)) == "not supported"


def test_moments_are_judged(outcome):
    rows = [{"part": "moments", "seed": seed, "noise_mean": 1.0, "correlation": 0.3} for seed in range(2)]
    assert outcome("moment_zero", rows) == outcome("endogenous", rows) == "supported"
    rows = [{**row, "noise_mean": 9.0, "correlation": 0.0} for row in rows]
    assert outcome("moment_zero", rows) == outcome("endogenous", rows) == "not supported"


def test_what_a_table_lacks_is_said():
    columns = [
        "part",
        "case",
        "method",
        "seed",
        "episodes",
        "value_error",
        "mixture",
        "greedy",
        "gap",
        "value_error_mean",
    ]
    columns += [
        "mixer",
        "head",
        "covered",
        "optimistic",
        "noise_mean",
        "correlation",
        "ill_posedness",
        "transfer",
    ]
    empty = pandas.DataFrame(columns=columns).astype({"case": str, "episodes": int})
    for claim in claims.CLAIMS:
        assert claim.judge(empty).outcome == "inconclusive", claim.name
