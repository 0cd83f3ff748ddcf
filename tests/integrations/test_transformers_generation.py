"""``generate()`` of transformers: a padded batch is each prompt alone, over any cache."""

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")

from tiny_transformers import DECODERS, VOCABULARY, make_member, make_model, pad  # noqa: E402

from flashlla.integrations.transformers import register  # noqa: E402

register()
NEW = 8
every_decoder = pytest.mark.parametrize("name", DECODERS)
every_member = pytest.mark.parametrize("member", ("lla", "parallax"))


@pytest.fixture
def prompts(generator):
    return [torch.randint(3, VOCABULARY, (n,), generator=generator) for n in (3, 9, 6)]


def generate(model, tokens, attention_mask=None, **options):
    options = {"max_new_tokens": NEW, "do_sample": False, **options}
    attention_mask = torch.ones_like(tokens) if attention_mask is None else attention_mask
    return model.generate(tokens, attention_mask=attention_mask, **options)


@pytest.mark.parametrize("cache", (None, "static"))
@every_member
@every_decoder
def test_left_padded_prompts_are_each_alone(name, member, cache, prompts):
    model = make_member(name, member)
    tokens, attention_mask = pad(prompts, "left")
    options = {"return_dict_in_generate": True, "output_logits": True}
    options |= {} if cache is None else {"cache_implementation": cache}
    together = generate(model, tokens, attention_mask, **options)
    for row, prompt in enumerate(prompts):
        alone = generate(model, prompt[None], return_dict_in_generate=True, output_logits=True)
        assert together.sequences[row, -NEW:].tolist() == alone.sequences[0, -NEW:].tolist()
        for ours, expected in zip(together.logits, alone.logits, strict=True):
            torch.testing.assert_close(ours[row], expected[0], rtol=0, atol=1e-5)


@every_member
@every_decoder
def test_a_cache_changes_nothing(name, member, prompts):
    model, prompt = make_member(name, member), prompts[1][None]
    assert generate(model, prompt).tolist() == generate(model, prompt, use_cache=False).tolist()


@every_decoder
def test_tokens_are_those_of_softmax_where_the_gate_is_shut(name, prompts):
    tokens, attention_mask = pad(prompts, "left")
    ours, theirs = make_model(name, "lla", lla_gate=0.0), make_model(name, "sdpa")
    expected = generate(theirs, tokens, attention_mask)
    assert generate(ours, tokens, attention_mask).tolist() == expected.tolist()


@every_member
def test_beams_are_those_of_each_prompt(member, prompts):
    model = make_member("llama", member)
    tokens, attention_mask = pad(prompts, "left")
    together = generate(model, tokens, attention_mask, num_beams=3)
    for row, prompt in enumerate(prompts):
        assert together[row, -NEW:].tolist() == generate(model, prompt[None], num_beams=3)[0, -NEW:].tolist()


@every_member
def test_samples_of_several_prompts(member, prompts):
    model = make_member("mistral", member)
    tokens, attention_mask = pad(prompts, "left")
    torch.manual_seed(0)
    samples = generate(model, tokens, attention_mask, do_sample=True, top_k=20, num_return_sequences=2)
    assert samples.shape == (6, tokens.shape[1] + NEW)


@every_member
def test_an_assistant_changes_no_token(member, prompts):
    """Several candidates are checked in one step, and the cache is cut back where they were wrong."""
    model, prompt = make_member("qwen3", member), prompts[1][None]
    assistant = make_model("qwen3", "sdpa")
    assert generate(model, prompt, assistant_model=assistant).tolist() == generate(model, prompt).tolist()


def test_an_encoder_decoder_generates(prompts):
    model = make_member("bart", "lla")
    tokens, attention_mask = pad(prompts, "right")
    together = generate(model, tokens, attention_mask)
    for row, prompt in enumerate(prompts):
        alone = generate(model, prompt[None])[0].tolist()
        assert together[row].tolist()[: len(alone)] == alone
