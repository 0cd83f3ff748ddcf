"""Chunks, steps and prefill give what the recurrence gives, and see nothing that comes later."""

import pytest
import torch

from flashlla.models import mixers

NAMES = [name for name in mixers.MIXERS if name not in mixers.ATTENTION_MIXERS]
every_mixer = pytest.mark.parametrize("name", NAMES)
VARIANTS = [
    *((name, {}) for name in NAMES),
    *((name, {"kv_heads": 2}) for name in NAMES if name not in ("mamba2", "hyena")),
    *((name, {"short_conv": None}) for name in NAMES if name not in ("linear_attention", "gla")),
    *((name, {"short_conv": 4, "head_dim": 5, "value_dim": 7}) for name in ("linear_attention", "gla")),
    ("deltanet", {"negative_eigenvalues": True}),
    ("gated_deltanet", {"output_gate": False}),
    ("mesanet", {"output_gate": True}),
    ("mamba2", {"groups": 2, "head_dim": 5}),
    ("hyena", {"order": 3}),
]
every_variant = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)


def recurrent(mixer, x):
    mixer.form = "recurrent"
    out = mixer(x)
    mixer.form = "chunked"
    return out


@every_variant
@pytest.mark.parametrize("seq", (1, 15, 16, 17, 33))
def test_chunks_equal_the_recurrence(name, options, seq, make_mixer, draw):
    mixer, x = make_mixer(name, **options), draw(2, seq)
    expected = recurrent(mixer, x)
    torch.testing.assert_close(mixer(x), expected, rtol=1e-10, atol=1e-10)


@every_mixer
@pytest.mark.parametrize("chunk_size", (1, 4, 64))
def test_the_size_of_a_chunk_changes_nothing(name, chunk_size, make_mixer, draw):
    mixer, x = make_mixer(name, chunk_size=chunk_size), draw(2, 70)
    torch.testing.assert_close(mixer(x), recurrent(mixer, x), rtol=1e-10, atol=1e-10)


@every_mixer
def test_float32_stays_close_to_float64(name, make_mixer, draw):
    mixer, x = make_mixer(name, chunk_size=64), draw(2, 300)
    exact = recurrent(mixer, x)
    out = mixer.float()(x.float())
    assert out.dtype == torch.float32
    assert (out - exact).norm() < 3e-6 * exact.norm()


@every_variant
@torch.no_grad()
def test_prefill_and_steps_equal_one_pass(name, options, make_mixer, draw):
    mixer, x = make_mixer(name, **options), draw(2, 40)
    expected = recurrent(mixer, x)
    for pieces in ([1] * 40, [16, 16, 1, 1, 6], [17, 1, 15, 7], [33, 0, 2, 5], [40]):
        state = mixer.make_state(2, 40)
        out = torch.cat([mixer(piece, state) for piece in x.split(pieces, 1)], 1)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
        assert state.positions.tolist() == [40, 40]


@every_mixer
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_a_later_input_changes_no_bit(name, dtype, make_mixer, draw):
    mixer, x = make_mixer(name, dtype=dtype), draw(2, 75, dtype)
    before = mixer(x)
    for t in (0, 1, 15, 16, 31, 33, 64, 74):
        other = x.clone()
        other[:, t] += 1
        changed = (mixer(other) != before).any(-1).any(0)
        assert not changed[:t].any() and changed[t]


@every_mixer
def test_low_precision_and_autocast(name, make_mixer, draw):
    mixer, x = make_mixer(name, dtype=torch.float32), draw(2, 40, torch.float32)
    expected = mixer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        auto = mixer(x)
    with torch.no_grad():
        state = mixer.bfloat16().make_state(2, 40)
        low = [mixer(piece, state) for piece in x.bfloat16().split([39, 1], 1)]
    assert all(t.dtype == torch.float32 for t in state.tensors.values())
    for out in (auto, torch.cat(low, 1)):
        assert out.dtype == torch.bfloat16
        assert (out.float() - expected).norm() < 0.05 * expected.norm()


@every_mixer
def test_compiled(name, make_mixer, draw):
    torch._dynamo.reset()
    mixer, x = make_mixer(name), draw(2, 20)
    whole = name != "mesanet"  # its solver asks after every iteration whether all rows are done
    compiled = torch.compile(mixer, fullgraph=whole, backend="aot_eager")
    torch.testing.assert_close(compiled(x), mixer(x))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_mixer
def test_a_gpu_computes_the_same(name, make_mixer, draw):
    mixer, x = make_mixer(name), draw(2, 70)
    expected = recurrent(mixer, x)
    mixer, x = mixer.cuda(), x.cuda()
    torch.testing.assert_close(mixer(x).cpu(), expected, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        state = mixer.make_state(2, 70)
        out = torch.cat([mixer(piece, state) for piece in x.split([33, 1, 36], 1)], 1)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-9, atol=1e-9)
