"""Rollouts: what was drawn, its mask and its log-probabilities, for prompts of any lengths."""

import pytest
import torch

from flashlla import models
from flashlla.models.rl import masked_mean, rollout, taken_log_probs

END = 3


@pytest.fixture(params=("lla", "gated_deltanet"))
def model(request, make_model):
    return make_model(request.param).eval()


def test_prompts_of_one_length(model, tokens, generator):
    out = rollout(model, tokens, 5, samples=2, generator=generator)
    assert out.tokens.shape == (6, 17) and out.start == 12 and out.mask.all()
    assert torch.equal(out.tokens[:, :12], tokens.repeat_interleave(2, 0))
    assert torch.equal(out.taken, out.tokens[:, 12:])
    again = taken_log_probs(model, out.tokens, out.start)
    assert torch.equal(out.log_probs, again.detach()) and not out.log_probs.requires_grad


def test_prompts_of_any_lengths_as_each_alone(model, generator):
    prompts = [torch.randint(0, 32, (n,), generator=generator) for n in (2, 6, 4)]
    generators = [torch.Generator().manual_seed(i) for i in range(6)]
    out = rollout(model, prompts, 7, samples=2, generator=generators, eos_token_id=END, pad_token_id=31)
    assert out.start == 2 and out.tokens.shape == (6, 13)
    for row in range(6):
        prompt = prompts[row // 2]
        alone = models.generate(
            model,
            prompt[None],
            7,
            temperature=1.0,
            generator=torch.Generator().manual_seed(row),
            eos_token_id=END,
        )[0]
        drawn = len(alone) - len(prompt)
        assert torch.equal(out.tokens[row, : len(alone)], alone)
        places = torch.arange(2, 13)
        expected = (places >= len(prompt)) & (places < len(prompt) + drawn)
        assert torch.equal(out.mask[row], expected)
        log_probs = taken_log_probs(model, alone[None], len(prompt))[0]
        torch.testing.assert_close(out.log_probs[row, expected], log_probs)
        assert (out.log_probs[row, ~expected] == 0).all()


def test_a_row_ends_with_the_token_that_ends_it(make_model):
    model = make_model(vocab_size=4).eval()
    prompts = torch.zeros(64, 3, dtype=torch.int64)
    out = rollout(model, prompts, 6, generator=torch.Generator().manual_seed(0), eos_token_id=[END])
    ends = (out.taken == END).int().argmax(1)
    ended = (out.taken == END).any(1)
    assert ended.any() and not ended.all()
    lengths = torch.where(ended, ends + 1, out.mask.shape[1])
    assert torch.equal(out.mask.sum(1), lengths)


def test_temperature(make_model, tokens, generator):
    model = make_model().eval()
    out = rollout(model, tokens, 4, temperature=0.5, generator=generator)
    torch.testing.assert_close(out.log_probs, taken_log_probs(model, out.tokens, 12, 0.5))
    with pytest.raises(ValueError, match="temperature=0 must be above 0"):
        rollout(model, tokens, 4, temperature=0)


def test_a_mean_over_many_rollouts_is_an_expectation(make_model):
    """Of the first token drawn, whose probabilities are known."""
    model = make_model(vocab_size=8).eval()
    prompt = torch.tensor([[1, 2, 3]])
    p = model(prompt)[0, -1].softmax(-1).detach()
    out = rollout(model, prompt, 1, samples=4000, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(out.taken[:, 0], minlength=8) / 4000
    torch.testing.assert_close(shares, p, atol=0.03, rtol=0)
    entropy = -(p * p.log()).sum()
    assert masked_mean(-out.log_probs, out.mask).item() == pytest.approx(entropy.item(), abs=0.05)
