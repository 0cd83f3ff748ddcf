"""Our language model inside transformers: the same numbers, whatever transformers does with it."""

import copy
import json

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from flashlla import models

transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")

from flashlla.integrations.transformers.cache import FlashLLACache  # noqa: E402
from flashlla.integrations.transformers.config import FlashLLAConfig  # noqa: E402
from flashlla.integrations.transformers.language_model import (  # noqa: E402
    CACHE_NAME,
    FlashLLAForCausalLM,
    FlashLLAModel,
    register_language_model,
)

HYBRID = ("lla", "mamba2")
VOCABULARY, PADDING = 32, 31  # 31 is a token like any other
every_mixer = pytest.mark.parametrize(
    "mixer", ["lla", "parallax", "softmax", "gated_deltanet", HYBRID], ids=str
)
attention_and_not = pytest.mark.parametrize("mixer", ["lla", HYBRID], ids=str)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def make_plain(mixer="lla", dtype=torch.float64, **changes):
    sizes = {"vocab_size": VOCABULARY, "dim": 32, "depth": 2, "heads": 4, "mixer": mixer}
    model = models.LanguageModel(models.LanguageModelConfig(**{**sizes, **changes}), dtype=dtype)
    for name, p in model.named_parameters():
        if name.endswith("r_scale"):
            torch.nn.init.normal_(p)  # Parallax away from its start, which is softmax attention
    return model.eval()


def make(mixer="lla", **changes):
    """A plain model and the same one inside transformers."""
    plain = make_plain(mixer, **changes)
    return plain, FlashLLAForCausalLM.from_language_model(plain)


def ragged(generator, *lengths):
    return [torch.randint(VOCABULARY, (n,), generator=generator) for n in lengths]


def padded(sequences, side):
    """Tokens and mask of a batch with padding on the left or on the right."""
    return (
        pad_sequence(sequences, True, PADDING, side),
        pad_sequence([torch.ones_like(s) for s in sequences], True, 0, side),
    )


def of(output):
    return getattr(output, CACHE_NAME)


# ---- configuration --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"mixer": HYBRID, "depth": 4, "mixer_options": {"lla": {"window_size": 4}, "mamba2": {"heads": 2}}},
        {"mixer": "lla", "depth": 2, "mixer_options": {"ridge": 0.5}, "kv_heads": 2, "mlp_hidden": 40},
        {"mixer": "hyena", "depth": 3, "tie_embeddings": False},
    ],
)
def test_a_configuration_survives_its_file(fields, tmp_path):
    plain = models.LanguageModelConfig(vocab_size=VOCABULARY, dim=32, heads=4, **fields)
    FlashLLAConfig.from_language_model_config(plain, eos_token_id=3, use_cache=False).save_pretrained(
        tmp_path
    )
    read = FlashLLAConfig.from_pretrained(tmp_path)
    assert read.to_language_model_config() == plain
    assert (read.eos_token_id, read.pad_token_id, read.use_cache) == (3, None, False)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "flashlla"


def test_the_usual_names():
    config = FlashLLAConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, tie_word_embeddings=False
    )
    assert (config.dim, config.depth, config.heads, config.tie_embeddings) == (16, 3, 4, False)
    assert (config.num_key_value_heads, config.intermediate_size) == (4, 48)
    config.num_hidden_layers, config.kv_heads = 5, 2
    assert config.to_language_model_config().depth == 5
    assert config.num_key_value_heads == 2


def test_wrong_configurations():
    sizes = {"vocab_size": 9, "dim": 16, "depth": 2, "heads": 4}
    with pytest.raises(ValueError, match="mixer='magic' is unknown; choose one of lla"):
        FlashLLAConfig(**sizes, mixer="magic")
    with pytest.raises(ValueError, match="missing keys in a LanguageModelConfig: dim, heads"):
        FlashLLAConfig(vocab_size=9, depth=2)
    config = FlashLLAConfig(**sizes)
    config.mixer = "magic"
    with pytest.raises(ValueError, match="mixer='magic' is unknown"):
        FlashLLAForCausalLM(config)
    with pytest.raises(TypeError, match="window"):
        FlashLLAForCausalLM(FlashLLAConfig(**sizes, mixer="mamba2", mixer_options={"window": 4}))
    with pytest.raises(ValueError, match="attn_implementation='sdpa' has no effect here: mixer='lla'"):
        FlashLLAForCausalLM(FlashLLAConfig(**sizes, attn_implementation="sdpa"))


# ---- the same numbers -----------------------------------------------------------------------------------


@every_mixer
def test_logits_are_those_of_the_plain_model(mixer, generator):
    plain, model = make(mixer)
    tokens = torch.randint(VOCABULARY, (3, 11), generator=generator)
    expected = plain(tokens)
    assert torch.equal(model(tokens).logits, expected)
    torch.testing.assert_close(model(tokens, logits_to_keep=2).logits, expected[:, -2:])
    some = torch.tensor([0, 7])
    torch.testing.assert_close(model(tokens, logits_to_keep=some).logits, expected[:, some])
    assert torch.equal(model(tokens, return_dict=False)[0], expected)
    with torch.no_grad():
        output = model(tokens)
        torch.testing.assert_close(output.logits, expected)
        assert isinstance(of(output), FlashLLACache) and of(output).get_seq_length() == 11
        assert of(model(tokens, use_cache=False)) is None


def test_a_new_model_starts_as_a_plain_one():
    config = FlashLLAConfig(
        vocab_size=VOCABULARY, dim=32, depth=4, heads=4, mixer=HYBRID, tie_embeddings=False
    )
    torch.manual_seed(1)
    plain = models.LanguageModel(config.to_language_model_config())
    torch.manual_seed(1)
    model = FlashLLAForCausalLM(config)
    for ours, theirs in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_hidden_states(generator):
    plain, model = make("parallax", depth=3)
    sequences = ragged(generator, 4, 7)
    tokens, mask = padded(sequences, "left")
    output = model(tokens, attention_mask=mask, output_hidden_states=True)
    assert len(output.hidden_states) == 4
    for row, sequence in enumerate(sequences):
        hidden = [h[row, -len(sequence) :][None] for h in output.hidden_states]
        torch.testing.assert_close(hidden[0], plain.embedding(sequence[None]))
        for block, before, behind in zip(plain.blocks[:2], hidden, hidden[1:], strict=False):
            torch.testing.assert_close(block(before), behind)
        torch.testing.assert_close(plain.norm(plain.blocks[2](hidden[2])), hidden[3])
        torch.testing.assert_close(hidden[3], plain.hidden(sequence[None]))
    assert torch.equal(output.hidden_states[3], model.model(tokens, mask).last_hidden_state)


def test_embeddings_in_place_of_tokens(generator):
    plain, model = make()
    tokens = torch.randint(VOCABULARY, (2, 6), generator=generator)
    embeddings = plain.embedding(tokens)
    assert torch.equal(model(inputs_embeds=embeddings).logits, plain(tokens))
    new = model.generate(inputs_embeds=embeddings, max_new_tokens=5, do_sample=False)
    assert torch.equal(new, models.generate(plain, tokens, 5)[:, 6:])


# ---- generate() -----------------------------------------------------------------------------------------


@every_mixer
def test_greedy_tokens_are_those_of_our_own_generate(mixer, generator):
    plain, model = make(mixer)
    prompts = ragged(generator, 3, 8, 5)
    tokens, mask = padded(prompts, "left")
    expected = models.generate(plain, prompts, 6, pad_token_id=PADDING)
    for options in ({}, {"cache_implementation": "static"}, {"use_cache": False}, {"prefill_chunk_size": 2}):
        new = model.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False, **options)
        assert torch.equal(new, expected), options


@pytest.mark.parametrize("kind", ["static", "growing", "sliding", "paged"])
def test_generate_over_a_cache_of_any_kind(kind, generator):
    plain, model = make(mixer_options={"window_size": 4})
    prompts = ragged(generator, 3, 8)
    tokens, mask = padded(prompts, "left")
    cache = {CACHE_NAME: model.make_cache(2, 13, kind=kind)}
    new = model.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False, **cache)
    assert torch.equal(new, models.generate(plain, prompts, 6, pad_token_id=PADDING))


@attention_and_not
def test_a_step_reads_one_token(mixer, generator):
    _, model = make(mixer)
    tokens, mask = padded(ragged(generator, 3, 8), "left")
    read = []
    model.language_model.blocks[0].register_forward_pre_hook(lambda _, args: read.append(args[0].shape[1]))
    model.generate(tokens, attention_mask=mask, max_new_tokens=5, do_sample=False)
    assert read == [8, 1, 1, 1, 1]


@attention_and_not
def test_sampling_draws_from_the_right_distribution(mixer, generator):
    """Every row's logits at every step are those of a pass over the row alone, whatever it has drawn."""
    plain, model = make(mixer)
    tokens, mask = padded(ragged(generator, 3, 8), "left")
    output = model.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=6,
        do_sample=True,
        num_return_sequences=3,
        return_dict_in_generate=True,
        output_logits=True,
    )
    logits = torch.stack(output.logits, 1)
    assert len({tuple(row) for row in output.sequences[:3].tolist()}) > 1
    for row, sequence in enumerate(output.sequences):
        alone = sequence[5:] if row < 3 else sequence
        torch.testing.assert_close(logits[row], plain(alone[None])[0, -7:-1].float())


@every_mixer
def test_beams_follow_their_own_past(mixer, generator):
    _, model = make(mixer)
    prompts = ragged(generator, 3, 8, 5)
    tokens, mask = padded(prompts, "left")
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    together = model.generate(tokens, attention_mask=mask, **options)
    for row, prompt in zip(together, prompts, strict=True):
        alone = model.generate(prompt[None], use_cache=False, **options)
        assert torch.equal(row[8 - len(prompt) :], alone[0])
    if mixer in models.mixers.ATTENTION_MIXERS:
        for kind in ("static", "paged"):
            cache = {CACHE_NAME: model.make_cache(9, 13, kind=kind)}
            assert torch.equal(model.generate(tokens, attention_mask=mask, **cache, **options), together)


@pytest.mark.parametrize("kind", ["static", "growing", "sliding", "paged", "recurrent"])
def test_reordered_rows_go_on_from_their_parents(kind, generator):
    recurrent = kind == "recurrent"
    plain, model = make(
        "hyena" if recurrent else "lla", mixer_options={} if recurrent else {"window_size": 4}
    )
    sequences = ragged(generator, 3, 8, 5)
    tokens, mask = padded(sequences, "right")
    cache = model.make_cache(3, 12, kind="growing" if recurrent else kind)
    following = torch.randint(VOCABULARY, (3, 4), generator=generator)
    with torch.no_grad():
        model(tokens, attention_mask=mask, past_key_values=cache)
        cache.reorder_cache(torch.tensor([2, 0, 2]))
        logits = [model(t, past_key_values=cache).logits for t in following.split(1, 1)]
        for row, parent in enumerate([2, 0, 2]):
            alone = plain(torch.cat([sequences[parent], following[row]])[None])[0, -4:]
            torch.testing.assert_close(torch.cat(logits, 1)[row], alone)
    with pytest.raises(ValueError, match=r"beam_idx has shape \(2,\) for a batch of 3"):
        cache.reorder_cache(torch.tensor([0, 1]))


@attention_and_not
def test_a_conversation_goes_on_from_its_cache(mixer, generator):
    plain, model = make(mixer)
    tokens = torch.randint(VOCABULARY, (2, 6), generator=generator)
    first = model.generate(tokens, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, torch.randint(VOCABULARY, (2, 3), generator=generator)], 1)
    kept = copy.deepcopy(of(first))
    for cache in (of(first), kept):
        again = model.generate(longer, max_new_tokens=4, do_sample=False, **{CACHE_NAME: cache})
        assert torch.equal(again, models.generate(plain, longer, 4))


@attention_and_not
def test_padding_between_the_turns_of_a_conversation(mixer, generator):
    plain, model = make(mixer)
    turns = [ragged(generator, 3, 6), ragged(generator, 4, 1), ragged(generator, 1, 3)]
    cache, mask = model.make_cache(2, 4), torch.zeros(2, 0, dtype=torch.int64)
    with torch.no_grad():
        for turn in turns:
            tokens, new = padded(turn, "left")
            mask = torch.cat([mask, new], 1)
            logits = model(tokens, attention_mask=mask, past_key_values=cache).logits
    assert cache.get_seq_length() == mask.shape[1] == 13
    for row, lengths in enumerate(((3, 4, 1), (6, 1, 3))):
        whole = torch.cat([turn[row] for turn in turns])
        torch.testing.assert_close(logits[row, -lengths[-1] :], plain(whole[None])[0, -lengths[-1] :])


@pytest.mark.parametrize("length", [1, 5])
def test_prompt_lookup_gives_the_greedy_tokens(length, generator):
    plain, model = make()
    prompt = torch.randint(4, (1, 4), generator=generator).repeat(1, 3)
    expected = models.generate(plain, prompt, 12, eos_token_id=30)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 30, "pad_token_id": PADDING}
    mask = torch.ones_like(prompt)
    new = model.generate(prompt, attention_mask=mask, prompt_lookup_num_tokens=length, **options)
    assert torch.equal(new[:, :24], expected)  # transformers 4 may go some tokens further than it was asked
    with pytest.raises(ValueError, match="stateful"):
        make(HYBRID)[1].generate(prompt, attention_mask=mask, prompt_lookup_num_tokens=length, **options)


def test_a_cache_goes_back(generator):
    plain, model = make()
    tokens = torch.randint(VOCABULARY, (2, 9), generator=generator)
    cache = model.make_cache(2, 9)
    with torch.no_grad():
        model(tokens, past_key_values=cache)
        cache.crop(-2)
        cache.crop(0)
        cache.crop(20)
        assert cache.get_seq_length() == 7
        cache.crop(4)
        torch.testing.assert_close(model(tokens[:, 4:], past_key_values=cache).logits, plain(tokens)[:, 4:])
        mask = torch.tensor([[0, 1], [1, 1]])
        model(tokens[:, :2], attention_mask=mask, past_key_values=cache)
        model(tokens[:, :1], past_key_values=cache)
        with pytest.raises(
            ValueError, match=r"crop\(-2\) forgets 2 columns, and only the last 1 came without"
        ):
            cache.crop(-2)
        cache.reset()
        torch.testing.assert_close(model(tokens, past_key_values=cache).logits, plain(tokens))
    with pytest.raises(NotImplementedError, match="a recurrent state cannot go back"):
        make(HYBRID)[1].make_cache(2, 9).crop(-1)


# ---- padded and packed batches --------------------------------------------------------------------------


@every_mixer
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_leaves_no_trace(mixer, side, generator):
    plain, model = make(mixer)
    sequences = ragged(generator, 3, 8, 5)
    tokens, mask = padded(sequences, side)
    other = torch.where(mask == 1, tokens, 7)
    for grad in (True, False):  # without gradient through a cache
        with torch.set_grad_enabled(grad):
            logits = model(tokens, attention_mask=mask).logits
            for row, sequence in enumerate(sequences):
                torch.testing.assert_close(logits[row][mask[row] == 1], plain(sequence[None])[0])
            assert torch.equal(model(other, attention_mask=mask.bool()).logits[mask == 1], logits[mask == 1])


@attention_and_not
def test_padding_anywhere_and_rows_of_nothing_else(mixer, generator):
    plain, model = make(mixer)
    tokens = torch.randint(VOCABULARY, (3, 9), generator=generator)
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 0, 1], [0] * 9, [1] * 9])
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            logits = model(tokens, attention_mask=mask).logits
        for row in (0, 2):
            real = mask[row] == 1
            torch.testing.assert_close(logits[row, real], plain(tokens[row, real][None])[0])


@every_mixer
def test_packed_sequences_do_not_see_each_other(mixer, generator):
    plain, model = make(mixer)
    lengths = (5, 1, 8, 3)
    sequences = ragged(generator, *lengths)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = torch.cat(sequences)[None]
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            output = model(packed, position_ids=positions)
        for ours, sequence in zip(output.logits[0].split(lengths), sequences, strict=True):
            torch.testing.assert_close(ours, plain(sequence[None])[0])
    assert of(output) is None
    with pytest.raises(ValueError, match="position_ids pack several sequences into a row"):
        model(packed, position_ids=positions, use_cache=True)


def test_packed_rows_of_a_batch_with_padding(generator):
    plain, model = make("gated_deltanet")
    a, b, c, d = ragged(generator, 3, 4, 5, 2)
    tokens, mask = padded([torch.cat([a, b]), torch.cat([c, d]), a], "left")
    positions, _ = padded(
        [torch.cat([torch.arange(len(s)) for s in row]) for row in ((a, b), (c, d), (a,))], "left"
    )
    logits = model(tokens, attention_mask=mask, position_ids=positions).logits
    for row, columns, sequence in (
        (0, (0, 3), a),
        (0, (3, 7), b),
        (1, (0, 5), c),
        (1, (5, 7), d),
        (2, (4, 7), a),
    ):
        torch.testing.assert_close(logits[row, slice(*columns)], plain(sequence[None])[0])


def test_positions_that_pack_nothing(generator):
    plain, model = make()
    tokens = torch.randint(VOCABULARY, (2, 6), generator=generator)
    for positions in (torch.arange(6)[None], torch.arange(6, 12).expand(2, 6)):
        assert torch.equal(model(tokens, position_ids=positions).logits, plain(tokens))
    with pytest.raises(ValueError, match="position_ids leave positions out"):
        model(tokens, position_ids=torch.tensor([[0, 1, 2, 4, 5, 6]]))


# ---- loss and training ----------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_the_labels_that_count(generator):
    plain, model = make(dtype=torch.float32)
    tokens = torch.randint(VOCABULARY, (2, 9), generator=generator)
    labels = tokens.clone()
    labels[0, :4] = labels[1, 7:] = -100
    logits = plain(tokens)[:, :-1].flatten(0, 1)
    output = model(tokens, labels=labels)
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, labels[:, 1:].flatten()))
    total = F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(model(tokens, labels=labels, num_items_in_batch=5).loss, total / 5)
    with torch.no_grad():
        assert of(model(tokens, labels=labels)) is None


def test_the_loss_does_not_depend_on_how_sequences_are_laid_out(generator):
    """Padded on either side, whatever the labels at the padding, or packed: that of every sequence alone."""
    plain, model = make("gated_deltanet")
    sequences = ragged(generator, 3, 8, 5)
    alone = [F.cross_entropy(plain(s[None, :-1])[0].float(), s[1:], reduction="sum") for s in sequences]
    expected = sum(alone) / 13
    for side in ("left", "right"):
        tokens, mask = padded(sequences, side)
        loss = model(tokens, attention_mask=mask, labels=tokens.masked_fill(mask == 0, -100)).loss
        torch.testing.assert_close(loss, expected)
    tokens, mask = padded(sequences, "left")
    torch.testing.assert_close(model(tokens, attention_mask=mask, labels=tokens).loss, expected)
    packed, positions = torch.cat(sequences)[None], torch.cat([torch.arange(len(s)) for s in sequences])[None]
    loss = model(packed, position_ids=positions, labels=packed).loss
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(loss, list(plain.parameters()))
    theirs = torch.autograd.grad(expected, list(plain.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@attention_and_not
def test_recomputing_the_blocks_gives_the_same_gradients(mixer, generator):
    plain, model = make(mixer, dtype=torch.float32)
    model.train()
    tokens, mask = padded(ragged(generator, 4, 9), "left")

    def gradients():
        model.zero_grad()
        model(tokens, attention_mask=mask, labels=tokens).loss.backward()
        return [p.grad for p in plain.parameters()]

    expected, runs = gradients(), []
    plain.blocks[1].register_forward_pre_hook(lambda *_: runs.append(1))
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    for a, b in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(a, b)
    assert len(runs) == 2
    model.eval()
    assert torch.equal(
        model.generate(tokens[1:], max_new_tokens=4, do_sample=False), models.generate(plain, tokens[1:], 4)
    )


def test_trainer(tmp_path, generator):
    pytest.importorskip("accelerate", reason="Trainer needs accelerate")
    plain, model = make(HYBRID, dtype=torch.float32)
    before = copy.deepcopy(plain.state_dict())
    sequences = ragged(generator, 4, 9, 6, 7)

    def collate(rows):
        tokens, mask = padded(rows, "right")
        return {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, -100)}

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = transformers.Trainer(
        model, arguments, data_collator=collate, train_dataset=sequences, eval_dataset=sequences
    )
    loss = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert any(not torch.equal(p, before[name]) for name, p in plain.state_dict().items())
    assert trainer.evaluate()["eval_loss"] < loss


# ---- files ----------------------------------------------------------------------------------------------


def same_weights(a, b):
    theirs = b.state_dict()
    assert a.state_dict().keys() == theirs.keys()
    return all(
        torch.equal(t, theirs[name]) and t.dtype == theirs[name].dtype for name, t in a.state_dict().items()
    )


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "free"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_model_survives_its_files(tie, dtype, tmp_path):
    register_language_model()
    register_language_model()
    plain, model = make(HYBRID, dtype=dtype, tie_embeddings=tie)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert type(read) is FlashLLAForCausalLM and not read.training
    assert read.language_model.config == plain.config and same_weights(read.language_model, plain)
    body = transformers.AutoModel.from_pretrained(tmp_path, dtype="auto")
    assert type(body) is FlashLLAModel and same_weights(body.language_model, plain)
    low = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert same_weights(low.language_model, copy.deepcopy(plain).bfloat16())


def test_to_our_own_files_and_back(tmp_path, generator):
    plain, model = make(HYBRID, dtype=torch.float32)
    models.save_model(model.language_model, tmp_path)
    again = FlashLLAForCausalLM.from_language_model(models.load_model(tmp_path))
    assert same_weights(again.language_model, plain)
    tokens = torch.randint(VOCABULARY, (2, 5), generator=generator)
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    with pytest.raises((ValueError, OSError), match=r"safetensors|no weight of this model"):
        FlashLLAForCausalLM.from_pretrained(tmp_path)


def test_weights_that_a_checkpoint_lacks_start_as_new_ones(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    plain, model = make(dtype=torch.float32)
    with torch.no_grad():
        plain.norm.weight.fill_(3)
    model.save_pretrained(tmp_path)
    lacking = "model.language_model.norm.weight"
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    del tensors[lacking]
    safetensors.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    read, report = FlashLLAForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == {lacking}
    assert torch.equal(read.language_model.norm.weight, torch.ones(32))
    with torch.no_grad():
        read.language_model.norm.weight.fill_(3)
    assert same_weights(read.language_model, plain)


# ---- embeddings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "free"])
def test_embeddings_and_their_sizes(tie, tmp_path, generator):
    plain, model = make(tie_embeddings=tie)
    tokens = torch.randint(VOCABULARY, (2, 5), generator=generator)
    expected = plain(tokens)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert table is plain.embedding and (head.weight is table.weight) == tie
    assert torch.equal(head(plain.hidden(tokens)), expected)
    for size, mean_resizing in ((40, True), (48, False)):
        model.resize_token_embeddings(size, mean_resizing=mean_resizing)
        assert plain.config.vocab_size == model.config.vocab_size == size
        torch.testing.assert_close(model(tokens).logits[..., :VOCABULARY], expected)
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tie
    assert 0.01 < plain.embedding.weight[40:].std() < 0.03
    model.save_pretrained(tmp_path)
    assert same_weights(FlashLLAForCausalLM.from_pretrained(tmp_path, dtype="auto").language_model, plain)
    model.set_output_embeddings(torch.nn.Linear(32, 48, bias=False, dtype=torch.float64))
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tie


# ---- wrong calls ----------------------------------------------------------------------------------------


def test_wrong_calls(generator):
    _, model = make()
    tokens = torch.randint(VOCABULARY, (2, 6), generator=generator)
    cache = model.make_cache(2, 6)
    for error, message, options in (
        (ValueError, "pass one of input_ids and inputs_embeds", {}),
        (ValueError, "pass one of", {"input_ids": tokens, "inputs_embeds": torch.zeros(2, 6, 32)}),
        (TypeError, "tokens has dtype torch.int32; use int64", {"input_ids": tokens.int()}),
        (ValueError, r"inputs_embeds has shape \(2, 6, 8\)", {"inputs_embeds": torch.zeros(2, 6, 8)}),
        (
            ValueError,
            r"attention_mask has shape \(2, 5\)",
            {"input_ids": tokens, "attention_mask": torch.ones(2, 5)},
        ),
        (
            ValueError,
            r"attention_mask has shape \(2, 1, 6, 6\)",
            {"input_ids": tokens, "attention_mask": torch.ones(2, 1, 6, 6)},
        ),
        (
            ValueError,
            r"position_ids has shape \(6,\)",
            {"input_ids": tokens, "position_ids": torch.arange(6)},
        ),
        (
            ValueError,
            "cu_seq_lens_q needs position_ids",
            {"input_ids": tokens, "cu_seq_lens_q": torch.tensor([0, 6])},
        ),
        (NotImplementedError, "output_attentions=True", {"input_ids": tokens, "output_attentions": True}),
        (
            TypeError,
            "must be a FlashLLACache, got DynamicCache",
            {"input_ids": tokens, "cache": transformers.DynamicCache()},
        ),
        (
            ValueError,
            "two names of one argument",
            {"input_ids": tokens, "past_key_values": cache, "cache": cache},
        ),
        (ValueError, "cache has", {"input_ids": tokens, "past_key_values": model.make_cache(3, 6)}),
        (NotImplementedError, "gradient", {"input_ids": tokens, "past_key_values": cache, "use_cache": True}),
    ):
        with pytest.raises(error, match=message):
            model(**options)
    assert cache.get_seq_length() == 0
    with pytest.raises(ValueError, match="cache_implementation='offloaded' is not for this model"):
        model.generate(tokens, max_new_tokens=2, cache_implementation="offloaded")
    with pytest.raises(ValueError, match="cache overflow"):
        model.generate(
            tokens, max_new_tokens=4, do_sample=False, **{CACHE_NAME: model.make_cache(2, 7, kind="static")}
        )
    with pytest.raises(NotImplementedError, match="no rows that pages could share"):
        make(HYBRID)[1].make_cache(2, 6, kind="paged")
    for call in (
        cache.update,
        lambda: cache.batch_repeat_interleave(2),
        lambda: cache.batch_select_indices(tokens),
    ):
        with pytest.raises(NotImplementedError):
            call()
