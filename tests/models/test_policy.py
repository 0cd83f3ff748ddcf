"""The policy: heads on a language model, decoding of an episode, and a bandit that is learned."""

import pytest
import torch
from torch.nn import functional as F

from flashlla import models

SIZES = {"vocab_size": 32, "dim": 24, "depth": 2, "heads": 4}


@pytest.fixture
def build():
    def make(dtype=None, **changes):
        torch.manual_seed(0)
        return models.PolicyModel(models.PolicyConfig(**{**SIZES, **changes}), dtype=dtype)

    return make


def randomised(policy):
    for p in policy.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return policy


def test_shapes_and_a_start_without_preference(build):
    policy, tokens = build(actions=5, value_heads=3), torch.zeros(2, 7, dtype=torch.int64)
    out = policy(tokens)
    assert out.logits.shape == (2, 7, 5) and out.values.shape == (2, 7, 3)
    assert not out.logits.any() and not out.values.any()
    assert build()(tokens).logits.shape == (2, 7, 32)


def test_tokens_as_actions_are_those_of_the_language_model(build):
    policy, tokens = randomised(build()), torch.arange(10).view(2, 5)
    assert torch.equal(policy(tokens).logits, policy.actor(tokens))
    assert models.generate(policy.actor, tokens, 3).shape == (2, 8)


@pytest.mark.parametrize("mixer", ("lla", "gated_deltanet"))
def test_an_episode_is_read_step_by_step(mixer, build, generator):
    policy = randomised(build(torch.float64, actions=5, mixer=mixer))
    tokens = torch.randint(32, (2, 12), generator=generator)
    with torch.no_grad():
        whole, states = policy(tokens), policy.make_states(2, 12)
        first = policy(tokens[:, :6], states, lengths=[6, 4], last_only=True)
        torch.testing.assert_close(first.values[:, 0], torch.stack([whole.values[0, 5], whole.values[1, 3]]))
        step = policy(torch.stack([tokens[0, 6:7], tokens[1, 4:5]]), states)
    torch.testing.assert_close(step.logits[:, 0], torch.stack([whole.logits[0, 6], whole.logits[1, 4]]))


def test_reinforce_with_a_baseline_learns_to_repeat_what_it_saw(build, generator):
    """The first token names the action that pays, three tokens later."""
    policy = build(actions=4)
    optimizer, rewards = torch.optim.AdamW(policy.parameters(), lr=1e-2), []
    for _ in range(80):
        tokens = torch.randint(4, (32, 4), generator=generator)
        out = policy(tokens)
        logits, value = out.logits[:, -1], out.values[:, -1, 0]
        action = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        reward = (action == tokens[:, 0]).float()
        taken = F.cross_entropy(logits, action, reduction="none")
        loss = (taken * (reward - value).detach() + (reward - value) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rewards.append(reward.mean().item())
    assert sum(rewards[:5]) / 5 < 0.4
    assert sum(rewards[-10:]) / 10 > 0.9


def test_wrong_configurations():
    with pytest.raises(ValueError, match="value_heads=0 must be at least 1"):
        models.PolicyConfig(**SIZES, value_heads=0)
    with pytest.raises(ValueError, match="tie_embeddings=False with actions=3"):
        models.PolicyConfig(**SIZES, actions=3, tie_embeddings=False)
