"""Decode states: ragged rows, padding without a trace, and what they refuse."""

import pytest
import torch

from flashlla.models import mixers
from flashlla.nn import PageTable
from flashlla.nn.cache import KINDS

NAMES = [name for name in mixers.MIXERS if name not in mixers.ATTENTION_MIXERS]
every_mixer = pytest.mark.parametrize("name", NAMES)


@every_mixer
@pytest.mark.parametrize("kind", ("static", "growing"))
@torch.no_grad()
def test_ragged_rows_go_on_as_each_alone(name, kind, make_mixer, draw):
    mixer, x = make_mixer(name, kv_heads=None if name in ("mamba2", "hyena") else 2), draw(3, 60)
    state, read = mixer.make_state(3, 60 if kind == "static" else 2, kind=kind), [0, 0, 0]
    outs = [[], [], []]
    for counts in ([0, 1, 17], [5, 0, 16], [1, 1, 1], [0, 0, 0], [20, 3, 1], [1, 0, 1], [1, 1, 0]):
        new = 9 * draw(3, max(counts) + 2)  # padding that would show
        for row, n in enumerate(counts):
            new[row, :n] = x[row, read[row] : read[row] + n]
        out = mixer(new, state, counts)
        for row, n in enumerate(counts):
            outs[row].append(out[row, :n])
            read[row] += n
    assert state.positions.tolist() == read
    mixer.form = "recurrent"
    for row, pieces in enumerate(outs):
        alone = mixer(x[row : row + 1, : read[row]])[0]
        torch.testing.assert_close(torch.cat(pieces), alone, rtol=1e-10, atol=1e-10)


@every_mixer
@pytest.mark.parametrize("form", ("chunked", "recurrent"))
@torch.no_grad()
def test_padding_changes_no_bit_of_a_state(name, form, make_mixer, draw):
    mixer = make_mixer(name, form=form, dtype=torch.float32)
    state = mixer.make_state(2, 60)
    mixer(draw(2, 20, torch.float32), state)
    before = {key: t.clone() for key, t in state.tensors.items()}
    for rows in (1, 16, 20):
        mixer(draw(2, rows, torch.float32), state, [0, 1])
        assert all(torch.equal(t[0], before[key][0]) for key, t in state.tensors.items())
        assert not any(torch.equal(t[1], before[key][1]) for key, t in state.tensors.items())
    assert state.positions.tolist() == [20, 23]


@every_mixer
@torch.no_grad()
def test_reset_forgets(name, make_mixer, draw):
    mixer, x = make_mixer(name), draw(2, 12)
    state = mixer.make_state(2, 12)
    first = mixer(x, state)
    state.reset()
    assert torch.equal(mixer(x, state), first)


@every_mixer
def test_states_of_every_kind(name, make_mixer):
    mixer = make_mixer(name, dtype=torch.bfloat16)
    for kind in KINDS:
        if (name, kind) != ("hyena", "sliding"):
            state = mixer.make_state(2, 8, kind=kind)
            assert state.batch == 2 and all(t.dtype == torch.float32 for t in state.tensors.values())
    with pytest.raises(ValueError, match="kind='rolling' is unknown"):
        mixer.make_state(2, 8, kind="rolling")
    with pytest.raises(ValueError, match="batch=0 must be at least 1"):
        mixer.make_state(0, 8)
    with pytest.raises(NotImplementedError, match="use kind='static'"):
        mixer.make_paged_state(PageTable(4, 4))


@torch.no_grad()
def test_hyena_overflows_or_grows(make_mixer, draw):
    mixer, x = make_mixer("hyena"), draw(2, 9)
    state = mixer.make_state(2, 8)
    mixer(x[:, :5], state)
    before = {key: t.clone() for key, t in state.tensors.items()}
    with pytest.raises(ValueError, match="cache overflow: 5 rows plus 4 new exceed capacity=8"):
        mixer(x[:, 5:], state)
    assert all(torch.equal(t, before[key]) for key, t in state.tensors.items())
    state = mixer.make_state(2, 2, kind="growing")
    out = torch.cat([mixer(piece, state) for piece in x.split([5, 1, 1, 2], 1)], 1)
    torch.testing.assert_close(out, mixer(x))
    assert state.capacity >= 9
    with pytest.raises(ValueError, match="Hyena sees all positions"):
        mixer.make_state(2, 8, kind="sliding")


@every_mixer
def test_wrong_calls(name, make_mixer, draw):
    mixer, x = make_mixer(name), draw(2, 3)
    state = mixer.make_state(2, 8)
    low = make_mixer(name, dtype=torch.float32).make_state(2, 8)
    other = make_mixer(name, short_conv=7).make_state(2, 8)
    with pytest.raises(NotImplementedError, match=r"call under torch.no_grad\(\)"):
        mixer(x, state)
    with torch.no_grad():
        for error, message, args in (
            (TypeError, "x must be a torch.Tensor, got list", ([1.0],)),
            (ValueError, r"x has shape \(2, 3, 23\); expected \[batch, seq, 24\]", (x[..., 1:],)),
            (ValueError, "lengths is for new rows of a state", (x, None, [1, 2])),
            (TypeError, r"state must come from make_state\(\), got dict", (x, {})),
            (ValueError, "state has batch 2", (draw(3, 3), state)),
            (TypeError, "state has dtype torch.float32 and the mixer computes in torch.float64", (x, low)),
            (ValueError, "state has batch 2 and sizes", (x, other)),
            (TypeError, "lengths must be a list of ints", (x, state, torch.tensor([1, 1]))),
            (ValueError, "lengths has 1 entries for a batch of 2", (x, state, [1])),
            (ValueError, "lengths has the entry 4", (x, state, [1, 4])),
        ):
            with pytest.raises(error, match=message):
                mixer(*args)
    assert state.positions.tolist() == [0, 0] and not any(t.any() for t in state.tensors.values())


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    (
        ("gla", {"heads": 5}, ValueError, "dim=24 is no multiple of heads=5; pass head_dim"),
        ("deltanet", {"kv_heads": 3}, ValueError, "heads=4 is no multiple of kv_heads=3"),
        ("mesanet", {"head_dim": 0}, ValueError, "head_dim=0 must be at least 1"),
        (
            "gla",
            {"form": "parallel"},
            ValueError,
            "form='parallel' is unknown; choose one of auto, chunked, recurrent, fla",
        ),
        ("deltanet", {"chunk_size": 0}, ValueError, "chunk_size=0 must be at least 1"),
        ("gla", {"chunk_size": 24}, ValueError, "chunk_size=24 must be a power of 2"),
        ("gla", {"gate_power": 0}, ValueError, "gate_power=0 must be greater than 0"),
        ("deltanet", {"short_conv": 1}, ValueError, "short_conv=1 must be at least 2; None leaves"),
        ("deltanet", {"negative_eigenvalues": 1}, TypeError, "negative_eigenvalues must be a bool, got int"),
        ("mesanet", {"rtol": 2.0}, ValueError, "rtol=2.0 must lie between 0 and 1"),
        ("mesanet", {"max_iters": 0}, ValueError, "max_iters=0 must be at least 1"),
        (
            "mamba2",
            {"kv_heads": 2},
            ValueError,
            "kv_heads=2 must be None or heads=4: Mamba-2 shares no values",
        ),
        ("mamba2", {"groups": 3}, ValueError, "heads=4 is no multiple of groups=3"),
        ("mamba2", {"heads": 5}, ValueError, "2 dim=48 is no multiple of heads=5; pass head_dim"),
        ("hyena", {"kv_heads": 2}, ValueError, "Hyena has no keys to share"),
        ("hyena", {"order": 0}, ValueError, "order=0 must be at least 1"),
        ("hyena", {"filter_length": 1.5}, TypeError, "filter_length must be an int"),
        ("mamba2", {"ridge": 1.0}, TypeError, "ridge"),
    ),
)
def test_wrong_options(name, options, error, message, make_mixer):
    with pytest.raises(error, match=message):
        make_mixer(name, **options)
