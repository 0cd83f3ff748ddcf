"""The attention layers: projections, norms, rotary positions and a cache around the public functions.

One base class does everything that the three layers share; each adds what its member of the family needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flashlla import _validation, functional
from flashlla.nn.cache import KINDS, Cache, GrowingKVCache, KVCache, PagedKVCache, PageTable, SlidingKVCache
from flashlla.nn.cache.base import check_counts
from flashlla.nn.cache.sliding import sliding_capacity
from flashlla.nn.checks import check_backend, check_mask, check_sizes, check_solver
from flashlla.nn.per_head import Gate, Ridge, SolvesForProbe
from flashlla.nn.rotary import Rotation, packed_positions, rotate, rotation

NORM_EPS = 1e-6


class _Attention(nn.Module):
    """Projections in and out, and one of three calls: dense, packed, or over a cache.

    A subclass names its three functions, and may add queries that stand behind q (``_more_queries``)
    and keyword options (``_options``).
    """

    _dense: ClassVar[Callable[..., Tensor]]
    _varlen: ClassVar[Callable[..., Tensor]]
    _with_kvcache: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        value_dim: int | None = None,
        qk_norm: bool = True,
        rotary: bool = True,
        rope_base: float = 10000.0,
        window_size: int | None = None,
        causal: bool = True,
        bias: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        check_sizes(dim=dim, heads=heads, kv_heads=kv_heads)
        if heads % kv_heads:
            raise ValueError(f"heads={heads} is no multiple of kv_heads={kv_heads}")
        if head_dim is None and dim % heads:
            raise ValueError(f"dim={dim} is no multiple of heads={heads}; pass head_dim")
        head_dim = dim // heads if head_dim is None else head_dim
        value_dim = head_dim if value_dim is None else value_dim
        check_sizes(head_dim=head_dim, value_dim=value_dim)
        for name, size in (("head_dim", head_dim), ("value_dim", value_dim)):
            if size > _validation.MAX_HEAD_DIM:
                raise ValueError(
                    f"{name}={size} is above the limit of {_validation.MAX_HEAD_DIM}; use more heads"
                )
        if rotary and head_dim % 2:
            raise ValueError(f"head_dim={head_dim} must be even for rotary positions; pass rotary=False")
        if not rope_base > 0:
            raise ValueError(f"rope_base={rope_base} must be greater than 0")
        check_backend(backend)
        check_mask(causal, window_size)

        self.dim, self.heads, self.kv_heads = dim, heads, kv_heads
        self.head_dim, self.value_dim = head_dim, value_dim
        self.rotary, self.rope_base = rotary, rope_base
        self.causal, self.window_size, self.backend = causal, window_size, backend
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.q_proj = nn.Linear(dim, heads * head_dim, bias=bias, **factory)
        self.k_proj = nn.Linear(dim, kv_heads * head_dim, bias=bias, **factory)
        self.v_proj = nn.Linear(dim, kv_heads * value_dim, bias=bias, **factory)
        self.out_proj = nn.Linear(heads * value_dim, dim, bias=bias, **factory)
        self.q_norm = nn.RMSNorm(head_dim, eps=NORM_EPS, **factory) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(head_dim, eps=NORM_EPS, **factory) if qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        *,
        context: Tensor | None = None,
        cache: Cache | None = None,
        lengths: Sequence[int] | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Attend from ``x`` to itself, to ``context``, or to ``cache`` and itself.

        Args:
            x: ``[batch, seq, dim]``; with cu_seqlens packed, ``[total, dim]``.
            context: source of keys and values instead of x, ``[batch, context_len, dim]``. A causal layer
                lets the last rows of both meet (bottom right); another one counts positions of both from 0.
            cache: earlier keys and values of this layer, from :meth:`make_cache`. The new rows are
                appended; positions go on from those of each sequence. Without gradient only.
            lengths: with a cache, the real rows of each sequence of x, ints in ``[0, seq]``; padding stands
                behind them, is not counted into the cache, and has outputs without meaning.
            cu_seqlens: int32 or int64 ``[sequences + 1]``, bounds of the packed sequences; positions start
                again in each.

        Returns:
            The shape of x.

        Raises:
            TypeError: wrong types or dtypes.
            ValueError: wrong shapes, more than one of the three options, a full cache.
            NotImplementedError: a gradient through a cache.
        """
        self._check_inputs(x, context, cache, lengths, cu_seqlens)
        source = x if context is None else context
        q = self._heads(self.q_proj(x), self.q_norm)
        k = self._heads(self.k_proj(source), self.k_norm)
        v = self.v_proj(source).unflatten(-1, (self.kv_heads, self.value_dim))
        turn = None
        if self.rotary:
            q_positions, k_positions = self._positions(x, context, cache, cu_seqlens)
            turn = rotation(q_positions, self.head_dim, self.rope_base, q.dtype)
            k_turn = (
                turn if context is None else rotation(k_positions, self.head_dim, self.rope_base, q.dtype)
            )
            q, k = rotate(q, turn), rotate(k, k_turn)
        queries = (q, *self._more_queries(x, turn))
        options = {
            "causal": self.causal,
            "window_size": self.window_size,
            "backend": self.backend,
            **self._options(),
        }
        if cache is not None:
            out = self._over_cache((*queries, k, v), cache, lengths, options)
        elif cu_seqlens is not None:
            out = self._varlen(*queries, k, v, cu_seqlens, **options)
        else:
            out = self._dense(*queries, k, v, **options)
        projected: Tensor = self.out_proj(out.flatten(-2).to(self.out_proj.weight.dtype))
        return projected

    def make_cache(
        self,
        batch: int,
        capacity: int,
        *,
        kind: str = "static",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Cache:
        """An empty cache of this layer's sizes; device and dtype follow the weights unless given.

        Args:
            batch: number of sequences.
            capacity: rows that each may reach; where ``"growing"`` starts, and no limit to ``"sliding"``.
            kind: ``"static"``, ``"growing"``, ``"sliding"`` (for a layer with a window) or ``"paged"``: with
                a page table of its own that holds ``batch`` sequences of capacity rows.

        Raises:
            TypeError, ValueError: an unknown kind, sizes below 1, ``"sliding"`` without a window.
        """
        device = self.k_proj.weight.device if device is None else device
        dtype = self.k_proj.weight.dtype if dtype is None else dtype
        if kind == "paged":
            return self.make_paged_cache(PageTable.for_batch(batch, capacity, device=device), dtype=dtype)
        sizes = (self.kv_heads, self.head_dim, self.value_dim, device, dtype)
        if kind == "sliding":
            if self.window_size is None:
                raise ValueError("kind='sliding' needs a layer with a window_size; this one sees all keys")
            rows = sliding_capacity(self.window_size, capacity)
            return SlidingKVCache(batch, rows, *sizes, window_size=self.window_size)
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r} is unknown; choose one of {', '.join(KINDS)}")
        return (KVCache if kind == "static" else GrowingKVCache)(batch, capacity, *sizes)

    def make_paged_cache(self, table: PageTable, *, dtype: torch.dtype | None = None) -> PagedKVCache:
        """This layer's pages of ``table``, which the layers of a model share; dtype follows the weights."""
        dtype = self.k_proj.weight.dtype if dtype is None else dtype
        return PagedKVCache(table, self.kv_heads, self.head_dim, self.value_dim, dtype)

    def extra_repr(self) -> str:
        return (
            f"heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}, "
            f"value_dim={self.value_dim}, window_size={self.window_size}, causal={self.causal}"
        )

    def _heads(self, projected: Tensor, norm: nn.Module) -> Tensor:
        """Queries or keys by head, normalised in the dtype of the weights: autocast lowers products only."""
        heads = projected.unflatten(-1, (projected.shape[-1] // self.head_dim, self.head_dim))
        normed: Tensor = norm(heads.to(self.q_proj.weight.dtype))
        return normed

    def _more_queries(self, x: Tensor, turn: Rotation | None) -> tuple[Tensor, ...]:
        return ()

    def _options(self) -> dict[str, Any]:
        return {}

    def _over_cache(
        self,
        operands: Sequence[Tensor],
        cache: Cache,
        lengths: Sequence[int] | None,
        options: dict[str, Any],
    ) -> Tensor:
        """Attention of the new rows over the cache, which takes them in; in pieces if it has to be."""
        rows = operands[0].shape[1]
        step = cache.most_rows or max(rows, 1)
        outs = []
        for i, (*queries, k, v) in enumerate(
            zip(*(t.to(cache.k.dtype).split(step, 1) for t in operands), strict=True)
        ):
            new = k.shape[1]
            counts = None if lengths is None else [min(max(n - i * step, 0), new) for n in lengths]
            cache.reserve(new, counts)
            where = {"cache_seqlens": cache.lengths, "block_table": cache.block_table}
            outs.append(self._with_kvcache(*queries, cache.k, cache.v, k, v, **where, **options))
            cache.advance(new, counts)
        return torch.cat(outs, 1) if len(outs) > 1 else outs[0]

    def _positions(
        self, x: Tensor, context: Tensor | None, cache: Cache | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Positions of the queries and of the new keys."""
        if cu_seqlens is not None:
            positions = packed_positions(cu_seqlens, x.shape[0])
            return positions, positions
        positions = torch.arange(x.shape[1], device=x.device)
        if cache is not None:
            positions = positions + cache.positions[:, None]
        if context is None:
            return positions, positions
        behind = context.shape[1] - x.shape[1] if self.causal else 0
        return positions + behind, torch.arange(context.shape[1], device=x.device)

    def _check_inputs(
        self,
        x: Tensor,
        context: Tensor | None,
        cache: Cache | None,
        lengths: Sequence[int] | None,
        cu_seqlens: Tensor | None,
    ) -> None:
        given = [
            n
            for n, a in (("context", context), ("cache", cache), ("cu_seqlens", cu_seqlens))
            if a is not None
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} do not go together; pass one of them")
        self._check_rows("x", x, packed=cu_seqlens is not None)
        if context is not None:
            self._check_rows("context", context, packed=False)
            if context.shape[0] != x.shape[0]:
                raise ValueError(
                    f"context has batch {context.shape[0]} and x has {x.shape[0]}; they must be equal"
                )
        if cu_seqlens is not None:
            _validation.check_cu_seqlens("cu_seqlens", cu_seqlens, x.device)
        if cache is not None:
            self._check_cache(x, cache, lengths)
        elif lengths is not None:
            raise ValueError("lengths is for new rows of a cache; without one use cu_seqlens")

    def _check_rows(self, name: str, x: Tensor, packed: bool) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
        if x.dim() != (2 if packed else 3) or x.shape[-1] != self.dim:
            expected = f"[total, {self.dim}], packed by cu_seqlens" if packed else f"[batch, seq, {self.dim}]"
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {expected}")

    def _check_cache(self, x: Tensor, cache: Cache, lengths: Sequence[int] | None) -> None:
        if not isinstance(cache, Cache):
            raise TypeError(
                f"cache must be a cache of flashlla.nn, got {type(cache).__name__}; make_cache() makes one"
            )
        if not self.causal:
            raise ValueError(
                "cache needs a layer with causal=True: otherwise earlier rows would have to be redone"
            )
        expected = (x.shape[0], self.kv_heads, self.head_dim, self.value_dim)
        found = (cache.batch, *cache.k.shape[2:], cache.v.shape[3])
        if found != expected:
            raise ValueError(f"cache has (batch, kv_heads, head_dim, value_dim) {found}; expected {expected}")
        kept = cache.window_size
        if kept is not None and (self.window_size is None or self.window_size > kept):
            raise ValueError(
                f"cache keeps a window of {kept} and the layer has window_size={self.window_size}; "
                "make_cache() of this layer makes one that is wide enough"
            )
        check_counts(x.shape[1], lengths, cache.batch, "lengths")
        if cache.most_rows is None:
            cache.check_room(x.shape[1], lengths)


class SoftmaxAttention(_Attention):
    """Softmax attention through the kernels of this library: the member of the family with a zero probe.

    Args:
        dim: width of inputs and outputs.
        heads: query heads.
        kv_heads: key and value heads, a divisor of heads; None means heads.
        head_dim: width of queries and keys of one head; None means ``dim / heads``.
        value_dim: width of values of one head; None means head_dim.
        qk_norm: RMS norm of queries and keys, with learned weights, before the rotation.
        rotary: rotary positions with base ``rope_base``.
        window_size: number of visible keys, the diagonal included; None means all.
        causal: causal mask, aligned to the bottom right.
        bias: biases in all projections.
        backend: as in :func:`flashlla.lla_attention`.

    Raises:
        ValueError: sizes or options that do not fit together.
    """

    _dense = staticmethod(functional.softmax_attention)
    _varlen = staticmethod(functional.softmax_attention_varlen)
    _with_kvcache = staticmethod(functional.softmax_attention_with_kvcache)


class LocalLinearAttention(SolvesForProbe, _Attention):
    """Local linear attention (arXiv 2510.01450): a ridge regression of the values around every query.

    Args:
        ridge: ``"learned"`` (one per query head, through a softplus, float32 or better) or a fixed float.
        ridge_init: where a learned ridge starts, > 0. With qk_norm a key entry has mean square 1, and
            the ridge is in the same units; a large one gives softmax attention.
        gate: share of the linear correction: None (all of it), a fixed float, or ``"learned"``, one per
            query head.
        gate_init: where a learned gate starts; 0 is softmax attention exactly, with a gradient.
        solver, rtol, max_iters: as in :func:`flashlla.lla_attention`.
        common: all arguments of :class:`SoftmaxAttention`.

    Raises:
        ValueError, TypeError: sizes or options that do not fit together.
    """

    _dense = staticmethod(functional.lla_attention)
    _varlen = staticmethod(functional.lla_attention_varlen)
    _with_kvcache = staticmethod(functional.lla_attention_with_kvcache)

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        ridge: str | float = "learned",
        ridge_init: float = 1.0,
        gate: str | float | None = None,
        gate_init: float = 1.0,
        solver: str = "auto",
        rtol: float | None = None,
        max_iters: int | None = None,
        **common: Any,
    ):
        super().__init__(dim, heads, **common)
        check_solver(solver, rtol, max_iters)
        device, dtype = common.get("device"), common.get("dtype")
        self.ridge = Ridge(ridge, ridge_init, heads, device, dtype)
        self.gate = Gate(gate, gate_init, heads, device, dtype)
        self.solver, self.rtol, self.max_iters = solver, rtol, max_iters


class ParallaxAttention(_Attention):
    """Parallax attention (arXiv 2605.29157): the linear correction with a projected probe; nothing to solve.

    ``o_i = vbar_i - Cov_p(v, k) r_i`` with ``r = r_scale * rotate(norm(r_proj(x)))``. The scale, one per
    query head, starts at 0, so that the layer starts as softmax attention. The zero stands behind the norm
    and not in ``r_proj``: the norm of a zero vector has a gradient of ``1 / sqrt(eps)``, a thousand times
    too large, while that of the scale is alive and tame.

    Args:
        gate: fixed factor of the correction (None is 1) or ``"learned"``, one per query head.
        gate_init: where a learned gate starts.
        common: all arguments of :class:`SoftmaxAttention`.

    Raises:
        ValueError, TypeError: sizes or options that do not fit together.
    """

    _dense = staticmethod(functional.parallax_attention)
    _varlen = staticmethod(functional.parallax_attention_varlen)
    _with_kvcache = staticmethod(functional.parallax_attention_with_kvcache)

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        gate: str | float | None = None,
        gate_init: float = 1.0,
        **common: Any,
    ):
        super().__init__(dim, heads, **common)
        factory: dict[str, Any] = {"device": common.get("device"), "dtype": common.get("dtype")}
        self.gate = Gate(gate, gate_init, heads, **factory)
        self.r_proj = nn.Linear(dim, heads * self.head_dim, bias=common.get("bias", False), **factory)
        normed = isinstance(self.q_norm, nn.RMSNorm)
        self.r_norm = nn.RMSNorm(self.head_dim, eps=NORM_EPS, **factory) if normed else nn.Identity()
        self.r_scale = nn.Parameter(torch.zeros(heads, **factory))

    def _more_queries(self, x: Tensor, turn: Rotation | None) -> tuple[Tensor, ...]:
        r = self._heads(self.r_proj(x), self.r_norm)
        r = r if turn is None else rotate(r, turn)
        return (r * self.r_scale[:, None],)

    def _options(self) -> dict[str, Any]:
        return {"gate": self.gate()}
