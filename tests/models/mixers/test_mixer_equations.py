"""The recurrences against their closed forms, written down a second time."""

import numpy as np
import pytest
import torch

from flashlla.models.mixers import delta_rule, linear_recurrence, long_conv, mesanet
from flashlla.models.mixers.linear_attention import LinearAttention

SEQ, KEY, VALUE = 9, 4, 3


@pytest.fixture
def operands(generator):
    """q, k and v, strengths and decays of one sequence, float64."""

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return (
        normal(SEQ, KEY),
        normal(SEQ, KEY),
        normal(SEQ, VALUE),
        normal(SEQ, 1).sigmoid(),
        -normal(SEQ, KEY).exp(),
    )


def test_linear_recurrence_is_masked_attention_with_decays(operands):
    q, k, v, _, log_decay = operands
    for decay in (log_decay, log_decay[:, :1]):
        expected = torch.zeros(SEQ, VALUE, dtype=torch.float64)
        for i in range(SEQ):
            for j in range(i + 1):
                kept = decay[j + 1 : i + 1].sum(0).exp()
                expected[i] += (q[i] * kept * k[j]).sum() * v[j]
        out, _ = linear_recurrence.recurrent(q, k, v, decay, torch.zeros(KEY, VALUE, dtype=torch.float64))
        torch.testing.assert_close(out, expected)


def test_linear_attention_is_an_average_of_the_values(operands):
    torch.manual_seed(0)
    mixer = LinearAttention(KEY, 1, dtype=torch.float64)
    x = operands[0][None]
    q, k, v = (proj(x)[0] for proj in (mixer.qkv.q_proj, mixer.qkv.k_proj, mixer.qkv.v_proj))
    weights = ((torch.nn.functional.elu(q) + 1) @ (torch.nn.functional.elu(k) + 1).T).tril()
    expected = mixer.out_proj((weights / weights.sum(1, keepdim=True)) @ v)
    torch.testing.assert_close(mixer(x)[0], expected)


def test_delta_rule_multiplies_by_its_transitions(operands):
    q, k, v, beta, log_decay = operands
    log_decay = log_decay[:, :1]
    state, expected = torch.zeros(KEY, VALUE, dtype=torch.float64), []
    for t in range(SEQ):
        transition = log_decay[t].exp() * (
            torch.eye(KEY, dtype=torch.float64) - beta[t] * torch.outer(k[t], k[t])
        )
        state = transition @ state + beta[t] * torch.outer(k[t], v[t])
        expected.append(state.T @ q[t])
    start = torch.zeros(KEY, VALUE, dtype=torch.float64)
    out, last = delta_rule.recurrent(q, k, v, beta, log_decay, start)
    torch.testing.assert_close(out, torch.stack(expected))
    torch.testing.assert_close(last, state)


def test_a_full_delta_write_is_read_back(operands):
    _, k, v, _, _ = operands
    k = torch.nn.functional.normalize(k, dim=-1)
    ones, zeros = torch.ones(SEQ, 1, dtype=torch.float64), torch.zeros(SEQ, 1, dtype=torch.float64)
    out, _ = delta_rule.recurrent(k, k, v, ones, zeros, torch.zeros(KEY, VALUE, dtype=torch.float64))
    torch.testing.assert_close(out, v)


def test_mesanet_is_a_weighted_ridge_regression(operands):
    """Against least squares with a row for every earlier position and one for every entry of the ridge."""
    q, k, v, beta, log_decay = operands
    log_decay, ridge = log_decay[:, :1], torch.tensor([[0.3, 0.5, 1.0, 2.0]], dtype=torch.float64)
    start = [torch.zeros(KEY, size, dtype=torch.float64) for size in (KEY, VALUE)]
    out, _, _ = mesanet.recurrent(q, k, v, beta, log_decay, ridge, *start)
    for t in range(SEQ):
        kept = torch.stack([log_decay[j + 1 : t + 1].sum().exp() for j in range(t + 1)])
        root = (kept * beta[: t + 1, 0]).sqrt()[:, None]
        left = torch.cat([root * k[: t + 1], torch.diag(ridge[0].sqrt())])
        right = torch.cat([root * v[: t + 1], torch.zeros(KEY, VALUE, dtype=torch.float64)])
        torch.testing.assert_close(out[t], q[t] @ torch.linalg.lstsq(left, right).solution)


def test_long_convolutions_are_those_of_numpy(generator):
    z = torch.randn(2, 75, 3, generator=generator, dtype=torch.float64)
    taps = torch.randn(3, 80, generator=generator, dtype=torch.float64)
    expected = np.stack(
        [[np.convolve(z[b, :, c], taps[c])[:75] for c in range(3)] for b in range(2)]
    ).transpose(0, 2, 1)
    torch.testing.assert_close(long_conv.direct(z, taps), torch.tensor(expected))
    for smallest in (1, 8, 32, 128):
        torch.testing.assert_close(long_conv.by_blocks(z, taps, smallest), torch.tensor(expected))


@pytest.mark.parametrize("decay", (0.0, -1e-3, -40.0, -1e4, -torch.inf, "mixed"))
@pytest.mark.parametrize("entries", (1, 8))
def test_decays_of_any_size_in_float32(decay, entries, generator):
    """Chunks keep the digits of small decays beside large ones, forward and backward."""
    q, k, v = (torch.randn(1, 70, 8, generator=generator) for _ in range(3))
    log_decay = torch.full((1, 70, entries), -1e-3 if decay == "mixed" else decay)
    if decay == "mixed":
        log_decay[:, ::7] = -torch.inf
        log_decay[:, 3::5] = -1e4
    inputs = [t.requires_grad_() for t in (q, k, v, log_decay)]
    state = torch.randn(1, 8, 8, generator=generator)
    out, last = linear_recurrence.chunked(*inputs, state, chunk_size=64)
    grads = torch.autograd.grad(out.square().sum() + last.sum(), inputs)
    inputs = [t.detach().double().requires_grad_() for t in inputs]
    exact, exact_last = linear_recurrence.recurrent(*inputs, state.double())
    exact_grads = torch.autograd.grad(exact.square().sum() + exact_last.sum(), inputs)
    for ours, expected in zip((out, last, *grads), (exact, exact_last, *exact_grads), strict=True):
        assert (ours - expected).norm() <= 2e-6 * expected.norm()
