"""GRPO and GiGPO against examples that were worked out by hand."""

import pytest
import torch

from flashlla.models.rl import anchor_normalized, group_in_group, group_normalized


def test_a_group_worked_out_by_hand():
    """Returns 1, 0, 0, 3: mean 1, standard deviation sqrt(1.5)."""
    returns = torch.tensor([[1.0, 0.0, 0.0, 3.0]], dtype=torch.float64)
    expected = torch.tensor([[0.0, -1.0, -1.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(group_normalized(returns, scale=False), expected)
    torch.testing.assert_close(group_normalized(returns, eps=0.0), expected / 1.5**0.5)


@pytest.fixture
def group():
    """Two trajectories. Observation 7 comes three times, twice in the first of them, 8 comes twice, 9 once;
    the last turn of the second was not made.
    """
    rewards = torch.tensor([[[0.0, 0.0, 4.0], [0.0, 2.0, 99.0]]], dtype=torch.float64)
    anchors = torch.tensor([[[7, 7, 8], [7, 9, 8]]])
    mask = torch.tensor([[[True, True, True], [True, True, False]]])
    return rewards, anchors, mask


def test_steps_worked_out_by_hand(group):
    """Returns from each turn on, discount 1/2: 1, 2, 4 and 1, 2. Behind 7 they are 1, 2, 1: mean 4/3."""
    _, anchors, mask = group
    returns = torch.tensor([[[1.0, 2.0, 4.0], [1.0, 2.0, torch.nan]]], dtype=torch.float64)
    expected = torch.tensor([[[-1 / 3, 2 / 3, 0.0], [-1 / 3, 0.0, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(anchor_normalized(returns, anchors, mask), expected)
    deviation = (2 / 9) ** 0.5
    scaled = anchor_normalized(returns, anchors, mask, scale=True, eps=0.1)
    torch.testing.assert_close(scaled, expected / (deviation + 0.1))


def test_both_parts_worked_out_by_hand(group):
    """Returns of the trajectories are 4 and 2: advantages 1 and -1, also when they are scaled."""
    rewards, anchors, mask = group
    found = group_in_group(rewards, anchors, mask, discount=0.5, weight=3.0)
    expected = torch.tensor([[[0.0, 3.0, 1.0], [-2.0, -1.0, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    scaled = group_in_group(rewards, anchors, mask, discount=0.5, weight=3.0, scale=True)
    steps = 3 / (2 / 9) ** 0.5
    expected = torch.tensor([[[1 - steps / 3, 1 + 2 * steps / 3, 1.0], [-1 - steps / 3, -1.0, 0.0]]])
    torch.testing.assert_close(scaled, expected.double(), atol=1e-2, rtol=0)


def test_groups_do_not_see_one_another(group, generator):
    rewards = torch.randn(4, 3, 5, generator=generator)
    anchors = torch.randint(4, (4, 3, 5), generator=generator)
    mask = torch.rand(4, 3, 5, generator=generator) < 0.8
    found = group_in_group(rewards, anchors, mask, scale=True)
    for i in range(4):
        torch.testing.assert_close(found[i], group_in_group(rewards[i], anchors[i], mask[i], scale=True))
    assert (found[~mask] == 0).all()


def test_anchors_that_all_differ_leave_grpo(generator):
    rewards = torch.randn(2, 3, 4, generator=generator)
    anchors = torch.arange(24).view(2, 3, 4)
    whole = group_normalized(rewards.sum(-1), dim=-1, scale=False)[..., None].expand_as(rewards)
    torch.testing.assert_close(group_in_group(rewards, anchors), whole)
