"""Random calls for hypothesis: every member and form, any shape, stride, dtype and option, valid or broken.

Only the shape of a call is drawn by hypothesis; its numbers come from a drawn seed. Logits stay within some
ten units: behind a softmax that is one key to all digits, float32 has no gradient left to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

import flashlla

FUNCTIONS: dict[tuple[str, str], Callable[..., Tensor]] = {
    ("lla", "dense"): flashlla.lla_attention,
    ("lla", "varlen"): flashlla.lla_attention_varlen,
    ("lla", "kvcache"): flashlla.lla_attention_with_kvcache,
    ("parallax", "dense"): flashlla.parallax_attention,
    ("parallax", "varlen"): flashlla.parallax_attention_varlen,
    ("parallax", "kvcache"): flashlla.parallax_attention_with_kvcache,
    ("softmax", "dense"): flashlla.softmax_attention,
    ("softmax", "varlen"): flashlla.softmax_attention_varlen,
    ("softmax", "kvcache"): flashlla.softmax_attention_with_kvcache,
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PER_KEY = ("k", "v")
PER_CACHE_SLOT = ("k_cache", "v_cache")


class Call(NamedTuple):
    """One call: ``function(**operands, **options)``.

    operands are the floating tensors by argument name; numbers for ridge and gate are options. lengths are
    those of the sequences, one pair (queries, keys) each; for a cache the keys include the appended ones.
    """

    member: str
    form: str
    operands: dict[str, Tensor]
    options: dict[str, Any]
    do: Tensor
    lengths: list[tuple[int, int]]

    @property
    def function(self) -> Callable[..., Tensor]:
        return FUNCTIONS[self.member, self.form]

    @property
    def dense_function(self) -> Callable[..., Tensor]:
        """What computes one of :meth:`sequences`."""
        return FUNCTIONS[self.member, "dense"]

    @property
    def dtype(self) -> torch.dtype:
        return self.operands["q"].dtype

    @property
    def lowest_ridge(self) -> float | None:
        """The smallest ridge, None where nothing is solved for."""
        if self.member != "lla":
            return None
        if "ridge" in self.options:
            return float(self.options["ridge"])
        ridge = self.operands["ridge"]
        return float(ridge.min()) if ridge.numel() else 1.0

    def sequences(self) -> Iterator[tuple[dict[str, Tensor], Tensor, dict[str, tuple[slice, ...]]]]:
        """Operands and ``do`` of every sequence as a dense call of its own, and where each result belongs."""
        rows = self.operands["q"].shape[:-1]
        full = {name: t.expand(rows) if name in ("ridge", "gate") else t for name, t in self.operands.items()}
        for name in ("ridge", "gate"):
            if name in self.options:
                full[name] = torch.full(rows, float(self.options[name]), dtype=torch.float64)
        q_at = k_at = 0
        q_rows: tuple[slice, ...]
        k_rows: tuple[slice, ...]
        for i, (q_len, k_len) in enumerate(self.lengths):
            if self.form == "varlen":
                q_rows, k_rows = (slice(q_at, q_at + q_len),), (slice(k_at, k_at + k_len),)
                q_at, k_at = q_at + q_len, k_at + k_len
            else:
                q_rows, k_rows = (slice(i, i + 1),), (slice(i, i + 1), slice(k_len))
            tensors = dict(full)
            if self.form == "kvcache":
                tensors["k"], tensors["v"] = (self.filled(name)[k_rows] for name in PER_KEY)
                tensors = {name: t for name, t in tensors.items() if name not in PER_CACHE_SLOT}
                where = {name: k_rows if name in PER_KEY else q_rows for name in tensors}
                piece = {name: t if name in PER_KEY else t[q_rows] for name, t in tensors.items()}
            else:
                where = {name: k_rows if name in PER_KEY else q_rows for name in tensors}
                piece = {name: t[where[name]] for name, t in tensors.items()}
            do = self.do[q_rows]
            if self.form == "varlen":
                piece, do = {name: t[None] for name, t in piece.items()}, do[None]
            yield piece, do, {**where, "out": q_rows}

    def filled(self, name: str) -> Tensor:
        """A cache as it must be after the call."""
        cache, new = self.operands[f"{name}_cache"].clone(), self.operands.get(name)
        if new is not None:
            for b, (_, end) in enumerate(self.lengths):
                cache[b, end - new.shape[1] : end] = new[b]
        return cache

    @property
    def mask(self) -> dict[str, Any]:
        """The options that a dense call of one sequence takes over."""
        return {
            name: self.options[name] for name in ("scale", "causal", "window_size") if name in self.options
        }

    def __repr__(self) -> str:
        operands = ", ".join(
            f"{name}={str(t.dtype).removeprefix('torch.')}{tuple(t.shape)} strides {t.stride()}"
            for name, t in self.operands.items()
        )
        return f"Call({self.member}, {self.form}, {operands}, {self.options}, lengths={self.lengths})"


def head_dims() -> st.SearchStrategy[int]:
    return st.one_of(st.integers(1, 20), st.sampled_from([31, 32, 33, 64, 65, 80]))


@st.composite
def arranged(draw: st.DrawFn, t: Tensor, shareable: bool = True) -> Tensor:
    """The numbers of t with other strides, the last one 1; what lies between them is NaN.

    With ``shareable`` a dimension may also become an expanded one: its first entry for all.
    """
    dims = range(t.dim() - 1)
    kinds = ["contiguous", "permuted", "stepped", "widened", *(["expanded"] if shareable else [])]
    kind = draw(st.sampled_from(kinds))
    if kind == "permuted":
        order = draw(st.permutations(dims))
        inverse = sorted(dims, key=order.__getitem__)
        return t.permute(*order, -1).contiguous().permute(*inverse, -1)
    if kind == "expanded":
        dim = draw(st.sampled_from([d for d in dims if d != t.dim() - 3]))  # tokens stay different
        return t.narrow(dim, 0, 1).expand_as(t) if t.shape[dim] else t
    if kind == "stepped":
        dim, step = draw(st.sampled_from(dims)), draw(st.integers(2, 3))
        shape = [n * step if d == dim else n for d, n in enumerate(t.shape)]
        host = t.new_full(shape, torch.nan)[
            tuple(slice(None, None, step if d == dim else 1) for d in range(t.dim()))
        ]
        return host.copy_(t)
    if kind == "widened":
        left, right = draw(st.integers(0, 3)), draw(st.integers(1, 3))
        host = t.new_full((*t.shape[:-1], left + t.shape[-1] + right), torch.nan)[..., left:-right]
        return host.copy_(t)
    return t


@st.composite
def per_row(
    draw: st.DrawFn,
    rows: tuple[int, ...],
    dtype: torch.dtype,
    values: Callable[[tuple[int, ...]], Tensor],
) -> float | Tensor:
    """A number, or a tensor that broadcasts to ``rows``, for operands of ``dtype``."""
    if draw(st.booleans()):
        return float(values(()))
    kept = draw(st.integers(0, len(rows)))
    shape = [draw(st.sampled_from([1, n])) for n in rows[len(rows) - kept :]]
    precise = [torch.float64] if dtype == torch.float64 else [torch.float32, torch.float64]
    return values(tuple(shape)).to(draw(st.sampled_from(precise)))


@st.composite
def calls(draw: st.DrawFn, forms: tuple[str, ...] = ("dense", "varlen", "kvcache")) -> Call:
    """A valid call."""
    form = draw(st.sampled_from(forms))
    member = draw(st.sampled_from(["lla", "lla", "lla", "parallax", "softmax"]))
    dtype = draw(st.sampled_from(DTYPES))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    d, value_dim = draw(head_dims()), draw(head_dims())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def uniform(shape: tuple[int, ...]) -> Tensor:
        return 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5

    def log_uniform(shape: tuple[int, ...]) -> Tensor:
        return 0.011 * 900 ** torch.rand(shape, generator=generator, dtype=torch.float64)

    options, operands = draw(masks(d)), {}
    rows: tuple[int, ...]
    keys: tuple[int, ...]
    if form == "dense":
        batch, q_len = draw(st.integers(0, 3)), draw(st.integers(0, 18))
        kv_len = draw(st.one_of(st.just(q_len), st.integers(0, 24)))
        lengths, rows, keys = [(q_len, kv_len)] * batch, (batch, q_len), (batch, kv_len)
    elif form == "varlen":
        q_lengths = draw(st.lists(st.integers(0, 9), max_size=4))
        kv_lengths = q_lengths
        if draw(st.booleans()):
            kv_lengths = draw(st.lists(st.integers(0, 12), min_size=len(q_lengths), max_size=len(q_lengths)))
        index = draw(st.sampled_from([torch.int32, torch.int64]))
        ends = [torch.tensor([0, *part]).cumsum(0).to(index) for part in (q_lengths, kv_lengths)]
        options["cu_seqlens"] = ends[0]
        if q_lengths != kv_lengths or draw(st.booleans()):
            options["cu_seqlens_k"] = ends[1]
        lengths = list(zip(q_lengths, kv_lengths, strict=True))
        rows, keys = (sum(q_lengths),), (sum(kv_lengths),)
    else:
        batch, q_len = draw(st.integers(0, 3)), draw(st.integers(0, 5))
        new = q_len if draw(st.booleans()) else None
        capacity = draw(st.integers(max(1, q_len), 24))
        free = capacity - (new or 0)
        if draw(st.booleans()):
            used = [draw(st.integers(0, free))] * batch
            options["cache_seqlens"] = used[0] if used else 0
        else:
            used = draw(st.lists(st.integers(0, free), min_size=batch, max_size=batch))
            index = draw(st.sampled_from([torch.int32, torch.int64]))
            options["cache_seqlens"] = torch.tensor(used, dtype=index)
        lengths = [(q_len, length + (new or 0)) for length in used]
        rows, keys = (batch, q_len), (batch, capacity)
        if new is not None:
            operands["k"] = draw(arranged(normal(batch, new, kv_heads, d)))
            operands["v"] = draw(arranged(normal(batch, new, kv_heads, value_dim)))

    heads = kv_heads * group
    operands["q"] = draw(arranged(normal(*rows, heads, d)))
    if member == "parallax":
        operands["r"] = draw(arranged(normal(*rows, heads, d) / d**0.5))
    k, v = normal(*keys, kv_heads, d), normal(*keys, kv_heads, value_dim)
    if form == "kvcache":
        for b, length in enumerate(used):
            k[b, length:] = v[b, length:] = torch.nan
        operands["k_cache"], operands["v_cache"] = (draw(arranged(t, shareable=False)) for t in (k, v))
    else:
        operands["k"], operands["v"] = draw(arranged(k)), draw(arranged(v))
    scalars = {}
    if member == "lla":
        scalars["ridge"] = draw(per_row((*rows, heads), dtype, log_uniform))
        options["solver"] = draw(st.sampled_from(["auto", "cg", "direct"]))
    if member != "softmax" and draw(st.booleans()):
        scalars["gate"] = draw(per_row((*rows, heads), dtype, uniform))
    for name, value in scalars.items():
        if isinstance(value, Tensor):
            operands[name] = value
        else:
            options[name] = value
    do = draw(arranged(normal(*rows, heads, value_dim)))
    return Call(member, form, operands, options, do, lengths)


@st.composite
def masks(draw: st.DrawFn, d: int) -> dict[str, Any]:
    """Scale and mask."""
    options: dict[str, Any] = {}
    factor = draw(st.sampled_from([None, 0.0, 0.3, 1.5, -1.0]))
    if factor is not None:
        options["scale"] = factor * d**-0.5
    if draw(st.integers(0, 3)) == 0:
        options["causal"] = False
    elif draw(st.booleans()):
        options["window_size"] = draw(st.integers(1, 30))
    return options


@st.composite
def broken_calls(draw: st.DrawFn) -> Call:
    """A call with one thing wrong, of those that the documentation forbids."""
    call = draw(calls())
    operands: dict[str, Any] = dict(call.operands)
    options = dict(call.options)
    name = draw(st.sampled_from(sorted(operands.keys() - {"ridge", "gate"})))
    t = operands[name]
    total = operands["q"].shape[0]
    faults: dict[str, Callable[[], object]] = {
        "last_stride": lambda: operands.update({name: torch.stack([t, t, t], -1).flatten(-2)[..., ::3]}),
        "rank": lambda: operands.update({name: t[None]}),
        "dtype": lambda: operands.update({name: t.int()}),
        "type": lambda: operands.update({name: t.tolist()}),
        "device": lambda: operands.update({name: t.to("meta")}),
        "head_dim": lambda: operands.update({name: t.new_zeros(*t.shape[:-1], 257)}),
        "window_size": lambda: options.update(window_size=draw(st.integers(-5, 0))),
        "scale": lambda: options.update(scale=draw(st.sampled_from([float("nan"), float("inf")]))),
        "backend": lambda: options.update(backend="unknown"),
    }
    if t.shape[-1] == 1 or (call.form == "kvcache" and name in ("k", "v")):
        del faults["last_stride"]  # none is there, or rows are copied into the cache
    if call.member == "lla":
        bad = draw(st.sampled_from([0.0, -1.0, float("nan"), float("inf")]))
        faults["ridge"] = lambda: (operands.pop("ridge", None), options.update(ridge=bad))
        faults["solver"] = lambda: options.update(solver=draw(st.text(max_size=3)))
        faults["rtol"] = lambda: options.update(rtol=draw(st.sampled_from([0.0, 1.0, -0.1, float("nan")])))
        if "ridge" in operands and operands["ridge"].numel() and total:
            spoiled = operands["ridge"].clone()
            spoiled.view(-1)[draw(st.integers(0, spoiled.numel() - 1))] = bad
            faults["ridge_entry"] = lambda: operands.update(ridge=spoiled)
    if call.form == "kvcache":
        faults["cache_type"] = lambda: options.update(
            cache_seqlens=draw(st.sampled_from([None, 1.0, [1], True]))
        )
    operands.update({n: x.clone() for n, x in operands.items() if n in PER_CACHE_SLOT})
    fault = draw(st.sampled_from(sorted(faults)))
    if fault == "ridge_entry" and operands["q"].numel() == 0:
        fault = "scale"
    faults[fault]()
    return call._replace(operands=operands, options=options)
