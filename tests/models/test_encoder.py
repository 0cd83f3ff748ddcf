"""The encoder: both directions, padding, masked tokens learned, classes."""

import pytest
import torch
from torch.nn import functional as F

from flashlla import models


@pytest.fixture
def build():
    def make(dtype=None, **changes):
        torch.manual_seed(0)
        sizes = {"vocab_size": 32, "dim": 24, "depth": 2, "heads": 4, **changes}
        return models.Encoder(models.EncoderConfig(**sizes), dtype=dtype)

    return make


@pytest.mark.parametrize("mixer", ("lla", "parallax", "gated_deltanet", ("mamba2", "lla")), ids=str)
def test_padding_leaves_no_trace(mixer, build, generator):
    model, tokens = build(torch.float64, mixer=mixer), torch.randint(32, (2, 9), generator=generator)
    out = model(tokens, lengths=[9, 5])
    assert out.shape == (2, 9, 32)
    torch.testing.assert_close(out[1, :5], model(tokens[1:, :5])[0])
    torch.testing.assert_close(out[:1], model(tokens[:1]))


def test_a_position_sees_what_comes_later(build, generator):
    model, tokens = build(), torch.randint(32, (1, 9), generator=generator)
    other = tokens.clone()
    other[0, -1] = (other[0, -1] + 1) % 32
    assert (model(other) - model(tokens))[0, 0].abs().max() > 1e-6


def test_classes_have_a_head_of_their_own(build):
    model = build(outputs=5)
    assert model(torch.zeros(1, 4, dtype=torch.int64)).shape == (1, 4, 5)
    assert model.hidden(torch.zeros(1, 4, dtype=torch.int64)).shape == (1, 4, 24)
    assert build().head is None and model.head.shape == (5, 24)


@pytest.mark.parametrize("mixer", ("lla", "mamba2"))
def test_masked_tokens_are_learned_from_what_comes_later(mixer, build, generator):
    """Every token stands twice, and the first of the two is masked: those before it do not tell it."""
    model = build(mixer=mixer, vocab_size=9)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(80):
        tokens = torch.randint(8, (16, 6), generator=generator).repeat_interleave(2, 1)
        masked = torch.rand(tokens.shape, generator=generator) < 0.3
        masked[:, 1::2] = False
        logits = model(tokens.masked_fill(masked, 8))
        losses.append(F.cross_entropy(logits[masked], tokens[masked]))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > 2.0  # log 8 is 2.08
    assert sum(losses[-5:]) / 5 < 1.0


def test_wrong_inputs(build):
    model = build()
    with pytest.raises(TypeError, match=r"tokens has dtype torch\.int32; use int64"):
        model(torch.zeros(1, 4, dtype=torch.int32))
    with pytest.raises(ValueError, match="lengths has the entry 5"):
        model(torch.zeros(1, 4, dtype=torch.int64), lengths=[5])
    with pytest.raises(ValueError, match="outputs=0 must be at least 1"):
        build(outputs=0)
