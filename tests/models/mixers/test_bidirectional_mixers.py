"""Mixers without causality: a row sees all real ones and no padding, and both directions are alike."""

import pytest
import torch

from flashlla.models.mixers import ATTENTION_MIXERS, MIXERS, build_mixer
from flashlla.models.mixers.bidirectional import build_bidirectional_mixer

every_mixer = pytest.mark.parametrize("name", MIXERS)
DIM, LENGTHS = 16, [7, 4, 0]


@pytest.fixture
def build():
    def make(name, **options):
        torch.manual_seed(0)
        return build_bidirectional_mixer(name, DIM, 2, dtype=torch.float64, **options)

    return make


@pytest.fixture
def x(generator):
    return torch.randn(3, 7, DIM, dtype=torch.float64, generator=generator)


@every_mixer
def test_every_row_sees_every_other(name, build, x):
    mixer, x = build(name), x[:1].requires_grad_()
    for row in (0, 3, 6):
        (gradient,) = torch.autograd.grad(mixer(x)[0, row].square().sum(), x)
        assert (gradient[0].abs().sum(-1) > 0).all()


@every_mixer
def test_a_padded_batch_gives_what_each_sequence_gives_alone(name, build, x):
    mixer = build(name)
    out = mixer(x, LENGTHS)
    for row, n in zip((0, 1), LENGTHS, strict=False):
        torch.testing.assert_close(out[row, :n], mixer(x[row : row + 1, :n])[0])
    noisy = x.clone()
    noisy[1, 4:], noisy[2] = 1e3, -1e3
    assert torch.equal(mixer(noisy, LENGTHS)[1, :4], out[1, :4])


@every_mixer
def test_the_reverse_of_the_input_gives_the_reverse_of_the_output(name, build, x):
    mixer = build(name, rotary=False)
    torch.testing.assert_close(mixer(x.flip(1)).flip(1), mixer(x))


@every_mixer
def test_gradients_behind_padding(name, build, x):
    mixer, x = build(name), x.requires_grad_()
    real = [mixer(x, LENGTHS)[row, :n] for row, n in enumerate(LENGTHS)]
    torch.cat(real).square().sum().backward()
    assert not x.grad[1, 4:].any() and not x.grad[2].any()
    assert x.grad[0].any() and x.grad[1, :4].any()
    gradients = {n: p.grad for n, p in mixer.named_parameters()}
    mixer.zero_grad()
    alone = [mixer(x[row : row + 1, :n])[0] for row, n in enumerate(LENGTHS) if n]
    torch.cat(alone).square().sum().backward()
    for n, p in mixer.named_parameters():
        torch.testing.assert_close(gradients[n], p.grad)


@every_mixer
def test_weights_are_those_of_the_causal_mixer(name, build):
    causal = build_mixer(name, DIM, 2, dtype=torch.float64)
    ours = build(name)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in causal.parameters())
    inner = ours.attention if name in ATTENTION_MIXERS else ours.mixer
    (causal.attention if name in ATTENTION_MIXERS else causal).load_state_dict(inner.state_dict())


@every_mixer
def test_the_output_scales(name, build, x):
    mixer = build(name)
    before = mixer(x)
    mixer.scale_output(0.5)
    torch.testing.assert_close(mixer(x), before / 2)


def test_wrong_arguments(build, x):
    with pytest.raises(ValueError, match="mixer='magic' is unknown; choose one of lla"):
        build("magic")
    with pytest.raises(
        ValueError, match="causal=True: a bidirectional mixer has no causal mask; leave it out"
    ):
        build("lla", causal=True)
    with pytest.raises(ValueError, match="window_size"):
        build("softmax", window_size=4)
    for name in ("lla", "gla"):
        with pytest.raises(ValueError, match="lengths has the entry 9"):
            build(name)(x, [9, 1, 1])
