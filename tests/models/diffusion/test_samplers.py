"""Samplers against exact laws: one Gaussian by recursion, a mixture of eight by draws; and their hooks."""

import math
from itertools import pairwise

import pytest
import torch

from flashlla.models.diffusion import (
    DDIM,
    CosineVP,
    FlowSDE,
    LinearVP,
    RectifiedFlow,
    TrajectoryConfig,
    TrajectoryTransformer,
    levels,
)

VP, FLOW = LinearVP(), RectifiedFlow()
CENTRE, WIDTH = 1.5, 0.6  # of the Gaussian
SAMPLERS = (
    DDIM(VP, "eps"),
    DDIM(VP, "velocity", eta=0.5),
    DDIM(CosineVP(), "x0", eta=1.0),
    DDIM(FLOW, "velocity"),
    DDIM(FLOW, "velocity", eta=1.0),
    FlowSDE(FLOW, "velocity"),
    FlowSDE(VP, "score", noise=0.5),
)
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)


class Mixture:
    """Gaussians of one width at equal weights, as the network that predicts best."""

    def __init__(self, centres, width):
        self.centres, self.width = centres, width

    def draw(self, count, generator):
        chosen = torch.randint(len(self.centres), (count,), generator=generator)
        return self.centres[chosen] + self.width * normal(count, generator)

    def network(self, sampler):
        """The exact posterior mean of x0, as the sampler wants it told."""
        schedule = sampler.schedule

        def predict(x, t):
            alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
            variance = (alpha * self.width).square() + sigma.square()
            away = x[:, None] - alpha[:, None] * self.centres
            weights = (-away.square().sum(-1) / (2 * variance)).softmax(1)
            score = -(weights[..., None] * away).sum(1) / variance
            parts = schedule.split(score, x, t, "score")
            if sampler.prediction == "velocity":  # finite where alpha is 0
                mean = (weights[..., None] * self.centres).sum(1)
                x0 = mean + alpha * self.width**2 / variance * (x - alpha * mean)
                return schedule.target(x0, -sigma * score, t, "velocity")
            return schedule.target(*parts, t, sampler.prediction)

        return predict


def normal(count, generator):
    return torch.randn(count, 2, generator=generator, dtype=torch.float64)


@pytest.fixture
def ring():
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return Mixture(4 * torch.stack([angles.cos(), angles.sin()], 1), 0.3)


@pytest.fixture
def gaussian():
    return Mixture(torch.full((1, 2), CENTRE, dtype=torch.float64), WIDTH)


def sliced_distance(a, b):
    """Sliced Wasserstein distance of order 2, over 32 directions."""
    angles = torch.arange(32, dtype=a.dtype) * math.pi / 32
    directions = torch.stack([angles.cos(), angles.sin()])
    return ((a @ directions).sort(0)[0] - (b @ directions).sort(0)[0]).square().mean().sqrt()


def affine_steps(sampler, network, times):
    """Offset, slope and standard deviation of every step; for a Gaussian the mean is affine in the state."""
    points, rows = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64), []
    for t, next_t in pairwise(times.tolist()):
        step = sampler.step(network, points, t, next_t)
        offset, at_one = step.mean[:, 0].tolist()
        rows.append((offset, at_one - offset, step.std))
    return rows


def moments(steps, mean, variance):
    """Mean and variance of every state behind the first, without draws."""
    rows = []
    for offset, slope, std in steps:
        mean, variance = offset + slope * mean, slope**2 * variance + std**2
        rows.append((mean, variance))
    return torch.tensor(rows, dtype=torch.float64)


def marginal(schedule, times, centre=CENTRE, width=WIDTH):
    """Mean and variance of the Gaussian at all levels."""
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    return torch.stack([alpha * centre, (alpha * width).square() + sigma.square()], -1)


@every_sampler
def test_the_marginals_of_a_gaussian_are_met_to_first_order(sampler, gaussian):
    """So those of the stochastic and the ordinary equation agree, at every level."""
    errors = []
    for steps in (50, 100):
        times = levels(steps, start=0.95, end=0.01)
        law = marginal(sampler.schedule, times)
        found = moments(affine_steps(sampler, gaussian.network(sampler), times), *law[0])
        errors.append((found - law[1:]).abs().max().item())
    assert errors[0] < 0.1 and errors[1] < 0.6 * errors[0]


def test_ddim_without_noise_follows_the_probability_flow(gaussian, generator):
    """For a Gaussian the flow keeps the distance from the mean in standard deviations."""
    for schedule in (VP, CosineVP(), FLOW):
        sampler, x, errors = DDIM(schedule, "eps"), normal(5, generator), []
        for steps in (50, 100):
            times = levels(steps, start=0.99)
            mean, variance = marginal(schedule, times[0])
            exact = CENTRE + WIDTH * (x - mean) / variance.sqrt()
            found = sampler.sample(gaussian.network(sampler), x, times).sample
            errors.append((found - exact).abs().max().item())
        assert errors[0] < 0.1 and errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize(
    "sampler",
    (DDIM(VP, "eps"), DDIM(VP, "eps", eta=1.0), DDIM(FLOW, "velocity"), FlowSDE(FLOW, "velocity")),
    ids=repr,
)
def test_the_law_of_a_mixture(sampler, ring, generator):
    count = 2000
    x = normal(count, generator)
    path = sampler.sample(ring.network(sampler), x, levels(60, end=1e-3), generator=generator)
    target, other = ring.draw(count, generator), ring.draw(count, generator)
    floor = sliced_distance(target, other)
    assert sliced_distance(path.sample, target) < 2 * floor
    assert sliced_distance(x, target) > 5 * floor
    places = torch.cdist(path.sample, ring.centres).argmin(1).bincount(minlength=8) / count
    assert (places - 1 / 8).abs().max() < 0.03
    torch.testing.assert_close(path.sample.mean(0), torch.zeros(2).double(), atol=0.25, rtol=0)
    torch.testing.assert_close(path.sample.var(0), torch.full((2,), 8.09).double(), atol=0.5, rtol=0)


def test_ancestral_steps_are_the_posterior(ring, generator):
    """The normal law of the next state under its prior from x0 and its likelihood towards x."""
    for schedule in (VP, CosineVP(), FLOW):
        sampler, x, (t, next_t) = DDIM(schedule, "x0", eta=1.0), normal(4, generator), (0.6, 0.5)
        step = sampler.step(ring.network(sampler), x, t, next_t)
        t, next_t = torch.tensor([t, next_t], dtype=torch.float64)
        alpha, next_alpha, next_sigma = schedule.alpha(t), schedule.alpha(next_t), schedule.sigma(next_t)
        ratio = alpha / next_alpha
        added = schedule.sigma(t) ** 2 - ratio**2 * next_sigma**2
        precision = 1 / next_sigma**2 + ratio**2 / added
        mean = (next_alpha * step.x0 / next_sigma**2 + ratio * x / added) / precision
        torch.testing.assert_close(step.mean, mean)
        assert step.std == pytest.approx(precision.rsqrt().item())


def test_steps_in_a_rectified_flow_are_those_of_euler(generator):
    x, velocity, t, next_t = normal(4, generator), normal(4, generator), 0.7, 0.6
    dt = next_t - t

    def network(x, level):
        return velocity

    torch.testing.assert_close(DDIM(FLOW, "velocity").step(network, x, t, next_t).mean, x + dt * velocity)
    step = FlowSDE(FLOW, "velocity", noise=0.5).step(network, x, t, next_t)
    g = 0.5 * math.sqrt(t / (1 - t))
    drift = velocity + g**2 / (2 * t) * (x + (1 - t) * velocity)
    torch.testing.assert_close(step.mean, x + dt * drift)
    assert step.std == pytest.approx(g * math.sqrt(-dt))
    first = FlowSDE(FLOW, "velocity", noise=0.5).step(network, x, 1.0, 0.9)
    assert first.std == pytest.approx(0.5 * math.sqrt(1 / (1 - 0.9) * 0.1))


@pytest.mark.parametrize("schedule", (VP, CosineVP(), FLOW), ids=repr)
def test_a_flow_sde_without_noise_is_ddim_without_noise(schedule, ring, generator):
    x, times = normal(4, generator), levels(5, start=0.9)
    one, other = (
        sampler.sample(ring.network(sampler), x, times)
        for sampler in (DDIM(schedule, "eps"), FlowSDE(schedule, "eps", noise=0.0))
    )
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


@every_sampler
def test_log_probabilities_are_those_of_normal_laws(sampler, gaussian, generator):
    network, x, times = gaussian.network(sampler), normal(3, generator), levels(6, start=0.95, end=0.1)
    path = sampler.sample(network, x, times, generator=generator)
    assert path.states.shape == (3, 7, 2) and path.means.shape == (3, 6, 2) and path.log_probs.shape == (3, 6)
    assert torch.equal(path.times, times) and torch.equal(path.states[:, 0], x)
    assert path.stds.dtype == torch.float64 and path.stds.shape == (6,)
    if path.stds.any():
        law = torch.distributions.Normal(path.means, path.stds[:, None])
        torch.testing.assert_close(path.log_probs, law.log_prob(path.states[:, 1:]).sum(-1))
    else:
        assert torch.equal(path.states[:, 1:], path.means) and not path.log_probs.any()
    means, log_probs = sampler.replay(network, path)
    assert torch.equal(means, path.means) and torch.equal(log_probs, path.log_probs)
    some = path.rows(torch.tensor([2, 0]))
    _, log_probs = sampler.replay(network, some, steps=[4, 1])
    torch.testing.assert_close(log_probs, path.log_probs[[2, 0]][:, [4, 1]])


def test_the_gradient_of_replayed_log_probabilities(gaussian, generator):
    """Of a network scaled by a weight: the one that autograd has for the formulas written out."""
    sampler = DDIM(VP, "eps", eta=0.8)
    network = gaussian.network(sampler)
    path = sampler.sample(network, normal(3, generator), levels(5, end=0.1), generator=generator)
    weight = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    means, log_probs = sampler.replay(lambda x, t: weight * network(x, t), path)
    assert (log_probs != path.log_probs).all()
    (gradient,) = torch.autograd.grad(log_probs.sum(), weight)

    total = 0.0
    for i, (t, next_t) in enumerate(pairwise(path.times)):
        x, level = path.states[:, i], t.expand(3)
        a, s, next_a, next_s = VP.alpha(t), VP.sigma(t), VP.alpha(next_t), VP.sigma(next_t)
        std = 0.8 * next_s / s * (1 - (a / next_a) ** 2).sqrt()
        eps = weight * network(x, level)
        mean = next_a / a * (x - s * eps) + (next_s**2 - std**2).sqrt() * eps
        total = total + torch.distributions.Normal(mean, std).log_prob(path.states[:, i + 1]).sum()
        torch.testing.assert_close(means[:, i], mean)
    torch.testing.assert_close(log_probs.sum(), total)
    torch.testing.assert_close(gradient, torch.autograd.grad(total, weight)[0])


def test_one_generator_one_sample(ring, generator):
    sampler, x = FlowSDE(FLOW, "velocity"), normal(3, generator)
    network, times = ring.network(sampler), levels(5)
    state = torch.get_rng_state()
    paths = [
        sampler.sample(network, x, times, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(paths[0].states, paths[1].states)
    assert not torch.equal(paths[0].sample, paths[2].sample)
    with pytest.raises(ValueError, match=r"draws noise; pass generator=torch.Generator\('cpu'\)"):
        sampler.sample(network, x, times)


@every_sampler
def test_the_gain_is_what_a_higher_score_does_to_the_mean(sampler, gaussian, generator):
    x, more, network = normal(3, generator), normal(3, generator), gaussian.network(sampler)

    def higher(x, t):
        parts = sampler.schedule.split(network(x, t), x, t, sampler.prediction)
        score = sampler.schedule.target(*parts, t, "score") + more
        return sampler.schedule.target(*sampler.schedule.split(score, x, t, "score"), t, sampler.prediction)

    step = sampler.step(network, x, 0.8, 0.7)
    torch.testing.assert_close(
        sampler.step(higher, x, 0.8, 0.7).mean, step.mean + step.gain * more, rtol=1e-9, atol=1e-9
    )


NOISY = (DDIM(VP, "eps", eta=1.0), DDIM(VP, "eps", eta=0.4), FlowSDE(FLOW, "eps"))


@pytest.mark.parametrize("sampler", NOISY, ids=repr)
def test_the_gain_of_doobs_transform_tilts_a_gaussian(sampler, gaussian):
    """With the weight exp(x0) and h of the posterior of x0, the Gaussian moves by its variance."""
    schedule, times, tilted = sampler.schedule, levels(200, start=0.99, end=0.01), CENTRE + WIDTH**2

    def guide(step):
        _, variance = marginal(schedule, torch.tensor(step.t))
        slope = schedule.alpha(torch.tensor(step.t)) * WIDTH**2 / variance  # of E[x0 | x], and of log h
        return step.mean + step.gain * slope

    law = marginal(schedule, times, centre=tilted)
    first, last = law[0, 0], law[-1, 0].item()
    network = gaussian.network(sampler)
    path = sampler.sample(network, first.expand(1, 2), times, guide=guide, choose=lambda step: step.mean)
    assert path.sample.mean().item() == pytest.approx(last, abs=0.03)


@pytest.mark.parametrize("sampler", NOISY, ids=repr)
def test_the_variance_tilts_exactly_with_h_of_the_steps_themselves(sampler, gaussian):
    """h here is of the last state, as roll-outs find it: its slope is the product of those of the steps."""
    network, times = gaussian.network(sampler), levels(20, start=0.99, end=0.01)
    steps, (mean, variance) = affine_steps(sampler, network, times), marginal(sampler.schedule, times[0])
    behind = {t: math.prod(slope for _, slope, _ in steps[i:]) for i, t in enumerate(times.tolist())}
    path = sampler.sample(
        network,
        (mean + variance * behind[0.99]).expand(1, 2),
        times,
        guide=lambda step: step.mean + step.std**2 * behind[step.next_t],
        choose=lambda step: step.mean,
    )
    torch.testing.assert_close(path.sample, moments(steps, mean, variance)[-1].sum().expand(1, 2))


def test_a_guide_that_does_nothing_changes_no_bit(ring, generator):
    sampler, x = DDIM(VP, "eps", eta=0.7), normal(4, generator)
    network, times = ring.network(sampler), levels(8, end=1e-3)
    plain, guided = (
        sampler.sample(network, x, times, generator=torch.Generator().manual_seed(3), **options)
        for options in ({}, {"guide": lambda step: step.mean, "input_gradient": True})
    )
    for a, b in zip(plain, guided, strict=True):
        assert torch.equal(a, b)


def test_log_probabilities_of_guided_steps(ring, generator):
    sampler, x = DDIM(VP, "eps", eta=0.7), normal(4, generator)
    network = ring.network(sampler)
    path = sampler.sample(
        network, x, levels(4, end=0.1), generator=generator, guide=lambda step: step.mean + 0.5
    )
    law = torch.distributions.Normal(path.means, path.stds[:, None])
    torch.testing.assert_close(path.log_probs, law.log_prob(path.states[:, 1:]).sum(-1))
    means, log_probs = sampler.replay(network, path)
    torch.testing.assert_close(path.means, means + 0.5)
    assert (log_probs != path.log_probs).all()


def test_a_guide_differentiates_the_mean_by_the_state(ring, generator):
    """The Jacobian's product against central differences, with weights that want gradients."""
    sampler, x, v = DDIM(VP, "eps", eta=0.7), normal(4, generator), normal(4, generator)
    network, weight, found = ring.network(sampler), torch.ones((), requires_grad=True), []

    def guide(step):
        (product,) = torch.autograd.grad(step.mean, step.x, v)
        found.append(product)
        return step.mean + 0.1 * product

    path = sampler.sample(
        lambda x, t: weight * network(x, t),
        x,
        (0.6, 0.5, 0.4),
        generator=generator,
        guide=guide,
        input_gradient=True,
    )
    assert len(found) == 2 and not any(tensor.requires_grad for tensor in path)
    for i, basis in enumerate(1e-5 * torch.eye(2, dtype=torch.float64)):
        forth, back = (sampler.step(network, y, 0.6, 0.5).mean for y in (x + basis, x - basis))
        torch.testing.assert_close(found[0][:, i], ((forth - back) / 2e-5 * v).sum(1), rtol=1e-6, atol=1e-8)


def test_one_of_several_candidates_is_chosen(ring, generator):
    sampler, x = DDIM(VP, "eps", eta=1.0), normal(200, generator)
    network, times = ring.network(sampler), levels(20, end=1e-3)

    def rightmost(step):
        states = step.candidates(8, generator=generator)
        return states[torch.arange(len(states)), states[..., 0].argmax(1)]

    path = sampler.sample(network, x, times, choose=rightmost)
    assert path.sample[:, 0].mean() > 2.0
    torch.testing.assert_close(sampler.replay(network, path)[1], path.log_probs)


@every_sampler
def test_a_step_stays_on_the_device_of_the_state(sampler):
    x = torch.zeros(3, 4, device="meta")
    step = sampler.step(lambda x, t: x * t[:, None], x, 0.9, 0.8)
    assert step.mean.is_meta and step.log_prob(x).is_meta


def test_candidates_lie_as_the_step_says(ring, generator):
    sampler = DDIM(VP, "eps", eta=1.0)
    step = sampler.step(ring.network(sampler), normal(2, generator), 0.6, 0.5)
    states = step.candidates(20000, generator=generator)
    torch.testing.assert_close(states.mean(1), step.mean, atol=0.02, rtol=0)
    assert states.std(1).mean().item() == pytest.approx(step.std, rel=0.02)
    pairs = step.candidates(6, generator=generator, antithetic=True)
    torch.testing.assert_close(pairs[:, :3] + pairs[:, 3:], 2 * step.mean[:, None].expand(2, 3, 2))
    with pytest.raises(ValueError, match="count=5 must be even"):
        step.candidates(5, generator=generator, antithetic=True)


def test_a_transformer_is_sampled_replayed_and_differentiated(generator):
    """In float32, under autocast, with LLA; its input gradient with frozen weights."""
    torch.manual_seed(0)
    model = TrajectoryTransformer(TrajectoryConfig(channels=2, dim=16, depth=1, heads=2, condition_dim=3))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    condition = torch.randn(3, 3, generator=generator)

    def network(x, t):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x, t, condition=condition)

    sampler, x = FlowSDE(FLOW, "velocity"), torch.randn(3, 5, 2, generator=generator)
    path = sampler.sample(network, x, levels(4), generator=generator)
    assert path.states.shape == (3, 5, 5, 2) and path.sample.dtype == torch.float32
    _, log_probs = sampler.replay(network, path, steps=[0, 3])
    torch.testing.assert_close(log_probs, path.log_probs[:, [0, 3]])
    log_probs.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters()) and model.in_proj.weight.grad.any()

    def guide(step):
        (product,) = torch.autograd.grad(step.mean, step.x, torch.ones_like(step.x))
        return step.mean + step.std**2 * product

    model.requires_grad_(False)
    guided = sampler.sample(network, x, levels(4), generator=generator, guide=guide, input_gradient=True)
    assert guided.sample.isfinite().all()


def zeros(x, t):
    return torch.zeros_like(x)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    (
        (lambda x: DDIM(VP, "noise"), ValueError, "prediction='noise' is unknown; choose one of eps, x0"),
        (lambda x: DDIM(VP, "eps", eta=1.5), ValueError, r"eta=1.5 must lie in \[0, 1\]"),
        (lambda x: FlowSDE(FLOW, "eps", noise=-1.0), ValueError, "noise=-1.0 must be at least 0 and finite"),
        (
            lambda x: DDIM(VP, "eps").sample(zeros, x.bfloat16(), levels(2)),
            TypeError,
            "x has dtype torch.bfloat16; use float32 or float64, and autocast inside the model",
        ),
        (
            lambda x: DDIM(VP, "eps").sample(zeros, x, [0.5, 0.7]),
            ValueError,
            r"times=\[0.5, 0.7\] must fall within \[0, 1\]; levels\(steps\) makes some",
        ),
        (lambda x: DDIM(VP, "eps").sample(zeros, x, [1.5, 0.0]), ValueError, "must fall within"),
        (lambda x: DDIM(VP, "eps").sample(zeros, x, [1.0]), ValueError, "must fall within"),
        (
            lambda x: DDIM(CosineVP(), "eps").sample(zeros, x, levels(2)),
            ValueError,
            r"times\[0\]=1.0 has alpha .*, and prediction='eps' says nothing of x0 there; begin below",
        ),
        (
            lambda x: DDIM(VP, "eps").sample(lambda x, t: x[:, :1], x, levels(2)),
            ValueError,
            r"the prediction of the model has shape \(3, 1\); expected that of x, \(3, 2\)",
        ),
        (
            lambda x: DDIM(VP, "eps").sample(zeros, x, levels(2), guide=lambda step: step.mean[:1]),
            ValueError,
            r"the mean that guide gives has shape \(1, 2\)",
        ),
        (
            lambda x: DDIM(VP, "eps").sample(zeros, x, levels(2), choose=lambda step: step.mean[:1]),
            ValueError,
            r"the state that choose gives has shape \(1, 2\)",
        ),
        (
            lambda x: DDIM(VP, "eps").replay(zeros, DDIM(VP, "eps").sample(zeros, x, levels(2)), steps=[2]),
            IndexError,
            "step 2 must be 0 to 1: the trajectory has no other",
        ),
    ),
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(3, 2))
