"""The cache that ``generate()`` of transformers carries around our decode states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from torch import Tensor
from transformers.cache_utils import Cache

from flashlla.models.mixers.state import MixerState
from flashlla.nn import Cache as AttentionCache
from flashlla.nn import KVCache, PagedKVCache, PageTable

_SAME_BATCH = "the batch of a cache stays as it is; make_cache() makes another to read the prompts again"


class FlashLLACache(Cache):
    """The decode states of all blocks, behind the interface of ``transformers.Cache``.

    Transformers counts the columns of its batch, padding included. The states know the length of every
    sequence by themselves and hold no padding.

    Args:
        states: from :meth:`flashlla.models.LanguageModel.make_states`, of any kind, without rows.

    Attributes:
        states: the same; a forward pass updates them in place.
        columns: columns of the batch that have been read.
        unpadded: how many of the last of these came without padding.
    """

    is_compileable = False
    is_initialized = True

    def __init__(self, states: Sequence[Any]):
        super().__init__(layers=[])
        self.states = list(states)
        self.columns = self.unpadded = 0

    def __len__(self) -> int:
        return len(self.states)

    def __repr__(self) -> str:
        kinds = ", ".join(dict.fromkeys(type(state).__name__ for state in self.states))
        sizes = f"blocks={len(self)}, batch_size={self.batch_size}, columns={self.columns}"
        return f"{type(self).__name__}({kinds}, {sizes})"

    @property
    def batch_size(self) -> int:
        """Number of sequences."""
        batch: int = self.states[0].batch
        return batch

    @property
    def max_batch_size(self) -> int:
        """The same under its name in transformers 4."""
        return self.batch_size

    def count(self, columns: int, *, padded: bool) -> None:
        """Count columns in that the states have read."""
        self.columns += columns
        self.unpadded = 0 if padded else self.unpadded + columns

    def reset(self) -> None:
        """Forget every sequence; the memory is kept."""
        for state in self.states:
            state.reset()
        self.columns = self.unpadded = 0

    # ---- beams ------------------------------------------------------------------------------------------

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row i go on from what row ``beam_idx[i]`` has read, int64 ``[batch]``.

        States in pages share them from then on; others copy the rows that are in use.

        Raises:
            ValueError: not one entry a row.
        """
        if tuple(beam_idx.shape) != (self.batch_size,):
            raise ValueError(
                f"beam_idx has shape {tuple(beam_idx.shape)} for a batch of {self.batch_size}; give one "
                "entry a row"
            )
        if isinstance(self.states[0], PagedKVCache):
            _fork(self.states[0].table, beam_idx.tolist())
            return
        for state in self.states:
            _copy_rows(state, beam_idx.to(state.positions.device))

    # ---- going back -------------------------------------------------------------------------------------

    @property
    def is_croppable(self) -> bool:
        """Whether columns can be forgotten: a recurrent state holds no rows to leave out."""
        return all(isinstance(state, AttentionCache) for state in self.states)

    def crop(self, columns: int) -> None:
        """Forget all behind the first ``columns``; if that is negative, as many of the last; if 0, nothing.

        Raises:
            ValueError: some of what is to be forgotten came with padding, or there is less.
            NotImplementedError: a mixer with a recurrent state.
        """
        gone = -columns if columns <= 0 else max(self.columns - columns, 0)
        if gone == 0:
            return
        if not self.is_croppable:
            raise NotImplementedError(
                "crop() needs attention in all blocks; a recurrent state cannot go back"
            )
        if gone > self.unpadded:
            raise ValueError(
                f"crop({columns}) forgets {gone} columns, and only the last {self.unpadded} came without "
                "padding; reset(), and read the prompts again"
            )
        kept = (self.states[0].positions - gone).tolist()
        for state in self.states:
            state.truncate(kept)
        self.columns -= gone
        self.unpadded -= gone

    # ---- what transformers asks -------------------------------------------------------------------------

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns that have been read."""
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: the states say themselves when they are full."""
        return -1

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """The same under its name in transformers 4."""
        return -1

    @property
    def is_sliding(self) -> list[bool]:
        """False for every block: none has keys that transformers would mask."""
        return [False] * len(self)

    @property
    def is_linear(self) -> list[bool]:
        """False for every block: :meth:`get_seq_length` counts what has been read, whatever the mixer."""
        return [False] * len(self)

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError("there is no update(): the blocks write into the states by themselves")

    def batch_repeat_interleave(self, repeats: int) -> NoReturn:
        raise NotImplementedError(_SAME_BATCH)

    def batch_select_indices(self, indices: Tensor) -> NoReturn:
        raise NotImplementedError(_SAME_BATCH)


def _fork(table: PageTable, parents: Sequence[int]) -> None:
    """Select a fork of the selected sequence ``parents[i]`` for every i, and forget those selected before."""
    before = table.selected
    after = [table.fork(before[parent]) for parent in parents]
    for sequence in before:
        table.release(sequence)
    table.select(after)


def _copy_rows(state: KVCache | MixerState, rows: Tensor) -> None:
    """``state[i] = state[rows[i]]`` for every row i of the batch, in place."""
    if isinstance(state, MixerState):
        tensors = [*state.tensors.values(), state.positions]
    else:
        tensors = [state.k[:, : state.longest], state.v[:, : state.longest], state.lengths]
        tensors += [] if state.positions is state.lengths else [state.positions]
    for t in tensors:
        t.copy_(t[rows])
