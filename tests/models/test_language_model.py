"""The language model: causal, trainable, and the same with and without its decode states."""

import math

import pytest
import torch
from torch.nn import functional as F

from flashlla import models
from flashlla.nn import PageTable
from flashlla.nn.cache import KINDS

every_mixer = pytest.mark.parametrize("mixer", sorted(models.mixers.ATTENTION_MIXERS))


def next_token_loss(model, tokens):
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


@every_mixer
def test_a_token_changes_no_earlier_logits(mixer, make_model, tokens):
    model = make_model(mixer)
    other = tokens.clone()
    other[:, 7] = (other[:, 7] + 1) % 32
    changed = (model(tokens) != model(other)).any(-1)
    assert not changed[:, :7].any() and changed[:, 7:].all()


@every_mixer
@pytest.mark.parametrize("kind", KINDS)
def test_steps_with_states_equal_one_pass(mixer, kind, make_model, tokens):
    model = make_model(mixer, dtype=torch.float64, mixer_options={"window_size": 6})
    expected = model(tokens)
    with torch.no_grad():
        states = model.make_states(3, 12, kind=kind)
        steps = [model(piece, states) for piece in tokens.split([4, 3, 1, 1, 1, 1, 1], 1)]
        torch.testing.assert_close(torch.cat(steps, 1), expected)
        last = model(tokens, model.make_states(3, 12, kind=kind), last_only=True)
    torch.testing.assert_close(last, expected[:, -1:])


@every_mixer
@pytest.mark.parametrize("kind", KINDS)
def test_padding_leaves_no_trace_in_the_states(mixer, kind, make_model, tokens):
    model = make_model(mixer, dtype=torch.float64, mixer_options={"window_size": 6})
    expected = model(tokens)
    with torch.no_grad():
        states = model.make_states(3, 24, kind=kind)
        lengths, read = [0, 0, 0], []
        for counts in ([5, 0, 3], [1, 4, 0], [0, 0, 0], [6, 5, 7]):
            new = torch.full((3, 7), 31)
            for row, (start, n) in enumerate(zip(lengths, counts, strict=True)):
                new[row, :n] = tokens[row, start : start + n]
            logits = model(new, states, lengths=counts, last_only=True)[:, 0]
            lengths = [a + b for a, b in zip(lengths, counts, strict=True)]
            read += [(logits[row], expected[row, lengths[row] - 1]) for row in range(3) if counts[row]]
    for ours, whole in read:
        torch.testing.assert_close(ours, whole)
    assert states[0].positions.tolist() == lengths


def test_overflow_of_the_states(make_model, tokens):
    model = make_model()
    with torch.no_grad():
        states = model.make_states(3, 12)
        model(tokens, states)
        with pytest.raises(ValueError, match="cache overflow"):
            model(tokens[:, :1], states)


def test_sequences_come_and_go_without_a_trace(make_model, tokens):
    """Every sequence gets the logits that it gets alone, whoever shares its batch, its pages or its past."""
    model = make_model(dtype=torch.float64)
    table = PageTable(12, 4)
    states = model.make_paged_states(table)

    def read(sequence, new):
        table.select([sequence])
        return model(new[None], states)[0]

    with torch.no_grad():
        a, b = table.admit(), table.admit()
        read(a, tokens[0, :6])
        read(b, tokens[1, :3])
        c = table.fork(a, 5)
        table.select([c, b])
        both = model(torch.stack([tokens[2, :2], tokens[1, 3:5]]), states)
        table.release(b)
        d = table.admit()
        read(d, tokens[2, :9])
        table.select([d, a, c])
        last = model(tokens[:, -1:], states)
        alone = model(torch.cat([tokens[0, :5], tokens[2, :2], tokens[2, -1:]])[None])[0]
        torch.testing.assert_close(both[0], alone[5:7])
        torch.testing.assert_close(both[1], model(tokens[1:2, :5])[0, 3:])
        torch.testing.assert_close(last[2, 0], alone[7])
        torch.testing.assert_close(last[1, 0], model(torch.cat([tokens[0, :6], tokens[1, -1:]])[None])[0, -1])
        torch.testing.assert_close(last[0, 0], model(torch.cat([tokens[2, :9], tokens[0, -1:]])[None])[0, -1])
        with pytest.raises(ValueError, match="cache overflow"):
            model(torch.zeros(3, 9, dtype=torch.int64), states)
    assert states[1].lengths.tolist() == [10, 7, 8]


@every_mixer
def test_gradients_reach_every_parameter(mixer, make_model, tokens):
    model = make_model(mixer, tie_embeddings=False)
    next_token_loss(model, tokens).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@every_mixer
def test_training_learns_a_copy(mixer, make_model, tokens):
    model = make_model(mixer)
    data = torch.cat([tokens, tokens], 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = next_token_loss(model, data)
    for _ in range(30):
        optimizer.zero_grad()
        loss = next_token_loss(model, data)
        loss.backward()
        optimizer.step()
    assert abs(first.item() - math.log(32)) < 0.3  # an untrained model knows nothing
    assert loss < 0.5 * first


def test_depth_does_not_blow_up_the_stream(make_model, tokens):
    spreads = []
    for depth in (1, 16):
        model = make_model(depth=depth)
        stream = []
        model.norm.register_forward_pre_hook(lambda _, args, stream=stream: stream.append(args[0].std()))
        model(tokens)
        spreads.append(stream[0])
    assert spreads[1] < 2 * spreads[0]


def test_tied_embeddings_are_one_tensor(make_model):
    tied, free = make_model(), make_model(tie_embeddings=False)
    assert free.num_parameters() - tied.num_parameters() == 32 * 32
    assert sum(p.numel() for p in tied.state_dict().values()) == tied.num_parameters()


def test_options_reach_the_mixer(make_model, tokens):
    windowed = make_model(depth=1, mixer_options={"window_size": 3, "ridge": 2.0})
    assert windowed.blocks[0].mixer.attention.ridge() == 2.0
    other = tokens.clone()
    other[:, 4] = (other[:, 4] + 1) % 32
    changed = (windowed(tokens) != windowed(other)).any(-1).any(0)
    assert changed.tolist() == [False] * 4 + [True] * 3 + [False] * 5


@every_mixer
def test_autocast_and_bfloat16(mixer, make_model, tokens):
    expected = make_model(mixer)(tokens)
    model = make_model(mixer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = next_token_loss(model, tokens)
        logits = model(tokens)
    loss.backward()
    for low in (logits, model.bfloat16()(tokens)):
        assert low.dtype == torch.bfloat16
        assert (low.float() - expected).norm() < 0.1 * expected.norm()


def test_compiles_as_one_graph(make_model, tokens):
    torch._dynamo.reset()
    model = make_model(depth=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens), model(tokens))


def test_wrong_calls(make_model, tokens):
    model = make_model()
    for error, message, args in (
        (TypeError, "tokens must be a torch.Tensor", ([1, 2],)),
        (TypeError, "tokens has dtype torch.int32; use int64", (tokens.int(),)),
        (ValueError, r"tokens has shape \(12,\)", (tokens[0],)),
        (ValueError, "states has 1 entries for 2 blocks", (tokens, model.make_states(3, 12)[:1])),
    ):
        with pytest.raises(error, match=message):
            model(*args)
    with pytest.raises(ValueError, match="lengths is for new rows of a cache"):
        model(tokens, lengths=[1, 2, 3])
    table = PageTable(4, 4)
    model.make_paged_states(table)
    with pytest.raises(ValueError, match="table has 2 caches already"):
        model.make_paged_states(table)
    with pytest.raises(ValueError, match="kind='rolling' is unknown"):
        model.make_states(3, 12, kind="rolling")
    with pytest.raises(ValueError, match="cache has"), torch.no_grad():
        model(tokens, model.make_states(2, 12))


def test_wrong_mixers():
    with pytest.raises(ValueError, match="mixer='magic' is unknown"):
        models.mixers.build_mixer("magic", 32, 4)
    with pytest.raises(ValueError, match="must be causal"):
        models.mixers.build_mixer("lla", 32, 4, causal=False)
    with pytest.raises(TypeError, match="ridge"):
        models.LanguageModel(
            models.LanguageModelConfig(
                vocab_size=32, dim=32, depth=1, heads=4, mixer="softmax", mixer_options={"ridge": 1.0}
            )
        )
