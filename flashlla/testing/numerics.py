"""Error budgets: how far a result may lie from the exact one.

The exact result is that of ``backend="reference"`` in float64 on the operands as they are, already rounded to
their dtype. The error is the norm ratio ``|out - exact| / |exact|`` (Frobenius, over the whole tensor). Its
ceiling depends on the dtype and on the ridge alone; nothing in the environment moves it:

=========  ===============  =================  ===============  ===================
dtype      forward,         forward,           gradients,       gradients,
           ridge >= 0.1     ridge >= 0.01      ridge >= 0.1     ridge >= 0.01
=========  ===============  =================  ===============  ===================
float64    1e-9             1e-9               3e-9             3e-9
float32    1e-5             1e-4               3e-5             3e-4
float16    1e-3             1e-3               3e-3             3e-3
bfloat16   5e-3             5e-3               1.5e-2           1.5e-2
=========  ===============  =================  ===============  ===================

Where every summand of a result cancels, the ratio has nothing to stand on: a lone query over its lone key has
a ``dq`` of exactly 0. For such problems pass ``floor``, see :func:`typical_norms`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from flashlla.ops.reference import softmax_weights
from flashlla.ops.types import Options

# dtype: (lowest ridge, ceiling of a forward result) from the mildest ridge down.
CEILINGS: dict[torch.dtype, tuple[tuple[float, float], ...]] = {
    torch.float64: ((0.01, 1e-9),),
    torch.float32: ((0.1, 1e-5), (0.01, 1e-4)),
    torch.float16: ((0.01, 1e-3),),
    torch.bfloat16: ((0.01, 5e-3),),
}
GRADIENT_FACTOR = 3.0


def ceiling(dtype: torch.dtype, ridge: float | None = None, gradient: bool = False) -> float:
    """The largest error norm ratio allowed; ``ridge=None`` stands for a call that solves nothing.

    Raises:
        ValueError: no budget is promised for this dtype or for a ridge this small.
    """
    if dtype not in CEILINGS:
        raise ValueError(f"dtype={dtype} has no error budget; choose one of {', '.join(map(str, CEILINGS))}")
    for lowest, value in CEILINGS[dtype]:
        if ridge is None or ridge >= lowest:
            return value * (GRADIENT_FACTOR if gradient else 1.0)
    raise ValueError(f"ridge={ridge} has no error budget; the smallest ridge with one is {lowest}")


def error_norm_ratio(actual: Tensor, exact: Tensor, floor: float = 0.0) -> float:
    """``|actual - exact| / max(|exact|, floor)``, and 0 where the numerator is 0."""
    error = float((actual.double() - exact.double()).norm())
    size = max(float(exact.double().norm()), floor)
    if error == 0:
        return 0.0
    return error / size if size > 0 else math.inf


def assert_within_budget(
    actual: Tensor,
    exact: Tensor,
    dtype: torch.dtype,
    ridge: float | None,
    gradient: bool = False,
    name: str = "out",
    floor: float = 0.0,
) -> float:
    """Require a finite result of the right shape within its ceiling; return its error norm ratio.

    Args:
        actual: the result to judge.
        exact: the float64 result on the same operands, see :func:`exact`.
        dtype: that of the operands.
        ridge: the smallest ridge of the call, or None if nothing is solved for.
        gradient: whether the result is a gradient.
        name: what to call it in the message.
        floor: norm below which ``|exact|`` does not count, one of :func:`typical_norms`.

    Raises:
        AssertionError: another shape, a number that is not finite, or an error above the ceiling.
        ValueError: there is no budget, see :func:`ceiling`.
    """
    limit = ceiling(dtype, ridge, gradient)
    if actual.shape != exact.shape:
        raise AssertionError(f"{name} has shape {tuple(actual.shape)}, expected {tuple(exact.shape)}")
    if not bool(actual.isfinite().all()):
        worst = tuple((~actual.isfinite()).nonzero()[0].tolist())
        raise AssertionError(
            f"{name} has {int((~actual.isfinite()).sum())} values that are not finite, first at {worst}"
        )
    ratio = error_norm_ratio(actual, exact, floor)
    if ratio > limit:
        gap = (actual.double() - exact.double()).abs()
        worst = tuple(int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
        raise AssertionError(
            f"{name} ({dtype}, ridge {ridge}): error norm ratio {ratio:.3g} over the ceiling {limit:.3g}; "
            f"worst at {worst}: {float(actual[worst]):.9g}, exact {float(exact[worst]):.9g}; "
            f"norm of the exact result {float(exact.norm()):.3g}, floor {floor:.3g}"
        )
    return ratio


# ---- results and exact results ------------------------------------------------------------------------


def evaluate(
    function: Callable[..., Tensor], operands: dict[str, Tensor], do: Tensor | None = None, **options: Any
) -> dict[str, Tensor]:
    """Call ``function(**operands, **options)``: ``"out"`` and, given ``do``, each gradient by name.

    ``operands`` are the floating tensors by argument name, ridge and gate included; everything else,
    ``cu_seqlens`` too, is an option. The call runs where its backend does (:func:`device_of`); results come
    back to the device of the operands.
    """
    home, device = next(iter(operands.values())).device, device_of(options.get("backend"))
    if device is not None:
        operands, options = _to_device(operands, device), _to_device(options, device)
        do = None if do is None else do.to(device)
    if do is None:
        with torch.no_grad():
            return {"out": function(**operands, **options).to(home)}
    leaves = {name: t.detach().requires_grad_() for name, t in operands.items()}
    out = function(**leaves, **options)
    grads = torch.autograd.grad(out, list(leaves.values()), do.to(out.dtype), allow_unused=True)
    zeros = (torch.zeros_like(t) if g is None else g for g, t in zip(grads, operands.values(), strict=True))
    return {"out": out.detach().to(home), **{n: g.to(home) for n, g in zip(leaves, zeros, strict=True)}}


def device_of(backend: str | None) -> str | None:
    """Where a named backend has to run: ``"cuda"`` for compiled kernels of a GPU, None for anywhere."""
    if backend == "cuda":
        return "cuda"
    if backend == "triton" and not importlib.import_module("triton").knobs.runtime.interpret:
        return "cuda"
    return None


def _to_device(values: dict[str, Any], device: str) -> dict[str, Any]:
    """Tensors moved, with their strides; other values as they are."""
    return {name: t.to(device) if isinstance(t, Tensor) else t for name, t in values.items()}


def exact(
    function: Callable[..., Tensor], operands: dict[str, Tensor], do: Tensor | None = None, **options: Any
) -> dict[str, Tensor]:
    """:func:`evaluate` in float64 with ``backend="reference"``, on the same (already rounded) numbers."""
    operands = {name: t.detach().double() for name, t in operands.items()}
    return evaluate(
        function, operands, None if do is None else do.double(), **{**options, "backend": "reference"}
    )


def typical_norms(
    operands: dict[str, Tensor],
    do: Tensor,
    *,
    scale: float | None = None,
    causal: bool = True,
    window_size: int | None = None,
) -> dict[str, float]:
    """Norms that the output and the gradients would have if their summands had random signs.

    Every sum of the closed form is replaced by the root of its sum of squares: ``sqrt(sum_j a_ij^2 v_j^2)``
    for the output, and so on through the gradients. Usually the exact norm is of this size. It is much
    smaller only where the summands cancel, which a random problem of a few numbers does now and then; the
    rounding of the summands remains, so the error is then measured against this norm. A result whose
    summands are all 0 keeps a floor of 0: it must be exact.

    Args:
        operands: q, k, v and any of r, ridge, gate, dense, by name.
        do: gradient of the output.

    Returns:
        A norm for ``"out"`` and for each operand.
    """
    q, k, v = operands["q"], operands["k"], operands["v"]
    rows, group = q.shape[:3], q.shape[2] // k.shape[2]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    options = Options(scale, causal, window_size or 0, "auto", 0.5, 1)
    q, do = (rearrange(t.double(), "b t h d -> b h t d") for t in (q, do))
    k, v = (repeat(t.double(), "b s h d -> b (h g) s d", g=group) for t in (k, v))

    def per_row(name: str) -> Tensor:
        t = operands.get(name, torch.ones(()))
        return rearrange(t.double().expand(rows), "b t h -> b h t 1")

    p = softmax_weights(q, k, options).p
    centred = k[:, :, None] - (p @ k)[:, :, :, None]
    # From here on every name holds the square of what it is called in the closed form.
    gate2, q2, v2, do2, p2, k2 = per_row("gate") ** 2, q**2, v**2, do**2, p**2, centred**2
    g2 = f2 = torch.zeros_like(q)
    e2 = do2 @ v2.mT
    e2 = e2 + (p2 * e2).sum(-1, keepdim=True)
    h2 = torch.einsum("bhts,bhtsd->bhtd", p2 * e2, k2)
    if "r" in operands:
        g2 = rearrange(operands["r"].double(), "b t h d -> b h t d") ** 2
    elif "ridge" in operands:
        system = torch.einsum("bhts,bhtsd,bhtse->bhtde", p, centred, centred)
        inverse2 = torch.linalg.inv(system + torch.diag_embed(per_row("ridge").expand_as(q))) ** 2
        b2 = torch.einsum("bhts,bhtsd->bhtd", p2, (q[:, :, :, None] - k[:, :, None]) ** 2)
        g2, f2 = (inverse2 @ torch.stack([b2, gate2 * h2], -1)).unbind(-1)
    c2, u2 = (torch.einsum("bhtsd,bhtd->bhts", k2, x) for x in (g2, f2))
    a2 = p2 * (1 + gate2 * c2)
    y2 = e2 * (1 + gate2 * c2) + u2 * (1 + c2)
    ds2 = scale**2 * p2 * (y2 + (p2 * y2).sum(-1, keepdim=True))
    squares = {
        "out": a2 @ v2,
        "q": torch.einsum("bhts,bhtsd->bhtd", ds2, k2) + f2,
        "k": ds2.mT @ q2 + (p2 * (gate2 * e2 + u2)).mT @ g2 + (p2 * (1 + c2)).mT @ f2,
        "v": a2.mT @ do2,
        "r": gate2 * h2,
        "ridge": f2 * g2,
        "gate": h2 * g2,
    }
    return {
        name: math.sqrt(float(t.sum())) for name, t in squares.items() if name == "out" or name in operands
    }
