"""The attention functions that :func:`register` gives to transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flashlla import functional
from flashlla.integrations.settings import Settings
from flashlla.integrations.transformers import masks
from flashlla.integrations.transformers.masks import Mask

PROBE = "flashlla_probe"  # the keyword under which a converted layer hands r to its attention function

# Arguments that change what attention computes, by the names that models use.
_REFUSED = {
    "softcap": "soft caps of the logits",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "head_mask": "head masks",
    "position_bias": "position biases",
    "indices": "sparse attention",
    "block_indices": "sparse attention",
}


class Member(NamedTuple):
    """The three functions of a member of the family."""

    dense: Callable[..., Tensor]
    varlen: Callable[..., Tensor]
    with_kvcache: Callable[..., Tensor]


LLA = Member(functional.lla_attention, functional.lla_attention_varlen, functional.lla_attention_with_kvcache)
PARALLAX = Member(
    functional.parallax_attention,
    functional.parallax_attention_varlen,
    functional.parallax_attention_with_kvcache,
)


def lla_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Mask | Tensor | None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Local linear attention as an attention function of transformers.

    Ridge and gate are those of ``module.lla`` where a conversion has put it, else ``lla_ridge`` and
    ``lla_gate`` of the layer's configuration.

    Args:
        module: the attention layer that calls.
        query: ``[batch, heads, q_len, head_dim]``; key, value: ``[batch, kv_heads, kv_len, ...]``.
        attention_mask: what :func:`masks.make_mask` made.
        arguments: as transformers passes them; ``scaling``, ``dropout``, ``is_causal``, ``sliding_window``,
            ``position_ids``, ``cu_seq_lens_q`` and ``cu_seq_lens_k`` are read.

    Returns:
        ``[batch, q_len, heads, value_dim]``, 0 in causal rows that are padding; and None for the weights.

    Raises:
        NotImplementedError: dropout, soft caps, sinks, biases, and masks that are not supported.
        ValueError, TypeError: as :func:`flashlla.lla_attention`.
    """
    options = _configured(module, Settings._fields)
    if (learned := getattr(module, "lla", None)) is not None:
        options |= {"ridge": learned.ridge(), "gate": learned.gate()}
    return _attention(LLA, module, (query,), key, value, attention_mask, options, **arguments)


def parallax_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Mask | Tensor | None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Parallax as an attention function of transformers, for layers that a conversion has given a probe.

    Arguments, results and errors as for :func:`lla_attention_forward`.

    Raises:
        ValueError: there is no probe.
    """
    probe = arguments.pop(PROBE, None)
    if probe is None:
        raise ValueError(
            "attn_implementation='parallax' needs a learned probe in every layer, which this model lacks; "
            "flashlla.integrations.convert(model, to='parallax') adds it"
        )
    options = _configured(module, ("backend",))
    return _attention(PARALLAX, module, (query, probe), key, value, attention_mask, options, **arguments)


def _configured(module: nn.Module, names: Iterable[str]) -> dict[str, Any]:
    config = getattr(module, "config", None)
    return {name: getattr(config, f"lla_{name}", Settings._field_defaults[name]) for name in names}


def _attention(
    member: Member,
    module: nn.Module,
    queries: Sequence[Tensor],
    key: Tensor,
    value: Tensor,
    attention_mask: Mask | Tensor | None,
    options: dict[str, Any],
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    _check(dropout, others)
    *queries, key, value = (t.transpose(1, 2) for t in (*queries, key, value))
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    mask = _mask(attention_mask, causal, sliding_window, queries[0], key)
    options |= {"scale": scaling, "window_size": mask.window_size}
    if cu_seq_lens_q is not None:
        out = _over_given_bounds(member, queries, key, value, mask, cu_seq_lens_q, cu_seq_lens_k, options)
    else:
        out = _over_mask(member, queries, key, value, _packed(mask, position_ids, key), options)
    return out, None


def _check(dropout: float, others: dict[str, Any]) -> None:
    if dropout:
        raise NotImplementedError(
            f"dropout={dropout} on attention weights, which are never formed; load the model with "
            "attention_dropout=0.0 (attn_pdrop or attention_probs_dropout_prob in some), or call model.eval()"
        )
    for name, what in _REFUSED.items():
        if others.get(name) is not None:
            raise NotImplementedError(f"{name}: {what} are not supported; use attn_implementation='eager'")
    if others.get("output_attentions"):
        raise NotImplementedError(
            "output_attentions=True, and attention weights are never formed; use attn_implementation='eager'"
        )


def _mask(
    given: Mask | Tensor | None, causal: bool, window_size: int | None, query: Tensor, key: Tensor
) -> Mask:
    batch, q_len, kv_len = key.shape[0], query.shape[1], key.shape[1]
    if given is None:
        return masks.without_mask(causal, window_size, q_len, kv_len)
    if not isinstance(given, Mask):
        return masks.from_matrix(given, batch, q_len, kv_len)
    if (given.q_len, given.kv_len) != (q_len, kv_len):
        raise ValueError(
            f"attention_mask was made for {given.q_len} queries and {given.kv_len} keys, and the layer has "
            f"{q_len} and {kv_len}"
        )
    return given


def _packed(mask: Mask, position_ids: Tensor | None, key: Tensor) -> Mask:
    """The mask with the packed sequences that restarting positions tell of, as FlashAttention takes them."""
    if mask.padding is not None or mask.sequence is not None or key.shape[0] != 1:
        return mask
    if position_ids is None or position_ids.shape != (1, mask.q_len) or not 1 < mask.q_len == mask.kv_len:
        return mask
    return mask.split_at_restarts(position_ids)


def _over_given_bounds(
    member: Member,
    queries: Sequence[Tensor],
    key: Tensor,
    value: Tensor,
    mask: Mask,
    bounds: Tensor,
    key_bounds: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    if key.shape[0] != 1 or mask.padding is not None:
        padded = "" if mask.padding is None else " and an attention_mask with padding"
        raise ValueError(
            "cu_seq_lens_q is for packed sequences, in a batch of 1 without padding; got a batch of "
            f"{key.shape[0]}{padded}"
        )
    operands = (t[0] for t in (*queries, key, value))
    return member.varlen(*operands, bounds, cu_seqlens_k=key_bounds, causal=mask.causal, **options)[None]


def _over_mask(
    member: Member,
    queries: Sequence[Tensor],
    key: Tensor,
    value: Tensor,
    mask: Mask,
    options: dict[str, Any],
) -> Tensor:
    if mask.q_len == 1 and not torch.is_grad_enabled():
        return _decode(member, queries, key, value, mask, options)
    packing = mask.packing
    if packing is None:
        used = int(mask.used)
        return member.dense(*queries, key[:, :used], value[:, :used], causal=mask.causal, **options)
    of, over = packing
    packed = member.varlen(
        *(t[of.batch, of.row] for t in queries),
        key[over.batch, over.row],
        value[over.batch, over.row],
        of.cu_seqlens,
        cu_seqlens_k=over.cu_seqlens,
        causal=mask.causal,
        **options,
    )
    out = packed.new_zeros(*queries[0].shape[:3], value.shape[-1])
    out[of.batch, of.row] = packed
    return out


def _decode(
    member: Member,
    queries: Sequence[Tensor],
    key: Tensor,
    value: Tensor,
    mask: Mask,
    options: dict[str, Any],
) -> Tensor:
    """One query a sequence, the last one: it sees every key that counts, and takes the decoding kernels."""
    order, count = mask.compaction
    if order is not None:
        rows = torch.arange(key.shape[0], device=key.device)[:, None]
        key, value = key[rows, order], value[rows, order]
    elif isinstance(count, Tensor):
        count = count.expand(key.shape[0])
    return member.with_kvcache(*queries, key, value, cache_seqlens=count, **options)
