"""Returns and advantages against sums that are written out, and against an enumerated policy gradient."""

import itertools

import pytest
import torch

from flashlla.models.rl import (
    discounted_sums,
    generalized_advantages,
    group_normalized,
    leave_one_out,
    masked_mean,
    rewards_to_go,
    whiten,
)


@pytest.fixture
def rewards(generator):
    return torch.randn(3, 6, generator=generator, dtype=torch.float64)


@pytest.fixture
def values(generator):
    return torch.randn(3, 6, generator=generator, dtype=torch.float64)


@pytest.fixture
def mask():
    """Two turns with an observation between them, a short row, and an empty one."""
    return torch.tensor([[1, 1, 0, 0, 1, 1], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)


def test_discounted_sums_are_sums(rewards):
    expected = [[sum(0.9 ** (u - t) * row[u] for u in range(t, 6)) for t in range(6)] for row in rewards]
    torch.testing.assert_close(discounted_sums(rewards, 0.9), torch.tensor(expected, dtype=torch.float64))
    last = torch.ones(3, dtype=torch.float64)
    behind = discounted_sums(rewards, 0.9, last) - discounted_sums(rewards, 0.9)
    torch.testing.assert_close(behind[0], 0.9 ** torch.arange(6, 0, -1, dtype=torch.float64))


def test_a_factor_of_zero_ends_an_episode(rewards):
    factors = torch.ones(6, dtype=torch.float64)
    factors[2] = 0
    both = discounted_sums(rewards, factors)
    torch.testing.assert_close(both[:, :3], discounted_sums(rewards[:, :3], 1.0))
    torch.testing.assert_close(both[:, 3:], discounted_sums(rewards[:, 3:], 1.0))


def test_no_steps_have_no_sums():
    assert discounted_sums(torch.zeros(2, 0), 0.5).shape == (2, 0)


@pytest.mark.parametrize("decay", (0.0, 0.7, 1.0))
def test_steps_that_are_masked_might_as_well_not_be_there(decay, rewards, values, mask):
    last = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    options = {"discount": 0.8, "decay": decay}
    masked = generalized_advantages(rewards, values, mask, last_values=last, **options)
    returns = rewards_to_go(rewards, mask, 0.8)
    assert (masked[~mask] == 0).all() and (returns[~mask] == 0).all()
    for row, (r, v, kept) in enumerate(zip(rewards, values, mask, strict=True)):
        alone = (
            generalized_advantages(r[kept][None], v[kept][None], last_values=last[row : row + 1], **options)
            if kept.any()
            else torch.zeros(1, 0, dtype=torch.float64)
        )
        torch.testing.assert_close(masked[row, kept], alone[0])
        torch.testing.assert_close(returns[row, kept], rewards_to_go(r[kept], discount=0.8))


def test_ends_of_the_generalised_estimate(rewards, values):
    monte_carlo = generalized_advantages(rewards, values, discount=0.9, decay=1.0)
    torch.testing.assert_close(monte_carlo, rewards_to_go(rewards, discount=0.9) - values)
    one_step = generalized_advantages(rewards, values, discount=0.9, decay=0.0)
    following = torch.cat([values[:, 1:], torch.zeros(3, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(one_step, rewards + 0.9 * following - values)


def test_exact_values_leave_no_bias_whatever_the_decay():
    """Two steps of two actions: the mean advantage of the first action is its Q less V."""
    p = torch.tensor([0.3, 0.7], dtype=torch.float64)
    gain = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)  # of the second action, by the first
    second = gain @ p
    first = second @ p
    for decay in (0.0, 0.5, 1.0):
        for a in range(2):
            rewards = torch.stack([torch.zeros(2, dtype=torch.float64), gain[a]], 1)
            values = torch.stack([first.expand(2), second[a].expand(2)], 1)
            mean = p @ generalized_advantages(rewards, values, decay=decay)[:, 0]
            torch.testing.assert_close(mean, second[a] - first)


def test_leave_one_out_is_each_less_the_mean_of_the_others(generator):
    returns = torch.randn(2, 4, 3, generator=generator)
    found = leave_one_out(returns, dim=1)
    for i in range(4):
        others = [j for j in range(4) if j != i]
        torch.testing.assert_close(found[:, i], returns[:, i] - returns[:, others].mean(1))
    with pytest.raises(ValueError, match="the group has 1 member; draw two samples a prompt"):
        leave_one_out(torch.zeros(5, 1))


@pytest.mark.parametrize("size", (2, 3))
def test_leave_one_out_is_without_bias(size):
    """Over all groups the mean gradient is that of the expected reward; that of GRPO is another."""
    logits = torch.tensor([0.2, -0.5, 1.0], dtype=torch.float64, requires_grad=True)
    gains = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    p = logits.softmax(-1)
    (true,) = torch.autograd.grad(p @ gains, logits, retain_graph=True)

    def mean_gradient(advantages):
        total = 0.0
        for group in itertools.product(range(3), repeat=size):
            chance = p[list(group)].prod().detach()
            total = total + chance * (advantages(gains[list(group)]) * p[list(group)].log()).mean()
        return torch.autograd.grad(total, logits, retain_graph=True)[0]

    torch.testing.assert_close(mean_gradient(leave_one_out), true)
    centred = mean_gradient(lambda g: group_normalized(g, scale=False))
    torch.testing.assert_close(centred, true * (size - 1) / size)
    assert not torch.allclose(mean_gradient(group_normalized), true, rtol=0.05)


def test_groups_are_normalised_on_their_own(generator):
    returns = torch.randn(5, 8, generator=generator) * 3 + 7
    found = group_normalized(returns)
    torch.testing.assert_close(found.mean(1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(1, correction=0), torch.ones(5), atol=1e-3, rtol=0)
    assert (group_normalized(torch.full((2, 4), 3.0)) == 0).all()


def test_masked_means_do_not_see_what_is_masked(rewards, mask):
    spoilt = rewards.masked_fill(~mask, torch.nan)
    torch.testing.assert_close(masked_mean(spoilt, mask), rewards[mask].mean())
    by_row = masked_mean(spoilt, mask, dim=-1)
    torch.testing.assert_close(
        by_row, torch.stack([rewards[0, mask[0]].mean(), rewards[1, mask[1]].mean(), by_row[2]])
    )
    assert by_row[2] == 0
    torch.testing.assert_close(
        masked_mean(rewards, torch.tensor([True] * 3 + [False] * 3)), rewards[:, :3].mean()
    )


def test_whitened_entries_have_mean_0_and_variance_1(rewards, mask):
    found = whiten(rewards * 5 + 3, mask)
    assert (found[~mask] == 0).all()
    torch.testing.assert_close(found[mask].mean().item(), 0.0, atol=1e-9, rtol=0)
    torch.testing.assert_close(found[mask].std(correction=0).item(), 1.0, atol=1e-6, rtol=0)
