"""Hyena."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flashlla.nn.checks import check_sizes

from .base import RecurrentMixer
from .long_conv import by_blocks, direct, last_position
from .short_conv import ShortConv, slide
from .state import MixerState

FILTER_WIDTH, FILTER_LAYERS, FILTER_BANDS = 64, 2, 8
SINE_FREQUENCY = 10.0
FASTEST, SLOWEST, DIES_TO = 0.3, 1.5, 1e-2  # the windows fall to DIES_TO within these shares of the length


class Hyena(RecurrentMixer):
    """Hyena (arXiv 2302.10866, definition 3.1, filters of section 3.3).

    ``z_1 = v``, ``z_{n+1} = x_n . (h_n * z_n + d_n . z_n)`` for ``n = 1 .. order``, ``y = W z_{order+1}``,
    with ``*`` a causal convolution as long as the sequence and ``.`` a product entry by entry. v and
    ``x_1 .. x_order`` are projections behind a short convolution. Every channel has a filter ``h_n`` of its
    own: the output of a small network with sines at the position, times a window that decays at the channel's
    rate. The authors' code leaves out the first of these convolutions.

    The chunked form convolves with FFTs from block to block, so that no output depends on a later input, not
    even in its rounding; see :mod:`flashlla.models.mixers.long_conv`. Decoding has to remember all inputs of
    the convolutions, ``capacity`` rows, and a step costs as much as there are. The last layer of the filters
    starts ``filter_length ** -0.5`` smaller than usual, which keeps outputs in size whatever the length.

    Args:
        dim: width of inputs and outputs.
        heads: taken as all mixers do and without effect: every channel has its own filters.
        kv_heads: None or heads.
        order: number of convolutions and gates.
        filter_length: length in which positions and windows are measured, that of training, say. Longer
            sequences continue the windows; the network then sees positions it was not trained on.
        short_conv: taps of the short convolution, 3 in the paper; None for none.
        chunk_size: smallest block of the convolution.
        form: see :class:`flashlla.models.mixers.base.RecurrentMixer`.

    Raises:
        TypeError, ValueError: sizes or options that do not fit together.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int | None = None,
        *,
        order: int = 2,
        filter_length: int = 1024,
        short_conv: int | None = 3,
        chunk_size: int = 32,
        form: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(dim, form, chunk_size)
        check_sizes(heads=heads, order=order)
        if kv_heads is not None and kv_heads != heads:
            raise ValueError(f"kv_heads={kv_heads} must be None or heads={heads}: Hyena has no keys to share")
        factory = {"device": device, "dtype": dtype}
        self.order = order
        self.in_proj = nn.Linear(dim, (order + 1) * dim, bias=False, **factory)
        self.conv = None if short_conv is None else ShortConv((order + 1) * dim, short_conv, **factory)
        self.filter = ImplicitFilter(order * dim, filter_length, **factory)
        self.skip = nn.Parameter(torch.randn(order, dim, **factory))
        self.out_proj = nn.Linear(dim, dim, bias=False, **factory)

    def make_state(
        self, batch: int, capacity: int, *, kind: str = "static", dtype: torch.dtype | None = None
    ) -> MixerState:
        """An empty state that remembers ``capacity`` rows; ``kind="growing"`` makes more room when needed.

        Raises:
            TypeError, ValueError: an unknown kind, ``"sliding"``, or sizes below 1.
        """
        if kind == "sliding":
            raise ValueError("kind='sliding' needs a layer with a window_size; Hyena sees all positions")
        state = super().make_state(batch, capacity, kind=kind, dtype=dtype)
        state.growing = kind == "growing"
        return state

    def _sizes(self) -> dict[str, tuple[int, ...]]:
        return {} if self.conv is None else {"conv": (self.conv.width - 1, (self.order + 1) * self.dim)}

    def _state(self, batch: int, capacity: int, device: Any) -> HyenaState:
        return HyenaState(self._sizes(), self.order * self.dim, batch, capacity, device, self._precision())

    def _fits(self, found: dict[str, tuple[int, ...]]) -> bool:
        _, channels = found.pop("inputs", (0, 0))
        return found == self._sizes() and channels == self.order * self.dim

    def _mix(self, x: Tensor, state: HyenaState, counts: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        projected, tensors = self.in_proj(x).to(self._precision()), {}
        if self.conv is not None:
            projected, tensors["conv"] = self.conv(projected, state.tensors["conv"], counts)
        z, *gates = projected.split(self.dim, -1)
        seen = state.tensors["inputs"].split(self.dim, -1)
        rows = state.longest + x.shape[1]
        filters = state.filters(self.filter, rows).split(self.dim)
        inputs = []
        for n, gate in enumerate(gates):
            joined, following = slide(seen[n], z, counts)
            inputs.append(following)
            mixed = self._convolve(joined[:, -rows:], filters[n][:, :rows], x.shape[1])
            z = gate * (mixed + self.skip[n].to(z.dtype) * z)
        tensors["inputs"] = torch.cat(inputs, -1)
        return z, tensors

    def _convolve(self, z: Tensor, taps: Tensor, new: int) -> Tensor:
        """The last ``new`` rows of the convolution of ``z`` ``[batch, rows, channels]``."""
        with torch.autocast(z.device.type, enabled=False):
            if new == 1:
                return last_position(z, taps)
            if self.form == "recurrent":
                return direct(z, taps)[:, -new:]
            return by_blocks(z, taps, self.chunk_size)[:, -new:]


class ImplicitFilter(nn.Module):
    """``h_t = window_t * network(t)`` for every channel.

    The network sees ``t / length`` and its sines and cosines of several frequencies, and has sines for
    activations.
    """

    def __init__(self, channels: int, length: int, device=None, dtype=None):
        super().__init__()
        check_sizes(filter_length=length)
        factory = {"device": device, "dtype": dtype}
        self.channels, self.length = channels, length
        widths = [2 * FILTER_BANDS + 1] + (FILTER_LAYERS + 1) * [FILTER_WIDTH]
        self.layers = nn.ModuleList(nn.Linear(a, b, **factory) for a, b in pairwise(widths))
        self.last = nn.Linear(FILTER_WIDTH, channels, bias=False, **factory)
        with torch.no_grad():
            self.last.weight.mul_(length**-0.5)

    def forward(self, rows: int, dtype: torch.dtype) -> Tensor:
        """The first ``rows`` taps, ``[channels, rows]``, computed in ``dtype``."""
        device = self.last.weight.device
        position = torch.arange(rows, device=device)[:, None]
        turns = position * torch.arange(1, FILTER_BANDS + 1, device=device) % self.length  # exact far out too
        angle = turns.to(dtype) * (2 * math.pi / self.length)
        t = position.to(dtype) / self.length
        x = torch.cat([t, angle.cos(), angle.sin()], -1)
        with torch.autocast(device.type, enabled=False):
            for layer in self.layers:
                x = torch.sin(SINE_FREQUENCY * F.linear(x, layer.weight.to(dtype), layer.bias.to(dtype)))
            taps = F.linear(x, self.last.weight.to(dtype))
        rates = -math.log(DIES_TO) / torch.linspace(
            SLOWEST, FASTEST, self.channels, device=device, dtype=dtype
        )
        return (taps * (-t * rates).exp()).mT


class HyenaState(MixerState):
    """Inputs of all long convolutions, the newest at the end, with zeros in front of the first.

    ``longest`` is an upper bound of ``positions`` on the host, so that overflow is noticed before anything
    is written and without waiting for a GPU.
    """

    def __init__(self, sizes, channels: int, batch: int, capacity: int, device: Any, dtype: torch.dtype):
        super().__init__({**sizes, "inputs": (capacity, channels)}, batch, device, dtype)
        self.longest, self.growing = 0, False
        self._filters: Tensor | None = None

    @property
    def capacity(self) -> int:
        """Rows of each sequence that there is memory for."""
        return self.tensors["inputs"].shape[1]

    def reserve(self, rows: int, lengths: Sequence[int] | None) -> None:
        super().reserve(rows, lengths)
        needed = self.longest + (rows if lengths is None else max(lengths, default=0))
        if needed > self.capacity and not self.growing:
            raise ValueError(
                f"cache overflow: {self.longest} rows plus {needed - self.longest} new exceed "
                f"capacity={self.capacity}; make a longer state, or reset() this one"
            )
        if needed > self.capacity:
            more = max(2 * self.capacity, needed) - self.capacity
            self.tensors["inputs"] = F.pad(self.tensors["inputs"], (0, 0, more, 0))

    def update(self, tensors: dict[str, Tensor], rows: int, lengths: Sequence[int] | None) -> None:
        super().update(tensors, rows, lengths)
        self.longest += rows if lengths is None else max(lengths, default=0)

    def reset(self) -> None:
        super().reset()
        self.longest, self._filters = 0, None

    def filters(self, implicit: ImplicitFilter, rows: int) -> Tensor:
        """At least ``rows`` taps, computed once for all that the state has room for."""
        if self._filters is None or self._filters.shape[1] < rows:
            self._filters = implicit(max(rows, self.capacity), self.tensors["inputs"].dtype)
        return self._filters
