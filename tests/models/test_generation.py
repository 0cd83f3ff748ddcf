"""Generation: caches, batches and streams change the speed, never the tokens."""

import copy
import functools

import pytest
import torch

from flashlla import models
from flashlla.models.generation import sample
from flashlla.models.generation.text import final_pieces
from flashlla.nn.cache import KINDS

every_mixer = pytest.mark.parametrize("mixer", sorted(models.mixers.ATTENTION_MIXERS))
every_cache = pytest.mark.parametrize("cache", KINDS)
WINDOW = {"window_size": 6}  # every kind of cache serves a layer with a window


def on_a_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")(test))


@torch.no_grad()
def generate_without_cache(model, tokens, max_new_tokens, *sampling):
    for _ in range(max_new_tokens):
        new = sample(model(tokens)[:, -1], *sampling)
        tokens = torch.cat([tokens, new[:, None]], 1)
    return tokens


def seeded(*seeds):
    """One generator for each seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def ragged(tokens):
    """Prompts of different lengths, from the same tokens."""
    return [tokens[0], tokens[1, :1], tokens[2, :7]]


# ---- tokens ----------------------------------------------------------------------------------------------


@every_mixer
@every_cache
def test_greedy_tokens_are_those_of_the_full_pass(mixer, cache, make_model, tokens):
    for options in ({}, WINDOW):
        if cache != "sliding" or options:
            model = make_model(mixer, mixer_options=options)
            expected = generate_without_cache(model, tokens, 15)
            assert torch.equal(models.generate(model, tokens, 15, cache=cache), expected)


@every_mixer
@pytest.mark.parametrize("cache", ("static", "paged"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_low_precision_tokens_are_likeliest_up_to_rounding(mixer, cache, dtype, make_model, tokens):
    """Both ways round differently: a token whose logit is further behind than that is an error."""
    model = make_model(mixer, dtype=dtype)
    out = models.generate(model, tokens, 20, cache=cache)
    with torch.no_grad():
        logits = model(out[:, :-1])[:, 11:].float()
        exact = copy.deepcopy(model).float()(out[:, :-1])[:, 11:]
    margin = 3 * (logits - exact).abs().max()
    behind = exact.amax(-1) - exact.gather(-1, out[:, 12:, None])[..., 0]
    assert behind.max() <= margin
    top = exact.topk(2).values
    clear = top[..., 0] - top[..., 1] > margin
    assert clear.float().mean() > 0.3
    assert torch.equal(out[:, 12:][clear], exact.argmax(-1)[clear])


@every_mixer
@pytest.mark.parametrize(("top_k", "top_p"), ((None, None), (5, None), (None, 0.7), (8, 0.9)))
def test_sampled_tokens_are_those_of_the_full_pass(mixer, top_k, top_p, make_model, tokens):
    model = make_model(mixer, dtype=torch.float64)
    sampling = {"temperature": 0.8, "top_k": top_k, "top_p": top_p}
    cached = models.generate(model, tokens, 10, **sampling, generator=seeded(5)[0])
    expected = generate_without_cache(model, tokens, 10, 0.8, top_k, top_p, seeded(5)[0])
    assert torch.equal(cached, expected)
    assert not torch.equal(cached, models.generate(model, tokens, 10))


@every_mixer
@every_cache
def test_prompts_of_different_lengths_go_on_as_each_alone(mixer, cache, make_model, tokens):
    model, prompts = make_model(mixer, mixer_options=WINDOW), ragged(tokens)
    for sampling in ({}, {"temperature": 1.0}):
        rows = {"generator": seeded(1, 2, 3)} if sampling else {}
        out = models.generate(model, prompts, 20, cache=cache, pad_token_id=9, **sampling, **rows)
        assert out.shape == (3, 32)
        for row, prompt in enumerate(prompts):
            one = {"generator": seeded(row + 1)} if sampling else {}
            alone = models.generate(model, prompt[None], 20, cache=cache, **sampling, **one)[0]
            assert torch.equal(out[row, 12 - len(prompt) :], alone)
            assert (out[row, : 12 - len(prompt)] == 9).all()


def test_padding_by_a_mask_is_a_list_of_prompts(make_model, tokens):
    model, prompts = make_model(), ragged(tokens)
    expected = models.generate(model, prompts, 6)
    mask = torch.tensor([[1] * 12, [0] * 11 + [1], [0] * 5 + [1] * 7])
    padded = expected[:, :12].masked_fill(mask == 0, -100)  # padding is no token
    for given in (mask, mask.bool()):
        out = models.generate(model, padded, 6, attention_mask=given)
        assert torch.equal(out[:, 12:], expected[:, 12:]) and torch.equal(out[:, :12], padded)
    everything = models.generate(model, tokens, 6, attention_mask=torch.ones_like(tokens))
    assert torch.equal(everything, models.generate(model, tokens, 6))


@every_cache
def test_samples_of_one_prompt(cache, make_model, tokens):
    model, prompts = make_model(mixer_options=WINDOW, dtype=torch.float64), ragged(tokens)
    read = []
    model.register_forward_pre_hook(lambda _, args: read.append(tuple(args[0].shape)))
    out = models.generate(
        model,
        prompts,
        20,
        temperature=1.0,
        num_return_sequences=3,
        cache=cache,
        generator=seeded(*range(9)),
    )
    assert read == [(3 if cache == "paged" else 9, 12), *[(9, 1)] * 19]
    for row in range(9):
        prompt = prompts[row // 3][None]
        alone = models.generate(model, prompt, 20, temperature=1.0, generator=seeded(row))[0]
        assert torch.equal(out[row, 12 - prompt.shape[1] :], alone)
    assert len({tuple(row.tolist()) for row in out}) == 9


# ---- sampling --------------------------------------------------------------------------------------------


def test_sampling_follows_the_distribution(generator):
    p = torch.tensor([0.05, 0.5, 0.15, 0.3])
    logits = p.log().expand(4000, 4)

    def frequencies(temperature=1.0, top_k=None, top_p=None):
        drawn = sample(logits, temperature, top_k, top_p, generator)
        return torch.bincount(drawn, minlength=4) / 4000

    torch.testing.assert_close(frequencies(), p, rtol=0, atol=0.04)
    torch.testing.assert_close(frequencies(0.5), p**2 / (p**2).sum(), rtol=0, atol=0.04)
    torch.testing.assert_close(frequencies(top_k=2), torch.tensor([0, 0.625, 0, 0.375]), rtol=0, atol=0.04)
    torch.testing.assert_close(frequencies(top_p=0.6), torch.tensor([0, 0.625, 0, 0.375]), rtol=0, atol=0.04)
    assert frequencies(top_p=0.1)[1] == 1
    assert frequencies(top_k=100, top_p=1.0)[0] > 0
    assert frequencies(0)[1] == 1


def test_of_equal_logits_the_lowest_token_is_the_likeliest():
    logits = torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
    assert sample(logits).tolist() == [1, 0]
    assert sample(logits, 1.0, top_k=1).tolist() == [1, 0]


@pytest.mark.parametrize("number", (0.0, 1 - 2**-24))
def test_the_ends_of_the_interval_draw_what_can_be_drawn(number, monkeypatch):
    monkeypatch.setattr(models.generation.sampling, "_uniform", lambda rows, *_: torch.full((rows,), number))
    logits = torch.linspace(-1, 1, 50).expand(3, 50)
    assert set(sample(logits, 1.0, top_k=7).tolist()) == {49 if number == 0 else 43}
    assert set(sample(logits, 0.01, top_p=0.5).tolist()) == {49}


# ---- ends ------------------------------------------------------------------------------------------------


def test_finished_rows_are_padded_and_the_last_ends_it(make_model, tokens):
    model = make_model()
    free = models.generate(model, tokens, 30)[:, 12:]
    eos = sorted({int(free[0, 3]), int(free[1, 8]), int(free[2, 5])})
    ends = [min(row.tolist().index(e) for e in eos if e in row) for row in free]
    pad = next(t for t in range(32) if t not in eos)
    out = models.generate(model, tokens, 30, eos_token_id=eos, pad_token_id=pad)[:, 12:]
    assert out.shape[1] == max(ends) + 1 < 30
    for row, end in enumerate(ends):
        assert torch.equal(out[row, : end + 1], free[row, : end + 1])
        assert (out[row, end + 1 :] == pad).all()
    one = models.generate(model, tokens[:1], 30, eos_token_id=int(free[0, 3]))[:, 12:]
    assert one.shape[1] == free[0].tolist().index(int(free[0, 3])) + 1


def letters(ids):
    """A text for tokens: 31 ends a word, and two tokens make up one character together."""
    return "".join(chr(97 + i) if i < 26 else " " for i in ids)


def test_stop_strings_end_a_row(make_model, tokens):
    model = make_model()
    free = models.generate(model, tokens, 30)[:, 12:]
    strings = [letters(free[0, 4:6].tolist()), letters(free[1, 9:12].tolist())]
    out = models.generate(model, tokens, 30, stop_strings=strings, decode=letters, pad_token_id=1)[:, 12:]
    for row in range(3):
        text = letters(free[row].tolist())
        ends = [text.index(s) + len(s) for s in strings if s in text]
        end = min(ends, default=30)
        assert torch.equal(out[row, :end], free[row, :end]) and (out[row, end:] == 1).all()


def test_text_is_streamed_up_to_the_stop_string(make_model, tokens):
    model, prompt = make_model(), tokens[:1]
    free = letters(models.generate(model, prompt, 30)[0, 12:].tolist())
    for start in range(3, 20, 3):
        for stop in (free[start : start + 4], (free[start : start + 3], "never there")):
            first = stop if isinstance(stop, str) else stop[0]
            pieces = list(models.stream_text(model, prompt, 30, decode=letters, stop_strings=stop))
            assert "".join(pieces) == free[: free.index(first)] and "" not in pieces
    pieces = list(models.stream_text(model, prompt, 30, decode=letters, stop_strings=free[-1] + "x"))
    assert "".join(pieces) == free  # the beginning of a stop string that did not come is text
    eos = int(models.generate(model, prompt, 30)[0, 20])
    pieces = list(models.stream_text(model, prompt, 30, decode=letters, eos_token_id=eos))
    assert "".join(pieces) == free[: free.index(letters([eos]))]


def test_characters_are_streamed_whole():
    text = "naïve ∑ 😀!"

    def pieces(data):
        return list(final_pieces(data, lambda ids: bytes(ids).decode("utf-8", "replace"), (), ()))

    assert pieces(text.encode()) == list(text)
    assert pieces(text.encode()[:3]) == ["n", "a", "\ufffd"]


# ---- streams and steps -----------------------------------------------------------------------------------


def test_tokens_are_reported_as_they_come(make_model, tokens):
    model, seen = make_model(), []
    out = models.generate(model, tokens, 4, on_token=seen.append)
    assert torch.equal(torch.stack(seen, 1), out[:, 12:])
    assert torch.equal(out[:, :12], tokens)
    assert torch.equal(models.generate(model, tokens, 0), tokens)
    assert torch.equal(torch.stack(list(models.stream(model, tokens, 4)), 1), out[:, 12:])
    assert list(models.stream(model, tokens, 0)) == []


def test_the_prompt_is_read_once_and_nothing_in_advance(make_model, tokens):
    model, lengths = make_model(), []
    model.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    models.generate(model, tokens, 5)
    assert lengths == [12, 1, 1, 1, 1]
    lengths.clear()
    stream = models.stream(model, tokens, 5)
    assert lengths == []
    next(stream)
    assert lengths == [12] and torch.is_grad_enabled()
    assert len(list(stream)) == 4 and lengths == [12, 1, 1, 1, 1]


@pytest.mark.parametrize("compiler", ("aot_eager", pytest.param("inductor", marks=pytest.mark.slow)))
@every_mixer
def test_compiled_steps_give_the_same_tokens(compiler, mixer, make_model, tokens, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=compiler))
    model = make_model(mixer, depth=1)
    expected = models.generate(model, ragged(tokens), 12)
    assert torch.equal(models.generate(model, ragged(tokens), 12, compile=True), expected)


@on_a_gpu
@every_cache
def test_caches_on_a_gpu_give_the_same_tokens(cache, make_model, tokens):
    model, prompts = make_model(mixer_options=WINDOW).cuda(), [p.cuda() for p in ragged(tokens)]
    expected = models.generate(model.cpu(), ragged(tokens), 20)
    assert torch.equal(models.generate(model.cuda(), prompts, 20, cache=cache).cpu(), expected)
    samples = {"temperature": 1.0, "num_return_sequences": 2, "eos_token_id": 3}
    out = models.generate(model, prompts, 20, cache=cache, **samples)
    assert out.shape[0] == 6 and out.is_cuda


@on_a_gpu
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@every_mixer
def test_captured_steps_give_the_same_tokens(mixer, dtype, make_model, tokens):
    model, prompts = make_model(mixer, dtype=dtype).cuda(), [p.cuda() for p in ragged(tokens)]
    expected = models.generate(model, prompts, 20)
    assert torch.equal(models.generate(model, prompts, 20, cuda_graph=True), expected)


def test_wrong_arguments(make_model, tokens):
    model = make_model()
    mask, sampled = torch.ones_like(tokens), {"temperature": 1.0}
    for error, message, args, options in (
        (TypeError, r"prompt\[0\] must be a torch.Tensor, got list", ([[1]], 1), {}),
        (TypeError, "prompt must be a torch.Tensor, got str", ("text", 1), {}),
        (ValueError, "prompt is an empty list", ([], 1), {}),
        (ValueError, r"prompt\[1\] has shape \(0,\)", ([tokens[0], tokens[0, :0]], 1), {}),
        (TypeError, "prompt has dtype torch.int32", (tokens.int(), 1), {}),
        (ValueError, r"prompt has shape \(3, 0\)", (tokens[:, :0], 1), {}),
        (ValueError, r"prompt has the token 32; tokens lie in \[0, 32\)", (tokens.clamp(min=32), 1), {}),
        (ValueError, "prompt has the token -1", (tokens - tokens - 1, 1), {}),
        (ValueError, "max_new_tokens=-1", (tokens, -1), {}),
        (TypeError, "max_new_tokens must be an int", (tokens, 1.5), {}),
        (ValueError, "temperature=-0.1", (tokens, 1), {"temperature": -0.1}),
        (ValueError, "top_k=0", (tokens, 1), {**sampled, "top_k": 0}),
        (ValueError, "top_p=1.5", (tokens, 1), {**sampled, "top_p": 1.5}),
        (ValueError, "need temperature > 0", (tokens, 1), {"top_k": 3}),
        (ValueError, "attention_mask has shape", (tokens, 1), {"attention_mask": mask[:2]}),
        (TypeError, "attention_mask must be", (tokens, 1), {"attention_mask": [1]}),
        (ValueError, "attention_mask must be 0 for", (tokens, 1), {"attention_mask": mask * 2}),
        (ValueError, "attention_mask must be 0 for", (tokens, 1), {"attention_mask": mask.tril(5)}),
        (ValueError, "attention_mask must be 0 for", (tokens, 1), {"attention_mask": mask * 0}),
        (ValueError, "attention_mask is for a prompt tensor", (ragged(tokens), 1), {"attention_mask": mask}),
        (
            ValueError,
            "generator has 2 entries for 3 rows",
            (tokens, 1),
            {**sampled, "generator": seeded(1, 2)},
        ),
        (ValueError, "eos_token_id has 32", (tokens, 1), {"eos_token_id": (1, 32)}),
        (ValueError, "pad_token_id has -1", (tokens, 1), {"pad_token_id": -1}),
        (ValueError, "stop_strings need decode", (tokens, 1), {"stop_strings": "."}),
        (ValueError, "empty string", (tokens, 1), {"stop_strings": ["a", ""], "decode": letters}),
        (ValueError, "num_return_sequences=0", (tokens, 1), {"num_return_sequences": 0}),
        (ValueError, "num_return_sequences=2 needs", (tokens, 1), {"num_return_sequences": 2}),
        (ValueError, "cache='rolling' is unknown", (tokens, 1), {"cache": "rolling"}),
        (ValueError, "kind='sliding' needs a layer", (tokens, 1), {"cache": "sliding"}),
        (ValueError, "do not go together", (tokens, 1), {"compile": True, "cuda_graph": True}),
        (ValueError, "need cache='static', not 'paged'", (tokens, 1), {"compile": True, "cache": "paged"}),
        (NotImplementedError, "on a CUDA device", (tokens, 1), {"cuda_graph": True}),
    ):
        with pytest.raises(error, match=message):
            models.generate(model, *args, **options)
    with pytest.raises(TypeError, match="on_token"):
        models.stream(model, tokens, 1, on_token=print)
    with pytest.raises(ValueError, match="temperature=-1"):
        models.stream(model, tokens, 1, temperature=-1)  # before the first token is asked for
    with pytest.raises(ValueError, match="stream_text writes one text"):
        models.stream_text(model, tokens, 1, decode=letters)
