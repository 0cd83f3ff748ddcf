"""What a query may see, read from what transformers hands to a mask function.

transformers asks for a mask once a forward pass and hands it to every attention layer. Here it is a
:class:`Mask`: a few facts instead of a matrix, and the packing of padded rows, worked out once for all
layers. What these facts cannot express is refused when the mask is made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Rows(NamedTuple):
    """Rows of a batch behind one another: where each comes from, and the bounds of the sequences."""

    batch: Tensor  # int64 [total]
    row: Tensor  # int64 [total]
    cu_seqlens: Tensor  # int64 [sequences + 1]


class Packing(NamedTuple):
    """The queries and the keys that count."""

    queries: Rows
    keys: Rows


class Mask:
    """Which keys each query sees.

    Args:
        causal: no key behind the query, aligned to the bottom right of the keys in use.
        window_size: visible keys, the diagonal included; None means all.
        q_len, kv_len: query and key rows.
        used: key rows in use: an int, or for one query an int64 tensor without dimensions, which no host
            waits for. Rows behind them, the free ones of a static cache, are never read.
        padding: bool ``[batch, kv_len]``, True for keys that count; None means all that are in use.
        sequence: int64 ``[batch, q_len]``, the sequence that every row belongs to; None means one a batch
            row.
    """

    ndim = 4  # models take such a mask for one that is ready, and hand it on

    def __init__(
        self,
        causal: bool,
        window_size: int | None,
        q_len: int,
        kv_len: int,
        used: int | Tensor | None = None,
        padding: Tensor | None = None,
        sequence: Tensor | None = None,
    ):
        self.causal, self.window_size = causal, window_size
        self.q_len, self.kv_len, self.used = q_len, kv_len, kv_len if used is None else used
        self.padding, self.sequence = padding, sequence
        self._split: Mask | None = None

    def to(self, *args: Any, **kwargs: Any) -> Mask:
        """The same on another device: accelerate asks for it where layers are spread over several."""
        used = self.used.to(*args, **kwargs) if isinstance(self.used, Tensor) else self.used
        padding = None if self.padding is None else self.padding.to(*args, **kwargs)
        sequence = None if self.sequence is None else self.sequence.to(*args, **kwargs)
        return Mask(self.causal, self.window_size, self.q_len, self.kv_len, used, padding, sequence)

    @functools.cached_property
    def packing(self) -> Packing | None:
        """The rows that count, packed; None if all of them do and every batch row is one sequence.

        A causal query that is padding does not count. Without a causal mask all queries do: the keys, and
        with them the padding, may be those of another sequence.
        """
        if self.sequence is not None:
            return _pack_sequences(self.sequence)
        if self.padding is None:
            return None
        used = int(self.used)
        counting = self.padding[:, :used]
        queries = counting[:, used - self.q_len :]
        if not self.causal:
            queries = counting.new_ones(len(counting), self.q_len)
        return Packing(_pack(queries), _pack(counting))

    def split_at_restarts(self, position_ids: Tensor) -> Mask:
        """This mask with a sequence of its own for every stretch of rising positions, if they ever fall.

        Args:
            position_ids: ``[1, q_len]``, the same in all layers: packed sequences come in a batch of one row.
        """
        if self._split is None:
            self._split = _split_at_restarts(self, position_ids)
        return self._split

    @functools.cached_property
    def compaction(self) -> tuple[Tensor | None, int | Tensor]:
        """For one query a batch row: an order of the keys, ``[batch, kv_len]``, with those that count in
        front (None if they are there), and how many count. No host waits for either.
        """
        if self.padding is None:
            return None, self.used
        return (~self.padding).byte().argsort(dim=1, stable=True), self.padding.sum(1)


def _pack(counting: Tensor) -> Rows:
    """The rows where bool ``[batch, rows]`` is True; each batch row is a sequence."""
    batch, row = counting.nonzero(as_tuple=True)
    return Rows(batch, row, F.pad(counting.sum(1).cumsum(0), (1, 0)))


def _pack_sequences(sequence: Tensor) -> Packing | None:
    """All rows, with a bound wherever the number of the sequence changes; None if it never does."""
    starts = F.pad(sequence.diff(dim=1) != 0, (1, 0), value=True)
    bounds = starts.flatten().nonzero()[:, 0]
    if len(bounds) == len(sequence):
        return None
    batch, row = torch.ones_like(starts).nonzero(as_tuple=True)
    rows = Rows(batch, row, F.pad(bounds, (0, 1), value=starts.numel()))
    return Packing(rows, rows)


@torch.compiler.disable
def _split_at_restarts(mask: Mask, position_ids: Tensor) -> Mask:
    steps = position_ids.diff(dim=1)
    if not bool((steps < 0).any()):
        return mask
    sequence = F.pad((steps != 1).cumsum(1), (1, 0))
    return Mask(mask.causal, mask.window_size, mask.q_len, mask.kv_len, mask.used, sequence=sequence)


# ---- the mask function ---------------------------------------------------------------------------------


@torch.compiler.disable
def make_mask(
    *,
    batch_size: int,
    kv_length: int,
    kv_offset: int = 0,
    q_length: int | None = None,
    q_offset: int | Tensor = 0,
    cache_position: Tensor | None = None,
    mask_function: Callable[..., Any],
    attention_mask: Tensor | Mask | None = None,
    **others: Any,
) -> Mask:
    """The mask function that :func:`register` gives to transformers; its arguments are theirs.

    Args:
        batch_size: rows of the batch.
        kv_length, kv_offset: number of the key rows that the attention function will get, and position of the
            first.
        q_length, q_offset: number and position of the queries (transformers 5).
        cache_position: both at once (transformers 4).
        mask_function: which key an index of a query sees, composed of the functions of ``masking_utils``.
        attention_mask: bool ``[batch, positions]``, True for tokens that count, or a mask made before.

    Raises:
        NotImplementedError: a mask that is not causal, windowed, bidirectional or packed, with padding.
        ValueError: padding or positions that do not fit the keys.
    """
    if cache_position is not None:
        q_length, q_offset = cache_position.shape[0], cache_position[0]
    if q_length is None:
        raise TypeError("q_length or cache_position has to say how many queries there are")
    causal, window_size, sequence = _read(mask_function, max(q_length, kv_length), kv_offset + kv_length)
    if isinstance(attention_mask, Mask):
        return _checked(attention_mask, causal, window_size)
    used = _used(q_length, kv_length, q_offset, kv_offset) if causal else kv_length
    padding = _padding(attention_mask, batch_size, kv_length, kv_offset, used)
    if padding is not None and window_size is not None:
        _check_unbroken(padding)
    mask = Mask(causal, window_size, q_length, kv_length, used, padding, sequence)
    if q_length > 1:
        _ = mask.packing  # now, while nothing is being compiled
    return mask


def _read(mask_function: Callable[..., Any], length: int, end: int) -> tuple[bool, int | None, Tensor | None]:
    """``causal``, ``window_size`` and ``sequence`` of a mask over ``length`` rows up to position ``end``."""
    causal, window_size, sequence = False, None, None
    for name, values in _conditions(mask_function):
        if name == "causal_mask_function":
            causal = True
        elif name == "sliding_window_overlay":
            window_size = values["sliding_window"]
        elif name == "packed_sequence_mask_function":
            sequence = values["packed_sequence_mask"]
        elif not _hides_nothing(name, values, length, end):
            sizes = ", ".join(f"{key}={value}" for key, value in values.items() if isinstance(value, int))
            raise NotImplementedError(
                f"the model asks for a mask by {name}({sizes}) over {length} rows, and masks here are "
                "causal, bidirectional, windowed or packed; use attn_implementation='sdpa'"
            )
    if window_size is not None and not causal:
        raise NotImplementedError(
            f"a window of {window_size} without a causal mask; use attn_implementation='sdpa'"
        )
    return causal, window_size, sequence


def _hides_nothing(name: str, values: dict[str, Any], length: int, end: int) -> bool:
    if name == "sliding_window_bidirectional_overlay":
        return bool(length <= values["sliding_window"] + 1)
    if name == "chunked_overlay":
        return bool(end <= values["chunk_size"])
    return name == "bidirectional_mask_function"


def _conditions(mask_function: Callable[..., Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of the functions that all have to allow a key, and what each was made with.

    A mask function is opaque: it takes indices. What it computes shows in the name of the function of
    ``masking_utils`` that made it, and in the variables that it closes over; evaluating it would take the
    matrix that is to be avoided.
    """
    name = mask_function.__qualname__.partition(".")[0]
    cells = mask_function.__closure__ or ()
    closure = zip(mask_function.__code__.co_freevars, (cell.cell_contents for cell in cells), strict=True)
    values = dict(closure)
    if mask_function.__module__ != "transformers.masking_utils":
        yield f"{mask_function.__module__}.{name}", values
    elif name == "and_masks":
        for function in values["mask_functions"]:
            yield from _conditions(function)
    elif name == "remap_positions_for_packed_sequence":  # positions count from 0 again in every sequence
        yield from _conditions(values["mask_function"])
    else:
        yield name, values


def _checked(made: Mask, causal: bool, window_size: int | None) -> Mask:
    """A mask made before, as ``generate`` makes them for static caches."""
    if (made.causal, made.window_size) != (causal, window_size):
        raise NotImplementedError(
            f"attention_mask is for causal={made.causal}, window_size={made.window_size}, and the model asks "
            f"for causal={causal}, window_size={window_size}; pass the two-dimensional attention_mask"
        )
    return made


def _used(q_length: int, kv_length: int, q_offset: int | Tensor, kv_offset: int) -> int | Tensor:
    """Key rows up to the last query; fewer than kv_length in a static cache."""
    if q_length == kv_length:
        return kv_length
    used = q_offset + q_length - kv_offset
    if isinstance(used, Tensor):
        if q_length == 1:
            return used
        used = int(used)
    if not q_length <= used <= kv_length:
        raise ValueError(
            f"{q_length} queries from position {used - q_length + kv_offset} on do not fit {kv_length} keys "
            f"from position {kv_offset} on; check cache_position"
        )
    return used


def _padding(
    attention_mask: Tensor | None, batch_size: int, kv_length: int, kv_offset: int, used: int | Tensor
) -> Tensor | None:
    """bool ``[batch, kv_length]``, True for keys in use that count; None if all of them do."""
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2 or attention_mask.shape[0] != batch_size:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; expected [{batch_size}, positions], "
            "with 1 for tokens that count"
        )
    padding = attention_mask.bool()[:, kv_offset : kv_offset + kv_length]
    padding = F.pad(padding, (0, kv_length - padding.shape[1]))
    in_use = torch.arange(kv_length, device=padding.device) < used
    if bool((padding | ~in_use).all()):
        return None
    return padding & in_use


def _check_unbroken(padding: Tensor) -> None:
    """A window counts positions, which packed rows keep where no padding is between them."""
    runs = padding[:, 0] + (padding[:, 1:] & ~padding[:, :-1]).sum(1)
    if bool((runs > 1).any()):
        raise NotImplementedError(
            "attention_mask has padding between tokens that count, and the model a sliding window, which "
            "counts positions; pad each row on one side"
        )


# ---- masks that did not come from the mask function ----------------------------------------------------


def without_mask(causal: bool, window_size: int | None, q_len: int, kv_len: int) -> Mask:
    """The mask of a layer that got none: its own causality and window decide.

    Raises:
        NotImplementedError: several queries over more keys, as nobody says how a causal mask is aligned; a
            window without a causal mask.
    """
    if causal and q_len not in (1, kv_len):
        raise NotImplementedError(
            f"a causal layer got no attention_mask for {q_len} queries and {kv_len} keys, which leaves open "
            "where the queries stand; the model has to make its mask with transformers.masking_utils"
        )
    if not causal and window_size is not None and window_size < kv_len:
        raise NotImplementedError(
            f"sliding_window={window_size} without a causal mask; use attn_implementation='sdpa'"
        )
    return Mask(causal, window_size if causal else None, q_len, kv_len)


def from_matrix(matrix: Tensor, batch: int, q_len: int, kv_len: int) -> Mask:
    """The mask that a matrix ``[batch, 1 or heads, q_len, keys]`` over the logits stands for.

    Some models of transformers 4 write out their masks themselves, BART for one. Reading them takes time and
    memory for all queries and keys in every layer.

    Raises:
        TypeError, ValueError: a wrong dtype or shape.
        NotImplementedError: it is neither padding nor padding and a causal mask; values that are added.
    """
    if matrix.dim() != 4 or matrix.shape[2] != q_len or matrix.shape[3] < kv_len:
        raise ValueError(
            f"attention_mask has shape {tuple(matrix.shape)}; expected [batch, positions], or "
            f"[batch, 1, {q_len}, {kv_len}]"
        )
    visible = _visible(matrix[..., :kv_len]).expand(batch, -1, -1, -1)
    padding = visible[:, 0, -1]  # the last query sees all keys that count
    everything = torch.ones(q_len, kv_len, dtype=torch.bool, device=matrix.device)
    for causal, seen in ((False, everything), (True, everything.tril(kv_len - q_len))):
        if bool((visible == (padding[:, None, None] & seen)).all()):
            return Mask(causal, None, q_len, kv_len, padding=None if bool(padding.all()) else padding)
    raise NotImplementedError(
        "attention_mask is a matrix that is neither causal nor the same for all queries; pass padding in two "
        "dimensions, [batch, positions], or use attn_implementation='sdpa'"
    )


def _visible(matrix: Tensor) -> Tensor:
    """What a bool matrix (True) or an additive one (0) lets a query see."""
    if matrix.dtype == torch.bool:
        return matrix
    if not matrix.is_floating_point():
        raise TypeError(f"attention_mask has dtype {matrix.dtype}; a matrix is bool, or floats of 0 and -inf")
    visible = matrix == 0
    if bool((visible | (matrix <= torch.finfo(matrix.dtype).min)).all()):
        return visible
    raise NotImplementedError(
        "attention_mask adds values to the logits, which are never formed; use attn_implementation='sdpa'"
    )
