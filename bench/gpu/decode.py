"""One step of decoding over caches of many shapes: time, bandwidth, and the ratio to softmax decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import flashlla
from flashlla.testing.numerics import ceiling, error_norm_ratio
from gpu.launches import split

RIDGE = 1.0
CHECKED_LENGTH = 3000
FREE_MEMORY = 0.6  # share of the device's memory that a cache may take
COPIED_BYTES = 2**30
# Microseconds of one step as published for the Parallax decode kernel (its README: H200 SXM, bfloat16, 8
# heads, d=128, median, CUDA graphs): flash-attention 2, flash-attention 3, Parallax.
PUBLISHED = {
    (1, 512): (8.38, 10.64, 5.79),
    (1, 1024): (9.45, 9.10, 6.48),
    (1, 4096): (17.07, 11.90, 8.61),
    (1, 16384): (29.82, 24.46, 21.53),
    (32, 512): (27.73, 23.48, 24.02),
    (32, 1024): (99.73, 39.16, 39.55),
    (32, 4096): (384.90, 281.64, 279.96),
    (32, 16384): (1574.94, 1096.76, 1094.37),
}


class Shape(NamedTuple):
    """A step of ``batch`` sequences, one query each, over ``length`` cached keys of ``dim`` numbers."""

    batch: int
    heads: int
    kv_heads: int
    length: int
    dim: int = 128

    @property
    def bytes(self) -> int:
        """Of keys and values in half precision, each read once."""
        return 2 * 2 * self.batch * self.kv_heads * self.length * self.dim


def shapes(session) -> Iterator[Shape]:
    """Those of the comparison, the published ones first."""
    if session.interpreted:
        yield Shape(2, 2, 1, 70, 16)
        return
    batches, lengths = ((1, 32), (4096,)) if session.quick else ((1, 32, 8, 128), (512, 4096, 16384, 65536))
    for kv_heads, heads in ((8, 8), (8, 32)):
        for batch in batches:
            for length in lengths:
                yield Shape(batch, heads, kv_heads, length)


def operands(shape: Shape, device: torch.device) -> dict[str, Tensor]:
    """Standard normal queries, keys and values in bfloat16, and a probe of usual size."""
    generator = torch.Generator(device).manual_seed(0)
    new = partial(torch.randn, generator=generator, device=device, dtype=torch.bfloat16)
    cache = (shape.batch, shape.length, shape.kv_heads, shape.dim)
    q = new(shape.batch, 1, shape.heads, shape.dim)
    return {"q": q, "r": new(q.shape) / shape.dim**0.5, "k_cache": new(cache), "v_cache": new(cache)}


def sdpa(x: dict[str, Tensor]) -> Tensor:
    """PyTorch's softmax attention over the same memory."""
    q, k, v = (x[name].transpose(1, 2) for name in ("q", "k_cache", "v_cache"))
    return scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


def ours(kind: str, x: dict[str, Tensor], lengths: Tensor, backend: str) -> Tensor:
    """A step of this library. Lengths lie on the device, so that nothing waits."""
    function = getattr(flashlla, f"{kind}_attention_with_kvcache")
    queries = {name: x[name] for name in (("q", "r") if kind == "parallax" else ("q",))}
    caches = {name: x[name] for name in ("k_cache", "v_cache")}
    ridge = {"ridge": RIDGE} if kind == "lla" else {}
    return function(**queries, **caches, **ridge, cache_seqlens=lengths, backend=backend)


def contenders(session) -> dict[str, Callable[[dict[str, Tensor], Tensor], Tensor]]:
    """By name; the CUDA kernels where CuPy is there."""
    found = {"sdpa": lambda x, lengths: sdpa(x)}
    backends = ["triton"]
    if not session.interpreted:
        missing = flashlla._backends.BACKENDS["cuda"].missing()
        backends += [] if missing else ["cuda"]
        if missing:
            session.note("decode", missing)
    for backend in backends:
        for kind in ("softmax", "parallax", "lla"):
            found[f"{kind}, {backend}"] = partial(_step, kind, backend)
    return found


def _step(kind: str, backend: str, x: dict[str, Tensor], lengths: Tensor) -> Tensor:
    return ours(kind, x, lengths, backend)


def errors(session, names: list[str]) -> dict[str, float]:
    """Error norm ratio of every contender of ours on one grouped shape, against float64."""
    shape = Shape(2, 2, 1, 70, 16) if session.interpreted else Shape(2, 8, 2, CHECKED_LENGTH)
    x = operands(shape, session.device)
    lengths = torch.tensor([shape.length, shape.length // 2 + 1], device=session.device)
    wide = {name: t.double() for name, t in x.items()}
    found = {}
    for name in names:
        kind, backend = name.split(", ")
        exact = ours(kind, wide, lengths, "blockwise")
        found[name] = error_norm_ratio(ours(kind, x, lengths, backend), exact)
    return found


def copy_rate(session) -> float:
    """Bytes a second that a copy by a kernel reads and writes: the yardstick of bandwidth.

    ``copy_`` would do it by another engine, which an H200 drives at 2.6 TB/s and no more.
    """
    size = COPIED_BYTES if session.device.type == "cuda" else 2**20
    source = torch.ones(size // 4, device=session.device)
    target = torch.empty_like(source)
    timing = session.timer.measure(lambda: torch.mul(source, 2.0, out=target), graph=False)
    return 2 * size / timing.ms * 1e3


def measure(session) -> None:
    """A row for every shape and contender, slowest shapes last."""
    rate = copy_rate(session)
    session.add("decode", {"what": "copy", "bytes_per_second": rate})
    functions = contenders(session)
    checked = errors(session, [name for name in functions if name != "sdpa"])
    limit = ceiling(torch.bfloat16, RIDGE)
    for name, error in checked.items():
        session.add("decode", {"what": "check", "contender": name, "error": error, "passed": error <= limit})
    for shape in sorted(shapes(session), key=lambda shape: shape.bytes):
        _measure_shape(session, shape, functions, checked, limit, rate)


def _measure_shape(session, shape: Shape, functions, checked, limit: float, rate: float) -> None:
    room = session.machine.get("memory_gib", 0) * 2**30 * FREE_MEMORY
    if not session.interpreted and shape.bytes > room:
        session.note("decode", f"{shape} does not fit")
        return
    x = operands(shape, session.device)
    lengths = torch.full((shape.batch,), shape.length, device=session.device)
    reference = None
    for name, function in functions.items():
        with session.attempt("decode", contender=name, **shape._asdict()) as row:
            session.require(checked.get(name, 0.0) <= limit, "failed its check")
            session.require_time(1.0 if not session.interpreted else 0.0)
            with torch.no_grad():
                row |= session.timer.measure(partial(function, x, lengths))._asdict()
                row["host_ms"] = session.timer.host_ms(partial(function, x, lengths))
            row["bandwidth_share"] = shape.bytes / row["ms"] * 1e3 / rate
            reference = row["ms"] if name == "sdpa" else reference
            row["over_sdpa"] = row["ms"] / reference if reference else None
            if name == "lla, triton":
                with torch.no_grad():
                    row["kernels"] = split(partial(function, x, lengths), session.device)
    session.check_device()
