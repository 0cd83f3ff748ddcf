"""The model with its decode states: the prompt at once, then steps that are eager, compiled or captured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flashlla.nn import KVCache, PageTable

from ..language_model import LanguageModel
from .prompts import Prompts

PAGE_SIZE = 16
WARM_UPS = 2  # steps before a capture: kernels are compiled and libraries set up in them


class Decoder:
    """Logits of the next token, for a batch that grows by one token a step.

    Args:
        prompts: the prompts, one a row.
        new: most tokens that follow.
        copies: rows for each prompt, which go on from it independently.
        kind: of the decode states, one of ``flashlla.nn.cache.KINDS``.
        mode: ``"eager"``, ``"compile"`` or ``"cuda_graph"``, for the steps behind the prompt.
    """

    def __init__(
        self, model: LanguageModel, prompts: Prompts, new: int, copies: int, kind: str, mode: str = "eager"
    ):
        self.model, self.copies = model, copies
        self.prompts = prompts if kind == "paged" else prompts.repeated(copies)
        self.table = None
        if kind == "paged":
            self.table = _table(prompts.lengths, new, copies, prompts.tokens.device)
            self.states = model.make_paged_states(self.table)
        else:
            batch, seq = self.prompts.tokens.shape
            capacity = seq if kind == "growing" else seq + new
            self.states = model.make_states(batch, capacity, kind=kind)
        self.step = _step(model, self.states, mode)

    def prefill(self) -> Tensor:
        """Logits behind the prompts, ``[batch, vocab_size]``; in pages every prompt is read once."""
        tokens, lengths = self.prompts.tokens, self.prompts.ragged
        logits = self.model(tokens, self.states, lengths=lengths, last_only=True)[:, -1]
        if self.table is None:
            return logits
        forks = [(s, *(self.table.fork(s) for _ in range(self.copies - 1))) for s in self.table.selected]
        self.table.select([s for group in forks for s in group])
        return logits.repeat_interleave(self.copies, 0)


def _table(lengths: list[int], new: int, copies: int, device: torch.device) -> PageTable:
    """A table with the pages that all copies need together, and a sequence for each prompt."""
    shared = [n // PAGE_SIZE for n in lengths]
    whole = [-(-(n + new) // PAGE_SIZE) for n in lengths]
    pages = sum(s + copies * (w - s) for s, w in zip(shared, whole, strict=True))
    table = PageTable(pages, PAGE_SIZE, device=device)
    table.select([table.admit() for _ in lengths])
    return table


def _step(model: LanguageModel, states: Sequence[Any], mode: str) -> Callable[[Tensor], Tensor]:
    """From tokens ``[batch]`` to logits ``[batch, vocab_size]``."""
    if mode == "cuda_graph":
        return GraphedStep(model, states)
    run = torch.compile(model) if mode == "compile" else model
    return lambda tokens: run(tokens[:, None], states)[:, -1]


class GraphedStep:
    """One decoding step as a CUDA graph, captured by the first call and replayed by all.

    The logits of a call are overwritten by the next.

    Raises:
        NotImplementedError: states that move in memory, or no CUDA device.
    """

    def __init__(self, model: LanguageModel, states: Sequence[Any]):
        if not all(type(state) is KVCache and state.k.is_cuda for state in states):
            raise NotImplementedError("cuda_graph=True needs static caches on a CUDA device; leave it out")
        self.model, self.states, self.graph = model, states, None
        self.tokens = torch.zeros(states[0].batch, 1, dtype=torch.int64, device=states[0].k.device)

    def __call__(self, tokens: Tensor) -> Tensor:
        self.tokens.copy_(tokens[:, None])
        for state in self.states:
            state.check_room(1)
        if self.graph is None:
            self._capture()
        self.graph.replay()
        for state in self.states:
            state.longest += 1  # the replay has advanced lengths, which are on the device
        return self.logits

    def _capture(self) -> None:
        before = [(state.lengths.clone(), state.longest) for state in self.states]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self.model(self.tokens, self.states)
                self._restore(before)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self.model(self.tokens, self.states)[:, -1]
        self._restore(before)

    def _restore(self, before: list[tuple[Tensor, int]]) -> None:
        """Forget the rows of a warm-up; the next step writes over them."""
        for state, (lengths, longest) in zip(self.states, before, strict=True):
            state.lengths.copy_(lengths)
            state.longest = longest
