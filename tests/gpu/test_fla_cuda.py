"""The mixers by the kernels of flash-linear-attention on a real GPU, against their recurrences in float64."""

from __future__ import annotations

import pytest
import torch

from flashlla.models import mixers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

pytest.importorskip("fla", reason="flash-linear-attention is not installed")

DIM, HEADS, LENGTH = 256, 4, 700
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # half a unit in the last place
CASES = (
    ("linear_attention", {"kv_heads": 2}),
    ("gla", {"kv_heads": 2}),
    ("deltanet", {"kv_heads": 2, "negative_eigenvalues": True}),
    ("gated_deltanet", {"value_dim": 128}),
    ("mesanet", {}),
    ("mamba2", {"groups": 2, "state_dim": 128}),
)
every_case = pytest.mark.parametrize(("name", "options"), CASES, ids=[name for name, _ in CASES])
every_dtype = pytest.mark.parametrize("dtype", ROUNDING, ids=str)


def make_pair(name: str, options: dict, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A mixer in ``dtype`` by the kernels, and the same weights in float64 by the recurrence."""
    torch.manual_seed(0)
    mixer = mixers.build_mixer(name, DIM, HEADS, device="cuda", dtype=dtype, **options)
    reason = mixer.choose_form("cuda", dtype).reason
    if "compiles kernels with decays wrongly" in reason:
        pytest.skip(reason)
    mixer.form = "fla"
    exact = mixers.build_mixer(
        name, DIM, HEADS, form="recurrent", device="cuda", dtype=torch.float64, **options
    )
    exact.load_state_dict(mixer.state_dict())
    return mixer, exact


def rounding(name: str, dtype: torch.dtype) -> float:
    """Of what the kernels keep: the memory of MesaNet is in bfloat16 between chunks whatever the dtype."""
    return ROUNDING[torch.bfloat16 if name == "mesanet" else dtype]


def assert_close(found: torch.Tensor, expected: torch.Tensor, bound: float, what: str = "") -> None:
    error = float((found.double() - expected).detach().norm() / expected.detach().norm())
    assert error <= bound, (what, error)


@every_case
@every_dtype
def test_training(name, options, dtype, generator):
    (mixer, exact), unit = make_pair(name, options, dtype), rounding(name, dtype)
    x, weights = torch.randn(2, 2, LENGTH, DIM, generator=generator).to("cuda", dtype)
    found, expected = x.clone().requires_grad_(), x.double().requires_grad_()
    out, exact_out = mixer(found), exact(expected)
    (out * weights).sum().backward()
    (exact_out * weights.double()).sum().backward()
    assert_close(out, exact_out, 4 * unit, "out")
    assert_close(found.grad, expected.grad, 16 * unit, "input")
    for key, parameter in mixer.named_parameters():
        if (gradient := exact.get_parameter(key).grad).norm() > 0:
            assert_close(parameter.grad, gradient, 16 * unit, key)


@every_case
@every_dtype
@torch.no_grad()
def test_prefill_and_steps(name, options, dtype, generator):
    (mixer, exact), unit = make_pair(name, options, dtype), rounding(name, dtype)
    state, exact_state = (m.make_state(2, LENGTH) for m in (mixer, exact))
    for rows, lengths in ((300, None), (1, None), (65, [0, 40]), (1, None), (200, [200, 3])):
        x = torch.randn(2, rows, DIM, generator=generator).to("cuda", dtype)
        out, expected = mixer(x, state, lengths), exact(x.double(), exact_state, lengths)
        for row, real in enumerate(lengths or [rows, rows]):
            if real:
                assert_close(out[row, :real], expected[row, :real], 4 * unit, "out")
    for key, tensor in exact_state.tensors.items():
        assert_close(state.tensors[key], tensor, 4 * unit, key)


@every_case
@torch.no_grad()
def test_padding_changes_no_bit_of_a_state(name, options, generator):
    mixer, _ = make_pair(name, options, torch.bfloat16)
    state = mixer.make_state(2, LENGTH)
    x = torch.randn(2, 100, DIM, generator=generator).to("cuda", torch.bfloat16)
    mixer(x, state)
    before = {key: t.clone() for key, t in state.tensors.items()}
    mixer(x, state, [0, 70])
    assert all(torch.equal(t[0], before[key][0]) for key, t in state.tensors.items())


@every_case
def test_autocast_takes_them_by_itself(name, options, generator):
    torch.manual_seed(0)
    mixer = mixers.build_mixer(name, DIM, HEADS, device="cuda", **options)
    if (choice := mixer.choose_form("cuda", torch.bfloat16)).name != "fla":
        pytest.skip(choice.reason)
    x = torch.randn(2, 200, DIM, generator=generator).cuda()
    expected = mixer(x)  # float32 by our own chunks
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = mixer(x)
    assert out.dtype == torch.bfloat16
    assert_close(out, expected.double(), 8 * ROUNDING[torch.bfloat16])
