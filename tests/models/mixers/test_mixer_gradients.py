"""Gradients of the chunked forms against autograd through the recurrences."""

import pytest
import torch
import torch.utils.checkpoint

from flashlla.models import mixers

every_mixer = pytest.mark.parametrize(
    "name", [name for name in mixers.MIXERS if name not in mixers.ATTENTION_MIXERS]
)


def gradients(mixer, x, form):
    mixer.form = form
    x = x.detach().requires_grad_()
    out = mixer(x)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    names, parameters = zip(*mixer.named_parameters(), strict=True)
    return dict(zip(("x", *names), torch.autograd.grad((out * weights).sum(), (x, *parameters)), strict=True))


@every_mixer
@pytest.mark.parametrize("seq", (1, 16, 37))
def test_gradients_equal_those_of_the_recurrence(name, seq, make_mixer, draw):
    mixer, x = make_mixer(name), draw(2, seq)
    expected = gradients(mixer, x, "recurrent")
    for key, grad in gradients(mixer, x, "chunked").items():
        torch.testing.assert_close(
            grad, expected[key], rtol=1e-9, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}"
        )
        assert seq == 1 or grad.any(), key


@every_mixer
def test_float32_gradients_stay_close(name, make_mixer, draw):
    mixer, x = make_mixer(name, chunk_size=64), draw(2, 150)
    expected = gradients(mixer, x, "recurrent")
    for key, grad in gradients(mixer.float(), x.float(), "chunked").items():
        assert (grad - expected[key]).norm() < 2e-5 * expected[key].norm(), key


@every_mixer
def test_gradients_through_activation_checkpoints(name, make_mixer, draw):
    mixer, x = make_mixer(name), draw(2, 20).requires_grad_()
    (expected,) = torch.autograd.grad(mixer(x).square().sum(), x)
    out = torch.utils.checkpoint.checkpoint(mixer, x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), x)[0], expected)


def test_the_second_derivative_of_mesanet_is_refused_in_chunks(make_mixer, draw):
    mixer, x = make_mixer("mesanet"), draw(1, 5).requires_grad_()
    with pytest.raises(NotImplementedError, match="use form='recurrent'"):
        torch.autograd.grad(mixer(x).sum(), x, create_graph=True)
    mixer.form = "recurrent"
    (grad,) = torch.autograd.grad(mixer(x).square().sum(), x, create_graph=True)
    assert torch.autograd.grad(grad.sum(), x)[0].any()
