"""The operators under the rest of PyTorch: compiler, export, autocast, checkpointing, transforms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from flashlla import (
    lla_attention,
    lla_attention_varlen,
    lla_attention_with_kvcache,
    lla_attention_with_stats,
    parallax_attention,
    softmax_attention,
)
from flashlla.testing.numerics import evaluate
from flashlla.testing.problems import random_operands


def problem(**changes) -> tuple[dict[str, Tensor], Tensor]:
    sizes = {"batch": 2, "q_len": 20, "heads": 4, "kv_heads": 2, "head_dim": 8, "value_dim": 6, "ridge": 0.2}
    return random_operands("iid", **{**sizes, **changes})


def permuted(t: Tensor) -> Tensor:
    return t.transpose(1, 2).contiguous().transpose(1, 2)


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, t in expected.items():
        torch.testing.assert_close(
            actual[name], t, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


# ---- the operators themselves -------------------------------------------------------------------------

OPTIONS = (0.3, True, 0, "auto", 1e-6, 32)


def forward_arguments(backend: str, kind: str, arrange) -> tuple:
    operands, _ = problem(
        batch=1, ridge=None if kind in ("parallax", "softmax") else 0.2, probe=kind == "parallax"
    )
    q, k, v, probe = (arrange(operands[n]) if n in operands else None for n in ("q", "k", "v", "r"))
    cu_seqlens = torch.tensor([0, 7, 20]) if kind == "varlen" else None
    seqlens_k = torch.tensor([13]) if kind in ("kvcache", "paged") else None
    block_table = torch.zeros(1, 1, dtype=torch.int32) if kind == "paged" else None
    layout = (cu_seqlens, cu_seqlens, seqlens_k, block_table)
    return (q, k, v, probe, operands.get("ridge"), operands["gate"], *layout, *OPTIONS, backend, True)


KINDS = ("lla", "parallax", "softmax", "varlen", "kvcache", "paged")
arrange = pytest.mark.parametrize("arrange", [torch.clone, permuted], ids=["contiguous", "permuted"])


@pytest.mark.parametrize("kind", KINDS)
@arrange
def test_opcheck_forward(backend, kind, arrange):
    torch.library.opcheck(torch.ops.flashlla.forward.default, forward_arguments(backend, kind, arrange))


@pytest.mark.parametrize("kind", KINDS[:-2])  # attention over a cache has no backward
@arrange
def test_opcheck_backward(backend, kind, arrange):
    arguments = forward_arguments(backend, kind, arrange)
    out, _, kbar, g, *_ = torch.ops.flashlla.forward(*arguments)
    do = arrange(torch.ones_like(out))
    operands, layout, options = arguments[:6], arguments[6:10], arguments[10:-1]
    torch.library.opcheck(torch.ops.flashlla.backward.default, (do, *operands, kbar, g, *layout, *options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@arrange
def test_fakes_have_the_shapes_dtypes_and_strides_of_real_results(backend, dtype, arrange):
    operands, do = problem(dtype=dtype)
    operands = {name: arrange(t) if t.dim() == 4 else t for name, t in operands.items()}
    real = lla_attention_with_stats(**operands, backend=backend)
    grads = evaluate(lla_attention, operands, do, backend=backend)
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(t) for name, t in operands.items()}
        fake = lla_attention_with_stats(**fakes, backend=backend)
        fake_grads = evaluate(lla_attention, fakes, mode.from_tensor(do), backend=backend)
    for a, b in (*zip(fake, real, strict=True), *((fake_grads[name], t) for name, t in grads.items())):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_meta_tensors():
    operands, _ = problem()
    out = lla_attention(**{name: t.to("meta") for name, t in operands.items()}, backend="blockwise")
    assert out.device.type == "meta"
    assert out.shape == (2, 20, 4, 6)


# ---- compiler and export ------------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile_is_one_graph_for_all_lengths(backend, compiler):
    torch._dynamo.reset()
    counters.clear()

    @torch.compile(fullgraph=True, dynamic=True, backend=compiler)
    def compiled(q, k, v, ridge, gate):
        return lla_attention(q, k, v, ridge=ridge, gate=gate, backend=backend) * 2

    def eager(q, k, v, ridge, gate):
        return lla_attention(q, k, v, ridge=ridge, gate=gate, backend=backend) * 2

    for n in (20, 37):
        operands, do = problem(q_len=n)
        assert_same(evaluate(compiled, operands, do), evaluate(eager, operands, do))
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("member", ["varlen", "kvcache", "parallax", "softmax", "options"])
def test_compile_of_every_member(backend, member):
    torch._dynamo.reset()
    operands, _ = problem(batch=1, ridge=None, probe=True, gate=False)
    q, k, v, r = (operands[name] for name in ("q", "k", "v", "r"))
    lengths = torch.tensor([0, 7, 20])

    def call(q, k, v, r, lengths):
        if member == "varlen":
            return lla_attention_varlen(q[0], k[0], v[0], lengths, ridge=0.2, backend=backend)
        if member == "kvcache":
            return lla_attention_with_kvcache(q, k, v, cache_seqlens=lengths[1:2], ridge=0.2, backend=backend)
        if member == "parallax":
            return parallax_attention(q, r, k, v, backend=backend)
        if member == "softmax":
            return softmax_attention(q, k, v, backend=backend)
        return lla_attention(
            q, k, v, ridge=0.5, gate=0.7, window_size=5, solver="cg", rtol=1e-4, backend=backend
        )

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = call(q, k, v, r, lengths)
        torch.testing.assert_close(compiled(q, k, v, r, lengths), expected, rtol=1e-6, atol=1e-6)


def test_bad_values_raise_under_compile(backend):
    torch._dynamo.reset()
    operands, _ = problem()
    compiled = torch.compile(lla_attention, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="ridge"):
        compiled(**{**operands, "ridge": -operands["ridge"]}, backend=backend)


def test_export(backend):
    class Layer(torch.nn.Module):
        def forward(self, q, k, v, ridge):
            return lla_attention(q, k, v, ridge=ridge, backend=backend)

    operands, _ = problem()
    arguments = tuple(operands[name] for name in ("q", "k", "v", "ridge"))
    length = torch.export.Dim("length", min=2, max=4096)
    program = torch.export.export(Layer(), arguments, dynamic_shapes=({1: length},) * 4)
    longer, _ = problem(q_len=51)
    arguments = tuple(longer[name] for name in ("q", "k", "v", "ridge"))
    torch.testing.assert_close(program.module()(*arguments), Layer()(*arguments), rtol=0, atol=0)


# ---- autocast, checkpointing, transforms --------------------------------------------------------------


def test_autocast(backend):
    operands, do = problem()
    with torch.autocast("cpu", torch.bfloat16):
        actual = evaluate(lla_attention, operands, do, backend=backend)
    rounded = {name: t.bfloat16() if name in ("q", "k", "v") else t for name, t in operands.items()}
    expected = evaluate(lla_attention, rounded, do.bfloat16(), backend=backend)
    assert actual["out"].dtype == torch.bfloat16
    for name, t in expected.items():
        assert torch.equal(actual[name].to(t.dtype), t), name
        if name != "out":
            assert actual[name].dtype == torch.float32, name


def test_autocast_follows_the_cache(backend):
    operands, _ = problem(dtype=torch.bfloat16)
    q, k, v = (operands[name] for name in ("q", "k", "v"))
    with torch.autocast("cpu", torch.bfloat16):
        out = lla_attention_with_kvcache(q.float(), k, v, cache_seqlens=20, ridge=0.2, backend=backend)
    expected = lla_attention_with_kvcache(q, k, v, cache_seqlens=20, ridge=0.2, backend=backend)
    assert torch.equal(out, expected)


def test_checkpoint(backend):
    operands, do = problem()

    def call(**operands):
        return lla_attention(**operands, backend=backend)

    def checkpointed(**operands):
        return checkpoint(call, use_reentrant=False, **operands)

    expected = evaluate(call, operands, do)
    for name, t in evaluate(checkpointed, operands, do).items():
        assert torch.equal(t, expected[name]), name


def test_func_grad(backend):
    operands, do = problem()

    def loss(operands):
        return (lla_attention(**operands, backend=backend) * do).sum()

    expected = evaluate(lla_attention, operands, do, backend=backend)
    for name, t in torch.func.grad(loss)(operands).items():
        torch.testing.assert_close(t, expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "shared", [(), ("k", "v"), ("ridge",), ("q",)], ids=lambda names: "+".join(names) or "none"
)
@pytest.mark.parametrize("dim", [0, 2])
def test_vmap(backend, shared, dim):
    runs = [problem(seed=seed) for seed in range(3)]
    operands = {
        name: runs[0][0][name] if name in shared else torch.stack([run[0][name] for run in runs], dim)
        for name in runs[0][0]
    }
    do = torch.stack([run[1] for run in runs])
    dims = {name: None if name in shared else dim for name in operands}

    def loss(operands, do):
        return (lla_attention(**operands, backend=backend) * do).sum()

    outs = torch.func.vmap(lambda operands: lla_attention(**operands, backend=backend), in_dims=(dims,))(
        operands
    )
    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(dims, 0))(operands, do)
    for i in range(3):
        one = {name: t if name in shared else t.select(dim, i) for name, t in operands.items()}
        expected = evaluate(lla_attention, one, do[i], backend=backend)
        torch.testing.assert_close(outs[i], expected.pop("out"), rtol=1e-5, atol=1e-5)
        for name, t in expected.items():
            torch.testing.assert_close(grads[name][i], t, rtol=1e-4, atol=1e-4)


def test_vmap_over_a_cache(backend):
    operands, _ = problem()
    stacked = {name: torch.stack([t, t.flip(0)]) for name, t in operands.items() if name in ("q", "k", "v")}
    lengths = torch.tensor([20, 11])

    def call(q, k, v):
        return lla_attention_with_kvcache(q, k, v, cache_seqlens=lengths, ridge=0.2, backend=backend)

    with torch.no_grad():
        outs = torch.func.vmap(call)(stacked["q"], stacked["k"], stacked["v"])
        for i in range(2):
            expected = call(*(stacked[name][i] for name in ("q", "k", "v")))
            torch.testing.assert_close(outs[i], expected, rtol=1e-5, atol=1e-5)


def test_vmap_over_packed_sequences_is_refused(backend):
    operands, _ = problem()
    q, k, v = (operands[name] for name in ("q", "k", "v"))
    cu_seqlens = torch.tensor([0, 20])
    with pytest.raises(NotImplementedError, match="cu_seqlens"):
        torch.func.vmap(lambda *t: lla_attention_varlen(*t, cu_seqlens, ridge=0.2, backend=backend))(q, k, v)


def test_gradient_around_a_vmap(backend):
    """Inside of it a tensor does not say that a gradient is wanted further out."""
    operands, do = problem(batch=3)
    q, rest = operands.pop("q"), {name: t[:1] for name, t in operands.items()}

    def loss(stacked: Tensor) -> Tensor:
        out = torch.func.vmap(lambda q: lla_attention(q[None], **rest, backend=backend)[0])(stacked)
        return (out * do).sum()

    alike = {name: t.expand(3, *t.shape[1:]) for name, t in rest.items()}
    expected = evaluate(lla_attention, {"q": q, **alike}, do, backend=backend)["q"]
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            assert_same({"q": torch.func.grad(loss)(q)}, {"q": expected})


@pytest.mark.parametrize("enabled", [True, False], ids=["grad", "no_grad"])
def test_forward_mode_is_refused(backend, enabled):
    q = torch.randn(1, 5, 1, 8)
    with torch.set_grad_enabled(enabled), forward_ad.dual_level():
        dual = forward_ad.make_dual(q, torch.ones_like(q))
        with pytest.raises(RuntimeError, match="jvp"):
            lla_attention(dual, q, q, ridge=1.0, backend=backend)


@pytest.mark.parametrize("name", ["q", "k", "v", "ridge", "gate"])
def test_second_derivative_is_refused(backend, name):
    operands, _ = problem()
    operands = {n: t.requires_grad_() for n, t in operands.items()}
    out = lla_attention(**operands, backend=backend)
    (grad,) = torch.autograd.grad(out.sum(), operands[name], create_graph=True)
    with pytest.raises(NotImplementedError, match="reference"):
        torch.autograd.grad(grad.square().sum(), list(operands.values()), allow_unused=True)


def test_gradient_penalty_is_refused_and_the_reference_does_it(backend):
    operands, _ = problem()
    operands = {n: t.requires_grad_() for n, t in operands.items()}

    def penalised(backend):
        out = lla_attention(**operands, backend=backend)
        (grad,) = torch.autograd.grad(out.sum(), operands["q"], create_graph=True)
        return out.square().mean() + grad.square().mean()

    with pytest.raises(NotImplementedError, match="second derivative"):
        penalised(backend).backward()
    penalised("reference").backward()
    assert operands["q"].grad.isfinite().all()
