"""What is timed: the members of the family, what they are compared with, and the operands of a call."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from baselines.published import Configs, published_attention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import flashlla

FUNCTIONS = {
    "lla": flashlla.lla_attention,
    "parallax": flashlla.parallax_attention,
    "softmax": flashlla.softmax_attention,
}


@dataclass(frozen=True)
class Contender:
    """One way to compute one thing.

    Attributes:
        name: in tables.
        kind: what it computes: ``"lla"``, ``"parallax"``, ``"softmax"``, or ``"published"`` (LLA as well).
        function: ``(q, k, v)`` or, for Parallax, ``(q, r, k, v)``, all ``[batch, seq, heads, dim]``.
        products: a guess of the products a visible pair takes, forward and both ways, to foresee its time.
        ridge, rtol: of LLA.
        ours: whether its kernels are this library's.
    """

    name: str
    kind: str
    function: Callable[..., Tensor]
    products: tuple[float, float]
    ridge: float | None = None
    rtol: float | None = None
    ours: bool = False


def member(kind: str, ridge: float | None = None, rtol: float | None = None) -> Contender:
    """A member of the family through the public function, with the Triton kernels by name."""
    name, options, products = kind, {"backend": "triton"}, (6.0, 22.0) if kind == "parallax" else (2.0, 15.0)
    if kind == "lla":
        options |= {"ridge": ridge, "rtol": rtol}
        name = f"lla, ridge {ridge:g}" + ("" if rtol is None else f", rtol {rtol:g}")
        iterations = 25 / ridge**0.25
        products = (10 + 4 * iterations, 31 + 8 * iterations)
    return Contender(name, kind, partial(FUNCTIONS[kind], **options), products, ridge, rtol, ours=True)


def published(ridge: float, configs: Configs) -> Contender:
    """The published algorithm; its time does not depend on the ridge."""
    function = partial(published_attention, ridge=ridge, configs=configs)
    return Contender("published", "published", function, (101.0, 214.0), ridge)


# ---- other libraries -------------------------------------------------------------------------------------

SDPA = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's causal softmax attention by one of its backends, on our layout and without a copy."""
    with sdpa_kernel(backend):
        out = scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)
    return out.transpose(1, 2)


def _first(result):
    return result[0] if isinstance(result, tuple) else result


LIBRARIES = {
    "flash-attn": ("softmax", "flash_attn", "flash_attn_func", {"causal": True}),
    "flash-attn 3": ("softmax", "flash_attn_interface", "flash_attn_func", {"causal": True}),
    "fla softmax": ("softmax", "fla.ops.attn", "parallel_attn", {}),
    "fla parallax": ("parallax", "fla.ops.parallax", "parallel_parallax", {}),
}


def rivals(quick: bool) -> tuple[list[Contender], dict[str, str]]:
    """Contenders of other libraries, and why the others are missing."""
    backends = {"sdpa flash": SDPA["sdpa flash"]} if quick else SDPA
    found = [
        Contender(name, "softmax", partial(sdpa, backend), (2.0, 7.0)) for name, backend in backends.items()
    ]
    missing = {}
    for name, (kind, module, function, options) in ({} if quick else LIBRARIES).items():
        try:
            target = getattr(importlib.import_module(module), function)
        except Exception as error:  # a broken installation may raise anything
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        call = lambda *x, target=target, options=options: _first(target(*x, **options))  # noqa: E731
        found.append(Contender(name, kind, call, (4.0, 12.0)))
    return found, missing


# ---- operands and calls ----------------------------------------------------------------------------------


def operands(
    n: int, dim: int, batch: int, heads: int, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Tensor]:
    """Standard normal q, k, v and do; r of a size that makes its correction comparable to the average."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (batch, n, heads, dim)
    drawn = {
        name: torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
        for name in ("q", "k", "v", "r", "do")
    }
    drawn["r"] /= dim**0.5
    return {name: t.to(dtype) for name, t in drawn.items()}


def arguments(contender: Contender, x: dict[str, Tensor]) -> list[Tensor]:
    """What the function takes, in its order."""
    return [x[name] for name in (("q", "r", "k", "v") if contender.kind == "parallax" else ("q", "k", "v"))]


def call_of(contender: Contender, x: dict[str, Tensor], backward: bool) -> Callable[[], object]:
    """The forward pass, or both, as a call without arguments."""
    inputs = arguments(contender, x)
    if not backward:

        def forward():
            with torch.no_grad():
                return contender.function(*inputs)

        return forward
    leaves = [t.detach().requires_grad_() for t in inputs]

    def both():
        return torch.autograd.grad(contender.function(*leaves), leaves, x["do"])

    return both
