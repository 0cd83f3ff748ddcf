"""The kernels of flash-linear-attention: when they are taken, and what they are called with.

A stand-in for the package, written from its documentation, tests the calls wherever torch runs. The package
itself, where it is installed, runs in Triton's interpreter, and in tests/gpu where it belongs.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from flashlla.models.mixers import fla, forms

NAMES = ("linear_attention", "gla", "deltanet", "gated_deltanet", "mesanet", "mamba2")
CASES = (
    *((name, {}) for name in NAMES),
    *((name, {"kv_heads": 2}) for name in NAMES if name != "mamba2"),
    ("mamba2", {"groups": 2}),
    ("linear_attention", {"head_dim": 6, "value_dim": 5}),
    ("deltanet", {"head_dim": 4, "value_dim": 10, "negative_eigenvalues": True}),
)
OPS = {
    "linear_attention": "simple_gla",
    "mamba2": "simple_gla",
    "deltanet": "delta_rule",
    "gated_deltanet": "gated_delta_rule",
    "mesanet": "mesa_net",
}
ROUNDING = 2.0**-11  # of float16, half a unit in the last place


# ---- when -------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(forms, "_missing", lambda: None)
    monkeypatch.setattr(forms, "_wrong_triton", lambda: None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_auto_takes_them_on_a_gpu_in_half_precision(name, dtype, make_mixer, installed):
    choice = make_mixer(name).choose_form("cuda:0", dtype)
    assert choice == ("fla", "flash-linear-attention takes these operands")


@pytest.mark.parametrize(
    ("name", "options", "device", "dtype", "reason"),
    (
        ("gla", {}, "cpu", torch.bfloat16, "runs on cuda, not on cpu"),
        ("gla", {}, "cuda", torch.float32, "bfloat16 or float16, not float32; use autocast"),
        ("gla", {"head_dim": 5}, "cuda", torch.bfloat16, "heads of even sizes, not 5 and 5"),
        ("mamba2", {"state_dim": 258}, "cuda", torch.bfloat16, "up to 256 entries, not 258"),
        ("mesanet", {"head_dim": 130}, "cuda", torch.bfloat16, "up to 128 entries, not 130"),
        ("mesanet", {"value_dim": 8}, "cuda", torch.bfloat16, "MesaNet with value_dim=6, not 8"),
        ("mesanet", {"rtol": 1e-3}, "cuda", torch.bfloat16, "rtol=0.001 must be None"),
        ("hyena", {}, "cuda", torch.bfloat16, "has no kernels for Hyena"),
    ),
)
def test_auto_says_why_not_and_a_named_form_is_refused(
    name, options, device, dtype, reason, make_mixer, installed
):
    choice = make_mixer(name, **options).choose_form(device, dtype)
    assert choice.name == "chunked" and reason in choice.reason
    with pytest.raises(NotImplementedError, match=f"form='fla': .*{reason}; use form='auto'"):
        make_mixer(name, form="fla", **options).choose_form(device, dtype)


def test_a_package_that_is_missing_or_broken_or_old(make_mixer, monkeypatch):
    def choice():
        forms._missing.cache_clear()
        return make_mixer("gla").choose_form("cuda", torch.bfloat16)

    monkeypatch.setitem(sys.modules, "fla", None)
    assert choice().name == "chunked" and "pip install flash-linear-attention" in choice().reason
    package = ModuleType("fla")
    package.__version__ = "0.3.2"
    monkeypatch.setitem(sys.modules, "fla", package)
    monkeypatch.setitem(sys.modules, "fla.ops", ModuleType("fla.ops"))
    assert "flash-linear-attention 0.3.2 is older than 0.4" in choice().reason
    package.__version__ = "0.10.0"
    assert choice().name == "fla"
    forms._missing.cache_clear()


def test_triton_that_compiles_decays_wrongly(make_mixer, monkeypatch):
    monkeypatch.setattr(forms, "_missing", lambda: None)
    for capability, version, right in (
        ((9, 0), "3.6.0", False),
        ((9, 0), "3.7.1", True),
        ((9, 0), "3.10.0", True),
        ((8, 0), "3.6.0", True),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        monkeypatch.setattr("triton.__version__", version)
        for name in NAMES:
            choice = make_mixer(name).choose_form("cuda", torch.bfloat16)
            assert (choice.name == "fla") == (right or name not in ("gated_deltanet", "mamba2"))
            assert choice.name == "fla" or f"Triton {version} compiles kernels with decays" in choice.reason


def test_deterministic_algorithms_are_our_own(make_mixer, installed):
    torch.use_deterministic_algorithms(True)
    try:
        assert "not deterministic" in make_mixer("gla").choose_form("cuda", torch.bfloat16).reason
        assert make_mixer("gla", form="fla").choose_form("cuda", torch.bfloat16).name == "fla"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_refused_form_writes_no_state(make_mixer, draw):
    mixer = make_mixer("deltanet", form="fla")
    state = mixer.make_state(2, 8)
    with torch.no_grad(), pytest.raises(NotImplementedError, match="runs on cuda, not on cpu"):
        mixer(draw(2, 3), state)
    assert state.positions.tolist() == [0, 0] and not any(t.any() for t in state.tensors.values())
    with torch.no_grad():
        mixer(draw(2, 1), state)  # a step of decoding is the recurrence
    assert state.positions.tolist() == [1, 1]


# ---- how --------------------------------------------------------------------------------------------------


def check(q, k, v, beta, g, *states):
    """Sizes as the package wants them."""
    batch, seq, heads, key = q.shape
    assert q.shape == k.shape and v.shape[:3] == q.shape[:3] and seq > 1
    for number in (beta, g):
        assert number is None or number.shape in (q.shape, q.shape[:3])
    for state in states:
        assert state.shape[:3] == (batch, heads, key)


def delta(q, k, v, beta=None, g=None, scale=None, initial_state=None, output_final_state=False):
    """The recurrences of the package in its layout: a delta rule with beta, a plain one without."""
    check(q, k, v, beta, g, initial_state)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    state, outs = initial_state, []
    for t in range(q.shape[1]):
        value = v[:, t]
        if g is not None:
            decay = g[:, t].exp()
            state = state * (decay[..., None] if decay.dim() == 3 else decay[..., None, None])
        if beta is not None:
            value = (value - torch.einsum("bhk,bhkv->bhv", k[:, t], state)) * beta[:, t, :, None]
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], value)
        outs.append(torch.einsum("bhk,bhkv->bhv", q[:, t] * scale, state))
    return torch.stack(outs, 1), state if output_final_state else None


def mesa(q, k, v, g, beta, lamb, h_kk_init, h_kv_init, output_final_state=False, max_CG_iteration=30):
    check(q, k, v, beta, g, h_kk_init, h_kv_init)
    assert v.shape == q.shape and lamb.shape == q.shape[2:] and max_CG_iteration == 30 and output_final_state
    gram, memory, outs = h_kk_init, h_kv_init, []
    for t in range(q.shape[1]):
        decay, weighted = g[:, t, :, None, None].exp(), beta[:, t, :, None] * k[:, t]
        gram = gram * decay + torch.einsum("bhi,bhj->bhij", weighted, k[:, t])
        memory = memory * decay + torch.einsum("bhi,bhj->bhij", weighted, v[:, t])
        solved = torch.linalg.solve(gram + torch.diag_embed(lamb), q[:, t])
        outs.append(torch.einsum("bhi,bhij->bhj", solved, memory))
    return torch.stack(outs, 1), gram, memory


@pytest.fixture
def calls(monkeypatch):
    """A package ``fla`` of plain recurrences, taken for any operands; its calls by name, with arguments."""
    recorded = []
    for op in ("simple_gla", "gla", "delta_rule", "gated_delta_rule", "mesa_net"):

        def function(op=op, **arguments):
            recorded.append((op, arguments))
            if (
                arguments["q"].dtype != torch.float64
            ):  # as the kernels: inside in float32, outputs like values
                wide = {n: t.float() if isinstance(t, torch.Tensor) else t for n, t in arguments.items()}
                out, *states = (mesa if op == "mesa_net" else delta)(**wide)
                return out.to(arguments["v"].dtype), *states
            return (mesa if op == "mesa_net" else delta)(**arguments)

        module = ModuleType(f"fla.ops.{op}")
        setattr(module, f"chunk_{op}", function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(forms, "_rejection", lambda device_type, dtype, decays: None)
    return recorded


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_the_calls_give_what_the_recurrence_gives(name, options, make_mixer, draw, calls, monkeypatch):
    monkeypatch.setattr(fla, "_half", lambda dtype, **vectors: vectors)
    mixer = make_mixer(name, form="fla", **options)
    exact = make_mixer(name, form="recurrent", **options)
    x, weights = draw(2, 20).requires_grad_(), draw(2, 20)
    outs = [m(x) for m in (mixer, exact)]
    torch.testing.assert_close(*outs, rtol=1e-10, atol=1e-10)
    found, expected = (
        torch.autograd.grad((out * weights).sum(), [x, *m.parameters()])
        for out, m in zip(outs, (mixer, exact), strict=True)
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        states = [m.make_state(2, 30) for m in (mixer, exact)]
        for rows, lengths in ((9, None), (1, None), (7, [0, 5]), (5, [5, 2])):
            piece = draw(2, rows)
            outs = [m(piece, state, lengths) for m, state in zip((mixer, exact), states, strict=True)]
            for row, real in enumerate(lengths or [rows, rows]):
                torch.testing.assert_close(*(out[row, :real] for out in outs), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(states[0].tensors, states[1].tensors, rtol=1e-10, atol=1e-10)
    assert {op for op, _ in calls} == {OPS.get(name, name)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_vectors_go_in_half_precision_and_the_rest_in_float32(name, dtype, make_mixer, draw, calls):
    """Under autocast, and with weights that are in half precision themselves."""
    mixer = make_mixer(name, form="fla", dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        assert mixer(draw(2, 20, torch.float32)).dtype == dtype
    with torch.no_grad():
        state = mixer.to(dtype).make_state(2, 20)
        assert mixer(draw(2, 20, dtype), state).dtype == dtype
    assert all(t.dtype == torch.float32 for t in state.tensors.values())
    for _, arguments in calls:
        for key, t in arguments.items():
            if isinstance(t, torch.Tensor):
                keys = torch.float16 if name == "mesanet" else dtype
                assert t.dtype == {"q": keys, "k": keys, "v": dtype}.get(key, torch.float32), key
    assert len(calls) == 2


def test_a_second_derivative_is_refused(make_mixer, draw, calls):
    mixer, x = make_mixer("gla", form="fla", dtype=torch.float16), draw(1, 5, torch.float16).requires_grad_()
    out = mixer(x).float().square().sum()
    with pytest.raises(NotImplementedError, match="no second derivative; use form='chunked'"):
        torch.autograd.grad(out, x, create_graph=True)


# ---- the package itself -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("fla") is None, reason="needs flash-linear-attention")
def test_the_real_kernels_in_the_interpreter():
    script = Path(__file__).with_name("interpreted_fla.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    assert {case.split(",")[0] for case in errors} == set(NAMES)
    for case, quantities in errors.items():
        for quantity, error in quantities.items():
            bound = (16 if "gradient" in quantity else 4) * ROUNDING if quantity != "padding" else 0
            assert error <= bound, (case, quantity, error)
