"""Losses, divergences and log-probabilities against closed forms, enumeration and autograd."""

import math

import pytest
import torch

from flashlla.models.rl import (
    clipped_surrogate,
    clipped_value_loss,
    dpo_loss,
    kl_estimate,
    taken_log_probs,
    token_entropy,
    token_log_probs,
)


def test_before_an_update_the_surrogate_is_the_policy_gradient(generator):
    log_probs = torch.randn(4, 5, generator=generator).requires_grad_()
    advantages = torch.randn(4, 5, generator=generator)
    clipped_surrogate(log_probs, log_probs.detach(), advantages).sum().backward()
    torch.testing.assert_close(log_probs.grad, -advantages)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves"),
    (
        (1.1, 1.0, -1.1, True),
        (1.5, 1.0, -1.2, False),  # no more to gain
        (0.5, 1.0, -0.5, True),  # back to where it was
        (0.9, -1.0, 0.9, True),
        (0.5, -1.0, 0.8, False),
        (1.5, -1.0, 1.5, True),
        (9.0, -1.0, 9.0, True),
    ),
)
def test_the_surrogate_is_clipped_where_a_move_would_pay(ratio, advantage, loss, moves):
    log_probs = torch.tensor([math.log(ratio)], requires_grad=True)
    found = clipped_surrogate(log_probs, torch.zeros(1), torch.tensor([advantage]), clip=0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(loss)
    assert (log_probs.grad.item() != 0) == moves


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"), ((9.0, -1.0, 3.0), (2.0, -1.0, 2.0), (9.0, 1.0, -1.2))
)
def test_the_dual_clip_bounds_losses_of_negative_advantages(ratio, advantage, loss):
    log_probs = torch.tensor([math.log(ratio)], requires_grad=True)
    found = clipped_surrogate(log_probs, torch.zeros(1), torch.tensor([advantage]), dual_clip=3.0)
    found.sum().backward()
    assert found.item() == pytest.approx(loss)
    assert (log_probs.grad.item() == 0) == (ratio == 9.0)


@pytest.mark.parametrize("dual_clip", (None, 3.0))
def test_gradients_of_the_surrogate_are_those_of_its_definition(dual_clip, generator):
    """Written with the largest and the least of numbers, one at a time, and differentiated by autograd."""
    old = torch.randn(500, generator=generator, dtype=torch.float64)
    log_probs = old + 1.5 * torch.randn(500, generator=generator, dtype=torch.float64)
    advantages = torch.randn(500, generator=generator, dtype=torch.float64)
    log_probs.requires_grad_()

    def gain(log_prob, before, advantage):
        ratio = (log_prob - before).exp()
        clipped = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        return torch.maximum(clipped, 3.0 * advantage) if dual_clip and advantage < 0 else clipped

    parts = zip(log_probs, old, advantages, strict=True)
    expected = -torch.stack([gain(*part) for part in parts])
    found = clipped_surrogate(log_probs, old, advantages, dual_clip=dual_clip)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(x.sum(), log_probs, retain_graph=True)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients)
    ratios = (log_probs - old).exp().detach()
    moves = torch.where(advantages > 0, ratios < 1.2, (ratios > 0.8) & (ratios < (dual_clip or math.inf)))
    torch.testing.assert_close(gradients[0], torch.where(moves, -advantages * ratios, 0.0))


@pytest.mark.parametrize(
    ("value", "target", "loss", "moves"),
    ((0.1, 1.0, 0.405, True), (0.5, 1.0, 0.32, False), (0.5, -1.0, 1.125, True), (-0.5, 1.0, 1.125, True)),
)
def test_a_value_that_moved_far_towards_its_target_stops(value, target, loss, moves):
    values = torch.tensor([value], requires_grad=True)
    found = clipped_value_loss(values, torch.zeros(1), torch.tensor([target]), clip=0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(loss)
    assert (values.grad.item() != 0) == moves


def test_dpo_is_a_logistic_loss_of_margins(generator):
    chosen, rejected, before, other = torch.randn(4, 6, generator=generator)
    margins = chosen - before - rejected + other
    torch.testing.assert_close(
        dpo_loss(chosen, rejected, before, other, beta=0.3), (1 + (-0.3 * margins).exp()).log()
    )
    at_start = dpo_loss(chosen, rejected, chosen, rejected)
    torch.testing.assert_close(at_start, torch.full((6,), math.log(2.0)))


def test_dpo_is_least_at_the_policy_that_solves_the_regularised_problem():
    """With Bradley-Terry preferences of rewards r the minimum is the reference times exp(r / beta)."""
    beta, gains = 0.5, torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64)
    reference = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()
    best = (reference + gains / beta).log_softmax(0).requires_grad_()
    total = 0.0
    for i in range(3):
        for j in range(3):
            if i != j:
                weight = torch.sigmoid(gains[i] - gains[j])
                total = total + weight * dpo_loss(best[i], best[j], reference[i], reference[j], beta=beta)
    total.backward()
    torch.testing.assert_close(best.grad, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.fixture
def policies(generator):
    logits = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    return logits[0].requires_grad_(), logits[1]


def test_estimates_of_the_kl_in_the_mean(policies):
    logits, other = policies
    log_p, log_q = logits.log_softmax(-1).detach(), other.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum()
    for kind in ("k1", "k3"):
        torch.testing.assert_close((log_p.exp() * kl_estimate(log_p, log_q, kind)).sum(), kl)
    assert (kl_estimate(log_p, log_q, "k3") >= 0).all() and (kl_estimate(log_p, log_q, "k2") >= 0).all()
    assert not torch.isclose((log_p.exp() * kl_estimate(log_p, log_q, "k2")).sum(), kl)
    with pytest.raises(ValueError, match="kind='k4' is unknown; choose one of k1, k2, k3"):
        kl_estimate(log_p, log_q, "k4")


@pytest.mark.parametrize("kind", ("k1", "k2", "k3"))
def test_mean_gradients_of_the_estimates(kind, policies):
    logits, other = policies
    log_p, log_q = logits.log_softmax(-1), other.log_softmax(-1)
    (found,) = torch.autograd.grad((log_p.detach().exp() * kl_estimate(log_p, log_q, kind)).sum(), logits)
    log_p = logits.log_softmax(-1)
    divergence = {
        "k1": 0.0 * log_p.sum(),
        "k2": (log_p.exp() * (log_p - log_q)).sum(),
        "k3": (log_q.exp() * (log_q - log_p)).sum(),
    }[kind]
    torch.testing.assert_close(found, torch.autograd.grad(divergence, logits)[0], atol=1e-12, rtol=1e-9)


def test_entropy(generator):
    logits = torch.randn(3, 4, 9, generator=generator)
    torch.testing.assert_close(
        token_entropy(logits), torch.distributions.Categorical(logits=logits).entropy()
    )
    assert token_entropy(torch.zeros(16)).item() == pytest.approx(math.log(16))
    certain = torch.tensor([0.0, -torch.inf, 0.0], requires_grad=True)
    token_entropy(certain).backward()
    assert certain.grad.isfinite().all() and token_entropy(certain).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16, torch.float16))
def test_log_probs_are_those_of_a_log_softmax(dtype, generator):
    logits = (5 * torch.randn(3, 4, 50, generator=generator)).to(dtype).requires_grad_()
    tokens = torch.randint(50, (3, 4), generator=generator)
    found = token_log_probs(logits, tokens)
    wide = logits.detach().double().requires_grad_()
    expected = wide.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=1e-6)
    weights = torch.randn(3, 4, generator=generator)
    found.backward(weights.to(found.dtype))
    expected.backward(weights.double())
    error = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(logits.grad.double(), wide.grad, atol=error, rtol=error)


def test_taken_log_probs_are_those_of_a_pass_over_everything(make_model, tokens):
    model = make_model()
    whole = model(tokens).log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    for start in (1, 5, 11):
        torch.testing.assert_close(taken_log_probs(model, tokens, start), whole[:, start - 1 :])
    warm = (model(tokens) / 2).log_softmax(-1)[:, 3:-1].gather(-1, tokens[:, 4:, None])[..., 0]
    torch.testing.assert_close(taken_log_probs(model, tokens, 4, temperature=2.0), warm)
    for start in (0, 12):
        with pytest.raises(ValueError, match=f"start={start} must be 1 to 11: tokens has 12"):
            taken_log_probs(model, tokens, start)
