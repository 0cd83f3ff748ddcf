"""What all mixers with a state of their own share: checks, states, and the choice between two forms.

Inside a mixer every sequence of vectors is ``[batch, kv_heads, group, seq, size]``: the ``group`` query heads
that read one key head are an axis of their own, of size 1 where there is nothing to tell them apart, so that
neither keys nor states are copied for them. A number a position is a vector of size 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flashlla._backends import Choice
from flashlla.nn import PageTable
from flashlla.nn.cache import KINDS
from flashlla.nn.cache.base import on_device
from flashlla.nn.checks import check_sizes

from . import forms
from .state import MixerState


class RecurrentMixer(nn.Module):
    """A causal token mixer with a state, behind the interface of :mod:`flashlla.models.mixers`.

    A subclass has an ``out_proj``, names the sizes of its state (``_sizes``), and mixes (``_mix``) in float32
    or better. It does so in two forms: ``"recurrent"``, one position after the other, is the specification,
    and ``"chunked"`` computes the same with matrix products. Most have a third, ``"fla"``: the kernels of
    flash-linear-attention, on a GPU and with products in half precision.

    Args:
        form: ``"chunked"``, ``"recurrent"``, ``"fla"``, which is taken or refused, or ``"auto"``: fla where
            it can be taken, chunked elsewhere. One position alone always takes the recurrence.
        chunk_size: positions of a chunk; those of fla are its own.

    Raises:
        TypeError, ValueError: an unknown form, or a chunk_size that is no int of at least 1.
    """

    out_proj: nn.Linear
    _decays = False  # by one number for all entries of a key, which matters to the choice of the form

    def __init__(self, dim: int, form: str, chunk_size: int):
        super().__init__()
        check_sizes(dim=dim, chunk_size=chunk_size)
        if form not in forms.FORMS:
            raise ValueError(f"form={form!r} is unknown; choose one of {', '.join(forms.FORMS)}")
        self.dim, self.form, self.chunk_size = dim, form, chunk_size

    def forward(self, x: Tensor, state: Any = None, lengths: Sequence[int] | None = None) -> Tensor:
        """Mix ``x`` ``[batch, seq, dim]``, which continues what ``state`` has seen.

        Raises:
            TypeError, ValueError: wrong types or shapes, a state of another mixer, lengths without a state.
            NotImplementedError: a gradient through a state, or ``form="fla"`` where it cannot be taken.
        """
        self._check(x, state, lengths)
        if state is not None:
            state.reserve(x.shape[1], lengths)
        if x.shape[1] == 0:
            return torch.zeros_like(x)
        counts = None if lengths is None else on_device(lengths, x.device)
        before = self._state(x.shape[0], 0, x.device) if state is None else state
        out, tensors = self._mix(x, before, counts)
        if state is not None:
            state.update(tensors, x.shape[1], lengths)
        return self.out_proj(out.to(self.out_proj.weight.dtype))

    def make_state(
        self, batch: int, capacity: int, *, kind: str = "static", dtype: torch.dtype | None = None
    ) -> MixerState:
        """An empty state for ``batch`` sequences, in the dtype that the mixer computes in: float32 or better.

        capacity, kind and dtype are for keys and values, which there are none of.

        Raises:
            TypeError, ValueError: an unknown kind, or sizes below 1.
        """
        check_sizes(batch=batch, capacity=capacity)
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r} is unknown; choose one of {', '.join(KINDS)}")
        return self._state(batch, capacity, self.out_proj.weight.device)

    def make_paged_state(self, table: PageTable, *, dtype: torch.dtype | None = None) -> MixerState:
        """There is none: a sequence that forks at any of its rows needs the state behind that row."""
        raise NotImplementedError(
            f"{type(self).__name__} keeps one state a sequence and no rows that pages could share; "
            "use kind='static' or cache='static'"
        )

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        self.out_proj.weight.mul_(factor)

    def choose_form(self, device: torch.device | str, dtype: torch.dtype) -> Choice:
        """The form that several positions at once take, and the reason in words.

        Args:
            device: where they are.
            dtype: in what they are projected, the dtype of autocast or of the weights.

        Raises:
            NotImplementedError: the form is ``"fla"`` and cannot be taken.
        """
        return forms.choose(self.form, torch.device(device).type, dtype, self._not_by_fla(), self._decays)

    def _sizes(self) -> dict[str, tuple[int, ...]]:
        """Shape of the tensors of the state for one sequence."""
        raise NotImplementedError

    def _mix(self, x: Tensor, state: MixerState, counts: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """What goes into ``out_proj``, and the tensors of the state behind x; ``state`` stays as it is."""
        raise NotImplementedError

    def _not_by_fla(self) -> str | None:
        """Why flash-linear-attention does not take a mixer with these options, or None if it does."""
        return f"flash-linear-attention has no kernels for {type(self).__name__}"

    def _state(self, batch: int, capacity: int, device: Any) -> MixerState:
        return MixerState(self._sizes(), batch, device, self._precision())

    def _precision(self) -> torch.dtype:
        """The dtype to compute in: float32, or float64 for weights in float64."""
        return torch.promote_types(self.out_proj.weight.dtype, torch.float32)

    def _products(self, device_type: str) -> torch.dtype:
        """The dtype that queries, keys and values were projected in: that of autocast, or of the weights."""
        dtype = self.out_proj.weight.dtype
        if torch.is_autocast_enabled(device_type) and dtype != torch.float64:
            return torch.get_autocast_dtype(device_type)
        return dtype

    def _run(
        self, recurrent: Callable, chunked: Callable, by_fla: Callable | None, *operands: Tensor
    ) -> tuple[Tensor, ...]:
        """One of the three forms, out of the reach of autocast. The first operand has the positions.

        by_fla is None where :meth:`_not_by_fla` always has a reason.
        """
        device_type = operands[0].device.type
        dtype = self._products(device_type)
        form = "recurrent"
        if operands[0].shape[-2] > 1:
            form = forms.choose_name(self.form, device_type, dtype, self._not_by_fla(), self._decays)
        with torch.autocast(device_type, enabled=False):
            if form == "recurrent":
                return recurrent(*operands)
            if form == "fla":
                return by_fla(*operands, dtype=dtype)
            # A short sequence is one short chunk, its size a power of 2 as some of the forms need it.
            size = min(self.chunk_size, 1 << (operands[0].shape[-2] - 1).bit_length())
            return chunked(*operands, chunk_size=size)

    def _check(self, x: Tensor, state: Any, lengths: Sequence[int] | None) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
        if x.dim() != 3 or x.shape[-1] != self.dim:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected [batch, seq, {self.dim}]")
        if state is None:
            if lengths is not None:
                raise ValueError("lengths is for new rows of a state; without one leave it out")
            return
        if not isinstance(state, MixerState):
            raise TypeError(f"state must come from make_state(), got {type(state).__name__}")
        found = {name: tuple(t.shape[1:]) for name, t in state.tensors.items()}
        if state.batch != x.shape[0] or not self._fits(found):
            raise ValueError(
                f"state has batch {state.batch} and sizes {found}; expected batch {x.shape[0]} and "
                f"{self._sizes()}, as make_state() makes them"
            )
        dtypes = {t.dtype for t in state.tensors.values()}
        if dtypes != {self._precision()}:
            raise TypeError(
                f"state has dtype {dtypes.pop()} and the mixer computes in {self._precision()}; make it anew"
            )
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters())):
            raise NotImplementedError("no gradient flows through a state; call under torch.no_grad()")

    def _fits(self, found: dict[str, tuple[int, ...]]) -> bool:
        return found == self._sizes()


def head_sizes(
    dim: int, heads: int, kv_heads: int | None, head_dim: int | None, value_dim: int | None
) -> tuple[int, int, int]:
    """``kv_heads``, ``head_dim`` and ``value_dim`` with their defaults, as the attention layers have them.

    Raises:
        TypeError, ValueError: sizes that do not fit together.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    check_sizes(dim=dim, heads=heads, kv_heads=kv_heads)
    if heads % kv_heads:
        raise ValueError(f"heads={heads} is no multiple of kv_heads={kv_heads}")
    if head_dim is None and dim % heads:
        raise ValueError(f"dim={dim} is no multiple of heads={heads}; pass head_dim")
    head_dim = dim // heads if head_dim is None else head_dim
    value_dim = head_dim if value_dim is None else value_dim
    check_sizes(head_dim=head_dim, value_dim=value_dim)
    return kv_heads, head_dim, value_dim


def by_head(x: Tensor, kv_heads: int, group: int = 1) -> Tensor:
    """``[batch, seq, kv_heads * group * size]`` to ``[batch, kv_heads, group, seq, size]``."""
    return x.unflatten(-1, (kv_heads, group, -1)).permute(0, 2, 3, 1, 4)


def from_heads(x: Tensor) -> Tensor:
    """The inverse of :func:`by_head`, heads and their sizes still apart: ``[batch, seq, heads, size]``."""
    return x.permute(0, 3, 1, 2, 4).flatten(2, 3)


def without_padding(counts: Tensor | None, *operands: Tensor) -> tuple[Tensor, ...]:
    """Operands by head with zeros in place of padding.

    A key or a strength of zero writes nothing, and a logarithm of zero lets nothing decay.
    """
    if counts is None:
        return operands
    rows = torch.arange(operands[0].shape[-2], device=counts.device)
    padding = (rows >= counts[:, None])[:, None, None, :, None]
    return tuple(t.masked_fill(padding, 0) for t in operands)


def unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Vectors of length 1; a zero vector stays one."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + eps)
