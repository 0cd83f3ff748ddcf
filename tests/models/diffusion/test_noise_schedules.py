"""Noise schedules: their definitions, what is predicted and how predictions turn into one another."""

import itertools
import math

import pytest
import torch

from flashlla.models.diffusion import (
    PREDICTIONS,
    CosineVP,
    LinearVP,
    RectifiedFlow,
    VariancePreserving,
    levels,
)

SCHEDULES = (LinearVP(), LinearVP(0.5, 8.0), CosineVP(), RectifiedFlow())
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)


@pytest.fixture
def t():
    return torch.linspace(0.01, 0.99, 50, dtype=torch.float64)


@pytest.fixture
def sample(generator):
    """x0 and eps for 50 levels."""
    return torch.randn(2, 50, 3, generator=generator, dtype=torch.float64)


@every_schedule
def test_from_clean_to_noise(schedule):
    t = torch.linspace(0, 1, 200, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert alpha[0] == 1 and sigma[0] == 0 and alpha[-1] < 0.15
    assert (alpha.diff() < 0).all() and (sigma.diff() > 0).all()
    if isinstance(schedule, VariancePreserving):
        torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(t))
    a, b = schedule.velocity_weights(t)
    torch.testing.assert_close(a * alpha + b * sigma, torch.ones_like(t))


@every_schedule
def test_float32_is_exact_at_small_levels(schedule):
    t = torch.logspace(-5, 0, 30)
    for f in (schedule.alpha, schedule.sigma):
        torch.testing.assert_close(f(t), f(t.double()).float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(schedule.sigma(t), schedule.sigma(t.double()).float(), rtol=1e-5, atol=0)


def test_alpha_of_the_linear_schedule_is_the_integral_of_beta():
    schedule, t = LinearVP(), torch.linspace(0, 1, 101, dtype=torch.float64)
    integral = torch.cumulative_trapezoid(schedule.beta(t), t)
    torch.testing.assert_close(schedule.alpha(t[1:]), (-integral / 2).exp())
    assert schedule.alpha(t[-1]).item() == pytest.approx(math.exp(-(0.1 + 20) / 4))


def test_alpha_of_the_cosine_schedule_is_that_of_its_paper(t):
    f = torch.cos((t + 0.008) / 1.008 * torch.pi / 2).square()
    alpha_bar = f / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(CosineVP().alpha(t).square(), alpha_bar)


@every_schedule
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_parts_come_back_from_every_prediction(schedule, prediction, t, sample):
    x0, eps = sample
    x = schedule.noised(x0, eps, t)
    torch.testing.assert_close(x, schedule.alpha(t)[:, None] * x0 + schedule.sigma(t)[:, None] * eps)
    parts = schedule.split(schedule.target(x0, eps, t, prediction), x, t, prediction)
    torch.testing.assert_close(parts.x0, x0)
    torch.testing.assert_close(parts.eps, eps)


def test_the_velocity_of_a_rectified_flow_is_the_derivative_in_time(t, sample):
    flow, h = RectifiedFlow(), 0.01
    slope = (flow.noised(*sample, t + h) - flow.noised(*sample, t - h)) / (2 * h)
    torch.testing.assert_close(flow.target(*sample, t, "velocity"), slope)


@pytest.mark.parametrize("schedule", SCHEDULES[:3], ids=repr)
def test_the_velocity_where_variance_is_preserved_is_the_derivative_in_the_angle(schedule, t, sample):
    (x0, eps), h = sample, 1e-5
    angle = torch.atan2(schedule.sigma(t), schedule.alpha(t))[:, None]
    forth, back = (a.cos() * x0 + a.sin() * eps for a in (angle + h, angle - h))
    torch.testing.assert_close(
        schedule.target(x0, eps, t, "velocity"), (forth - back) / (2 * h), rtol=1e-6, atol=1e-8
    )


def test_the_score_is_the_gradient_of_the_log_density(t, sample):
    schedule, (x0, eps) = LinearVP(), sample
    x = schedule.noised(x0, eps, t).requires_grad_()
    kernel = torch.distributions.Normal(schedule.alpha(t)[:, None] * x0, schedule.sigma(t)[:, None])
    (score,) = torch.autograd.grad(kernel.log_prob(x).sum(), x)
    torch.testing.assert_close(schedule.target(x0, eps, t, "score"), score)


@every_schedule
@pytest.mark.parametrize(("prediction", "like"), list(itertools.product(PREDICTIONS, repeat=2)))
def test_loss_weights_make_one_error_of_another(schedule, prediction, like, t, sample, generator):
    x = schedule.noised(*sample, t)
    right = schedule.target(*sample, t, prediction)
    wrong = right + torch.randn(right.shape, generator=generator, dtype=right.dtype)
    as_like = [schedule.target(*schedule.split(p, x, t, prediction), t, like) for p in (right, wrong)]
    error, expected = (wrong - right).square().sum(1), (as_like[1] - as_like[0]).square().sum(1)
    weight = schedule.loss_weight(t, prediction, like)
    torch.testing.assert_close(weight * error, expected, rtol=1e-6, atol=1e-9)


def test_the_default_weight_of_x0_is_the_ratio_of_signal_to_noise(t):
    schedule = LinearVP()
    ratio = (schedule.alpha(t) / schedule.sigma(t)).square()
    torch.testing.assert_close(schedule.loss_weight(t, "x0"), ratio)
    assert (schedule.loss_weight(t, "eps") == 1).all()


@every_schedule
def test_levels_of_batch_of_places_and_of_all(schedule, generator):
    x0, eps = torch.randn(2, 2, 5, 3, generator=generator)
    t = torch.rand(2, generator=generator, dtype=torch.float64)
    out = schedule.noised(x0, eps, t)
    assert out.dtype == torch.float32
    torch.testing.assert_close(schedule.noised(x0, eps, t[:, None].expand(2, 5)), out)
    torch.testing.assert_close(schedule.noised(x0[0], eps[0], t[0]), out[0])
    known = t[:, None].repeat(1, 5)
    known[:, 0] = 0
    assert torch.equal(schedule.noised(x0, eps, known)[:, 0], x0[:, 0])


def test_levels_fall_from_noise_to_clean():
    t = levels(15, end=1e-3)
    assert t.dtype == torch.float64 and t.shape == (16,) and t[0] == 1 and t[-1] == 1e-3
    torch.testing.assert_close(t.diff(), t.diff()[:1].expand(15))


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda: LinearVP(2.0, 1.0), "beta_min=2.0 and beta_max=1.0 must be in order"),
        (lambda: LinearVP(0.0, 0.0), "the second above 0"),
        (lambda: CosineVP(-1.0), "offset=-1.0 must be at least 0 and finite"),
        (lambda: levels(0), "steps=0 must be at least 1"),
        (lambda: levels(4, 0.2, 0.4), r"start=0.2 and end=0.4 must fall and lie in \[0, 1\]"),
        (lambda: levels(4, 2.0), "start=2.0 and end=0.0 must fall"),
        (
            lambda: LinearVP().loss_weight(torch.rand(2), "noise"),
            "prediction='noise' is unknown; choose one of eps, x0, velocity, score",
        ),
        (
            lambda: LinearVP().noised(torch.zeros(2, 3), torch.zeros(2, 3), torch.rand(3)),
            r"t has shape \(3,\); expected leading axes of the sample's \(2, 3\)",
        ),
        (
            lambda: LinearVP().target(torch.zeros(2), torch.zeros(2), torch.rand(2), "mean"),
            "prediction='mean' is unknown",
        ),
        (
            lambda: LinearVP().split(torch.zeros(2), torch.zeros(2), torch.rand(2), "mean"),
            "prediction='mean' is unknown",
        ),
    ),
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
