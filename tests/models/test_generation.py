"""Generation: the cache changes the speed, never the tokens."""

import pytest
import torch

from flashlla import models


@torch.no_grad()
def generate_without_cache(model, tokens, max_new_tokens, *sampling):
    for _ in range(max_new_tokens):
        new = models.generation._sample(model(tokens)[:, -1], *sampling)
        tokens = torch.cat([tokens, new[:, None]], 1)
    return tokens


@pytest.mark.parametrize("mixer", sorted(models.mixers.MIXERS))
@pytest.mark.parametrize("options", ({}, {"window_size": 4}))
def test_greedy_tokens_are_those_of_the_full_pass(mixer, options, make_model, tokens):
    model = make_model(mixer, mixer_options=options)
    assert torch.equal(
        models.generate(model, tokens, 15), generate_without_cache(model, tokens, 15, 0, None, None, None)
    )


@pytest.mark.parametrize("mixer", sorted(models.mixers.MIXERS))
@pytest.mark.parametrize(("top_k", "top_p"), ((None, None), (5, None), (None, 0.7), (8, 0.9)))
def test_sampled_tokens_are_those_of_the_full_pass(mixer, top_k, top_p, make_model, tokens):
    model = make_model(mixer, dtype=torch.float64)

    def seeded():
        return torch.Generator().manual_seed(5)

    cached = models.generate(model, tokens, 10, temperature=0.8, top_k=top_k, top_p=top_p, generator=seeded())
    assert torch.equal(cached, generate_without_cache(model, tokens, 10, 0.8, top_k, top_p, seeded()))
    assert not torch.equal(cached, models.generate(model, tokens, 10))


def test_sampling_follows_the_distribution(generator):
    p = torch.tensor([0.05, 0.5, 0.15, 0.3])
    logits = p.log().expand(4000, 4)

    def frequencies(temperature=1.0, top_k=None, top_p=None):
        drawn = models.generation._sample(logits, temperature, top_k, top_p, generator)
        return torch.bincount(drawn, minlength=4) / 4000

    torch.testing.assert_close(frequencies(), p, rtol=0, atol=0.04)
    torch.testing.assert_close(frequencies(0.5), p**2 / (p**2).sum(), rtol=0, atol=0.04)
    torch.testing.assert_close(frequencies(top_k=2), torch.tensor([0, 0.625, 0, 0.375]), rtol=0, atol=0.04)
    torch.testing.assert_close(frequencies(top_p=0.6), torch.tensor([0, 0.625, 0, 0.375]), rtol=0, atol=0.04)
    assert frequencies(top_p=0.1)[1] == 1
    assert frequencies(top_k=100, top_p=1.0)[0] > 0
    assert frequencies(0)[1] == 1


def test_tokens_are_reported_as_they_come(make_model, tokens):
    model, seen = make_model(), []
    out = models.generate(model, tokens, 4, on_token=seen.append)
    assert torch.equal(torch.stack(seen, 1), out[:, 12:])
    assert torch.equal(out[:, :12], tokens)
    assert torch.equal(models.generate(model, tokens, 0), tokens)


def test_the_prompt_is_read_once(make_model, tokens):
    model, lengths = make_model(), []
    model.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    models.generate(model, tokens, 5)
    assert lengths == [12, 1, 1, 1, 1]


def test_wrong_arguments(make_model, tokens):
    model = make_model()
    for error, message, args, options in (
        (TypeError, "prompt must be", ([[1]], 1), {}),
        (TypeError, "prompt has dtype torch.int32", (tokens.int(), 1), {}),
        (ValueError, r"prompt has shape \(3, 0\)", (tokens[:, :0], 1), {}),
        (ValueError, r"prompt has the token 32; tokens lie in \[0, 32\)", (tokens.clamp(min=32), 1), {}),
        (ValueError, "prompt has the token -1", (tokens - tokens - 1, 1), {}),
        (ValueError, "max_new_tokens=-1", (tokens, -1), {}),
        (TypeError, "max_new_tokens must be an int", (tokens, 1.5), {}),
        (ValueError, "temperature=-0.1", (tokens, 1), {"temperature": -0.1}),
        (ValueError, "top_k=0", (tokens, 1), {"temperature": 1.0, "top_k": 0}),
        (ValueError, "top_p=1.5", (tokens, 1), {"temperature": 1.0, "top_p": 1.5}),
        (ValueError, "need temperature > 0", (tokens, 1), {"top_k": 3}),
    ):
        with pytest.raises(error, match=message):
            models.generate(model, *args, **options)
