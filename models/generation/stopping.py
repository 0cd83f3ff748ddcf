"""When a row is finished: a token that ends it, or a string in its text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .text import Decode, find_stop


class Stopping:
    """Follows the rows of a batch; without anything to stop at it never looks at the tokens."""

    def __init__(
        self,
        batch: int,
        device: torch.device,
        eos: Sequence[int],
        pad: int,
        strings: Sequence[str],
        decode: Decode | None,
    ):
        self.finished = torch.zeros(batch, dtype=torch.bool, device=device)
        self.eos = torch.tensor(eos, device=device) if eos else None
        self.pad, self.strings, self.decode = pad, strings, decode
        self.histories: list[list[int]] = [[] for _ in range(batch)]

    def follow(self, tokens: Tensor) -> Tensor:
        """Tokens ``[batch]`` with padding in the rows that were finished before; finds those that are now."""
        if self.eos is None and not self.strings:
            return tokens
        tokens = tokens.masked_fill(self.finished, self.pad)
        if self.eos is not None:
            self.finished = self.finished | torch.isin(tokens, self.eos)
        if self.strings:
            self.finished = self.finished | self._stopped(tokens)
        return tokens

    def everywhere(self) -> bool:
        """Whether all rows are finished."""
        return (self.eos is not None or bool(self.strings)) and bool(self.finished.all())

    def _stopped(self, tokens: Tensor) -> Tensor:
        """Rows whose text has a stop string, of those that go on."""
        stopped = self.finished.tolist()
        for row, token in enumerate(tokens.tolist()):
            if not stopped[row]:
                self.histories[row].append(token)
                stopped[row] = find_stop(self.decode(self.histories[row]), self.strings) is not None
        return torch.tensor(stopped, device=tokens.device)
