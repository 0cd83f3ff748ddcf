"""Drop-ins for ``torch.nn.MultiheadAttention`` that compute local linear attention, and Parallax."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flashlla import _validation, functional
from flashlla.nn.checks import check_backend, check_solver
from flashlla.nn.per_head import Gate, Ridge, SolvesForProbe


class _Packed(NamedTuple):
    """The rows of a padded batch that count, behind one another."""

    rows: Tensor  # [batch, seq], bool
    cu_seqlens: Tensor  # [batch + 1]


class _MultiheadAttention(nn.MultiheadAttention):
    """Everything but the attention itself: a subclass names two functions, dense and packed.

    It may add queries that stand behind q (``_more_queries``) and keyword options (``_options``).
    """

    _dense: ClassVar[Callable[..., Tensor]]
    _varlen: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ):
        if dropout:
            raise NotImplementedError(
                f"dropout={dropout}: attention weights are never formed; use 0, and nn.Dropout on the output"
            )
        for name, given in (("add_bias_kv", add_bias_kv), ("add_zero_attn", add_zero_attn)):
            if given:
                raise NotImplementedError(
                    f"{name}=True is not supported; append the row to key and value instead"
                )
        if num_heads > 0 and embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim} is no multiple of num_heads={num_heads}")
        if num_heads > 0 and embed_dim // num_heads > _validation.MAX_HEAD_DIM:
            raise ValueError(
                f"embed_dim / num_heads = {embed_dim // num_heads} is above the limit of "
                f"{_validation.MAX_HEAD_DIM}; use more heads"
            )
        check_backend(backend)
        super().__init__(
            embed_dim,
            num_heads,
            bias=bias,
            kdim=kdim,
            vdim=vdim,
            batch_first=batch_first,
            device=device,
            dtype=dtype,
        )
        self.backend = backend

    def _reset_parameters(self) -> None:
        self._qkv_same_embed_dim = self.in_proj_weight is not None
        super()._reset_parameters()
        # torch.nn.TransformerEncoder(Layer) takes the weights of a module that answers True and computes
        # softmax attention with them in evaluation, without calling the module at all.
        self._qkv_same_embed_dim = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attention of ``query`` to ``key`` and ``value``.

        Args:
            query: ``[L, N, embed_dim]``; ``[N, L, embed_dim]`` with batch_first; or ``[L, embed_dim]``.
            key, value: likewise, ``[S, N, kdim]`` and ``[S, N, vdim]``.
            key_padding_mask: ``[N, S]`` (unbatched ``[S]``): True, or -inf, for keys to ignore, anywhere in
                the row. With a causal mask rows that are themselves padding attend to nothing.
            need_weights, average_attn_weights: accepted for their callers; weights are never formed.
            attn_mask: None or a causal mask, bool or float, as torch writes them; is_causal=True promises
                that it is one and saves reading it.
            is_causal: see attn_mask, which may be left out here.

        Returns:
            The output, of the shape of query, and None in place of weights. A row that sees no key attends to
            nothing: its output is the bias of out_proj, where torch gives NaN.

        Raises:
            TypeError, ValueError: wrong types, dtypes or shapes.
            NotImplementedError: another mask than those above; a causal mask with L > S, or with padding and
                L != S.
        """
        unbatched = self._check_inputs(query, key, value)
        self_attention = query is key is value
        if unbatched:
            query, key, value = (t[None] for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q_len, kv_len = query.shape[1], key.shape[1]
        valid = _valid_keys(key_padding_mask, key.shape[0], kv_len)
        causal, visible = _causality(attn_mask, is_causal, q_len, kv_len)
        if causal and valid is not None and q_len != kv_len:
            raise NotImplementedError(
                f"key_padding_mask with a causal mask needs L == S, got L={q_len} and S={kv_len}; "
                "use flashlla.lla_attention_varlen"
            )
        q, k, v = self._project(query, key, value, self_attention)
        queries, options = (q, *self._more_queries(query)), {"backend": self.backend, **self._options()}
        if valid is None:
            out = self._dense(*queries, k[:, :visible], v[:, :visible], causal=causal, **options)
        else:
            out = self._attend_valid(queries, k, v, valid, causal, options)
        out = self.out_proj(out.flatten(-2))
        if unbatched:
            return out[0], None
        return (out if self.batch_first else out.transpose(0, 1)), None

    def _project(self, query: Tensor, key: Tensor, value: Tensor, self_attention: bool) -> tuple[Tensor, ...]:
        """Heads of q, k and v: ``[N, length, heads, head_dim]``."""
        projected: Iterable[Tensor]
        if self_attention and self.in_proj_weight is not None:
            projected = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            weights: tuple[Tensor, ...] = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if self.in_proj_weight is not None:
                weights = self.in_proj_weight.chunk(3)
            biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            projected = map(F.linear, (query, key, value), weights, biases)
        return tuple(t.unflatten(-1, (self.num_heads, self.head_dim)) for t in projected)

    def _attend_valid(
        self,
        queries: tuple[Tensor, ...],
        k: Tensor,
        v: Tensor,
        valid: Tensor,
        causal: bool,
        options: dict[str, Any],
    ) -> Tensor:
        """Attention to the valid keys only, packed; causal queries are packed like the keys."""
        q, keys = queries[0], _Packed(valid, F.pad(valid.sum(1).cumsum(0), (1, 0)))
        everything = torch.ones(q.shape[:2], dtype=torch.bool, device=q.device)
        rows = keys if causal else _Packed(everything, F.pad(everything.sum(1).cumsum(0), (1, 0)))
        packed = self._varlen(
            *(t[rows.rows] for t in queries),
            k[keys.rows],
            v[keys.rows],
            rows.cu_seqlens,
            cu_seqlens_k=keys.cu_seqlens,
            causal=causal,
            **options,
        )
        out = packed.new_zeros(*q.shape[:3], self.head_dim)
        out[rows.rows] = packed
        return out

    def _more_queries(self, query: Tensor) -> tuple[Tensor, ...]:
        return ()

    def _options(self) -> dict[str, Any]:
        return {}

    def _check_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> bool:
        """Types and shapes; True if the input is unbatched."""
        widths = {"query": self.embed_dim, "key": self.kdim, "value": self.vdim}
        for (name, width), t in zip(widths.items(), (query, key, value), strict=True):
            if not isinstance(t, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
            if t.is_nested:
                raise NotImplementedError(
                    f"{name} is a nested tensor; use key_padding_mask, or lla_attention_varlen"
                )
            if t.dim() not in (2, 3) or t.dim() != query.dim() or t.shape[-1] != width:
                raise ValueError(
                    f"{name} has shape {tuple(t.shape)}; expected 3 dimensions (2 unbatched, for all), "
                    f"the last of {width}"
                )
        if key.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                f"key has shape {tuple(key.shape)} and value {tuple(value.shape)}; only widths may differ"
            )
        batch_axis = 0 if self.batch_first else 1
        if query.dim() == 3 and query.shape[batch_axis] != key.shape[batch_axis]:
            raise ValueError(
                f"query has batch {query.shape[batch_axis]} and key {key.shape[batch_axis]} "
                f"(batch_first={self.batch_first}); they must be equal"
            )
        return query.dim() == 2


class MultiheadAttention(SolvesForProbe, _MultiheadAttention):
    """Local linear attention (arXiv 2510.01450) behind the interface of :class:`torch.nn.MultiheadAttention`.

    Constructor arguments, initialisation and state dict are torch's, so weights load in both directions; with
    a large ridge, or a gate of 0, the outputs are torch's too. A learned ridge or gate adds the keys
    ``ridge.raw`` and ``gate.raw``.

    Args:
        embed_dim, num_heads, bias, kdim, vdim, batch_first, device, dtype: as in torch.
        dropout: must be 0; add_bias_kv, add_zero_attn: must be False.
        ridge: a fixed float, or ``"learned"``, one per head, from ``ridge_init``.
        gate: share of the linear correction: None (all), a float, or ``"learned"`` from ``gate_init``.
        solver, rtol, max_iters, backend: as in :func:`flashlla.lla_attention`.

    Raises:
        NotImplementedError: dropout, add_bias_kv or add_zero_attn.
        ValueError, TypeError: sizes or options that do not fit together.
    """

    _dense = staticmethod(functional.lla_attention)
    _varlen = staticmethod(functional.lla_attention_varlen)

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *common: Any,
        ridge: str | float = 1.0,
        ridge_init: float = 1.0,
        gate: str | float | None = None,
        gate_init: float = 1.0,
        solver: str = "auto",
        rtol: float | None = None,
        max_iters: int | None = None,
        **more_common: Any,
    ):
        check_solver(solver, rtol, max_iters)
        super().__init__(embed_dim, num_heads, *common, **more_common)
        factory: dict[str, Any] = {"device": self.out_proj.weight.device, "dtype": self.out_proj.weight.dtype}
        self.ridge = Ridge(ridge, ridge_init, num_heads, **factory)
        self.gate = Gate(gate, gate_init, num_heads, **factory)
        self.solver, self.rtol, self.max_iters = solver, rtol, max_iters


class ParallaxMultiheadAttention(_MultiheadAttention):
    """Parallax attention (arXiv 2605.29157) behind the interface of :class:`torch.nn.MultiheadAttention`.

    The probe is projected from the query: ``r = r_scale * r_proj(query)``. The scale, one per head, starts at
    0, so that the module starts as torch's, with a gradient. A state dict has the keys of torch's, and those
    of ``r_proj``, ``r_scale`` and a learned gate.

    Args:
        gate: fixed factor of the correction (None is 1), or ``"learned"`` from ``gate_init``.
        common: all arguments of :class:`MultiheadAttention` but those of ridge and solver.

    Raises:
        NotImplementedError: dropout, add_bias_kv or add_zero_attn.
        ValueError, TypeError: sizes or options that do not fit together.
    """

    _dense = staticmethod(functional.parallax_attention)
    _varlen = staticmethod(functional.parallax_attention_varlen)

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *common: Any,
        gate: str | float | None = None,
        gate_init: float = 1.0,
        **more_common: Any,
    ):
        super().__init__(embed_dim, num_heads, *common, **more_common)
        factory: dict[str, Any] = {"device": self.out_proj.weight.device, "dtype": self.out_proj.weight.dtype}
        self.gate = Gate(gate, gate_init, num_heads, **factory)
        self.r_proj = nn.Linear(embed_dim, embed_dim, bias=self.in_proj_bias is not None, **factory)
        self.r_scale = nn.Parameter(torch.zeros(num_heads, **factory))

    def _more_queries(self, query: Tensor) -> tuple[Tensor, ...]:
        r = self.r_proj(query).unflatten(-1, (self.num_heads, self.head_dim))
        return ((r * self.r_scale[:, None]).to(r.dtype),)  # autocast lowers r and not its scale

    def _options(self) -> dict[str, Any]:
        return {"gate": self.gate()}


def _valid_keys(mask: Tensor | None, batch: int, kv_len: int) -> Tensor | None:
    """bool ``[batch, kv_len]``, True for keys that count."""
    if mask is None:
        return None
    if tuple(mask.shape) != (batch, kv_len):
        raise ValueError(f"key_padding_mask has shape {tuple(mask.shape)}; expected {(batch, kv_len)}")
    return ~_hidden("key_padding_mask", mask)


def _hidden(name: str, mask: Tensor) -> Tensor:
    """What a bool mask (True) or a float mask (-inf) hides."""
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point():
        raise TypeError(f"{name} has dtype {mask.dtype}; use bool, or a float mask of 0 and -inf")
    hidden = mask == -torch.inf
    if bool(((mask != 0) & ~hidden).any()):
        raise NotImplementedError(
            f"{name} adds values other than 0 and -inf to the logits, which is not supported"
        )
    return hidden


def _causality(mask: Tensor | None, is_causal: bool, q_len: int, kv_len: int) -> tuple[bool, int]:
    """Whether the attention is causal (bottom right), and to how many leading keys it is restricted.

    torch's causal masks are aligned to the top left: query ``i`` sees the keys up to ``i``, so that for
    L < S the keys behind L do not matter, and without them both alignments are one.
    """
    if mask is not None and (mask.dim() not in (2, 3) or tuple(mask.shape[-2:]) != (q_len, kv_len)):
        raise ValueError(f"attn_mask has shape {tuple(mask.shape)}; expected {(q_len, kv_len)}")
    if mask is None and not is_causal:
        return False, kv_len
    if mask is None or (is_causal and q_len == kv_len):
        top_left = True
    else:
        hidden = _hidden("attn_mask", mask)
        if not bool(hidden.any()):
            return False, kv_len
        everything = torch.ones(q_len, kv_len, dtype=torch.bool, device=mask.device)
        if bool((hidden == everything.triu(1 + kv_len - q_len)).all()):
            return True, kv_len
        top_left = bool((hidden == everything.triu(1)).all())
    if not top_left:
        raise NotImplementedError("attn_mask is neither None nor causal; no other mask is supported")
    if q_len > kv_len:
        raise NotImplementedError(
            f"a causal mask aligned to the top left needs L <= S, got L={q_len} and S={kv_len}"
        )
    return True, q_len
