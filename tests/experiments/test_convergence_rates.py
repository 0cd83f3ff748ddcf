"""Convergence rates: the estimators, the ball and the fitted slopes are what they are said to be."""

import numpy as np
import pandas
import pytest
import torch

from flashlla.experiments.convergence_rates.claims import slopes
from flashlla.experiments.convergence_rates.data import RADIUS, ball, draw_map, lift
from flashlla.experiments.convergence_rates.methods import lla, softmax
from flashlla.experiments.convergence_rates.run import BOUNDARY, REGIONS, Config

BANDWIDTH = 0.3


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def on_sphere(points):
    return torch.from_numpy(lift(points))


@pytest.mark.parametrize("dim", (1, 2, 4))
def test_the_boundary_has_its_share_of_a_ball_and_keys_have_one_norm(dim, rng):
    points = ball(20_000, dim, rng)
    share = REGIONS["boundary"](torch.from_numpy(points).norm(dim=1)).double().mean()
    assert share == pytest.approx(1 - BOUNDARY**dim, abs=0.012)  # more than three standard deviations
    assert np.allclose(np.linalg.norm(lift(points), axis=1), RADIUS)


def test_softmax_attention_is_the_average_with_a_gaussian_kernel(rng):
    queries, keys, values = ball(50, 2, rng), ball(400, 2, rng), rng.standard_normal((400, 3))
    q, k, v = on_sphere(queries), on_sphere(keys), torch.from_numpy(values)

    def average(a, b):
        weights = torch.exp(-torch.cdist(a, b).square() / (2 * BANDWIDTH**2))
        return weights @ v / weights.sum(1, keepdim=True)

    estimate = softmax(q, k, v, BANDWIDTH)
    assert torch.allclose(estimate, average(q, k), atol=1e-9)
    in_the_ball = average(torch.from_numpy(queries), torch.from_numpy(keys))
    assert torch.allclose(estimate, in_the_ball, atol=2e-3)


def test_a_linear_map_costs_local_lines_nothing_and_averages_much(rng):
    target = draw_map(2, 5, gradient=3.0, frequency=0.0, rng=rng)
    queries, keys = ball(50, 2, rng), ball(400, 2, rng)
    q, k, v = on_sphere(queries), on_sphere(keys), torch.from_numpy(target(keys))
    truth = torch.from_numpy(target(queries))
    assert torch.allclose(lla(q, k, v, BANDWIDTH, ridge=1e-8), truth, atol=1e-5)
    assert (softmax(q, k, v, BANDWIDTH) - truth).abs().mean() > 0.1


def test_the_slope_is_the_power_of_the_error(rng):
    powers = {("lla", 1): -0.8, ("softmax", 1): -0.75, ("lla", 2): -0.67}
    rows = [
        {"mixer": mixer, "dim": dim, "seed": seed, "keys": keys, "error": (1 + seed) * keys**power}
        for (mixer, dim), power in powers.items()
        for seed in range(3)
        for keys in (64, 256, 1024)
    ]
    found = slopes(pandas.DataFrame(rows).assign(region="domain", chosen_for="domain"))
    assert all(np.allclose(found[case], power) for case, power in powers.items())


@pytest.mark.parametrize(
    ("fields", "complaint"),
    (
        ({"mixer": ("mesanet",)}, "mixer 'mesanet' has no rate in the paper"),
        ({"dim": (7,)}, r"dim=\(7,\) must be 1 to 6"),
        ({"keys": (1024,)}, r"keys=\(1024,\) must be two numbers or more"),
        ({"queries": 100}, "queries=100 must be at least 256"),
        ({"noise": -1.0}, "noise=-1.0, .* must not be negative"),
    ),
)
def test_wrong_configurations_are_refused(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        Config(**fields)
