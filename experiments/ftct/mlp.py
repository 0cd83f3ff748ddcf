"""The baseline without a mixer: an MLP over a window of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MLP = "mlp"  # its name in the column of the mixers


class WindowMLP(nn.Module):
    """Names the next token from the last ``window`` of them, each one-hot at its place (arXiv 2501.15857).

    It has the parts of a language model that this experiment asks for, :meth:`hidden` and :meth:`logits`.

    Args:
        vocab: number of tokens; 0 is the padding, also to the left of a sequence.
        hidden: width of each of the ``depth`` hidden layers, linear, batch norm and ReLU.
    """

    def __init__(self, vocab: int, window: int, hidden: int, depth: int):
        super().__init__()
        self.vocab, self.window = vocab, window
        self.first = nn.Embedding(window * vocab, hidden)  # a linear layer whose inputs are one-hot
        nn.init.normal_(self.first.weight, std=window**-0.5)
        layers: list[nn.Module] = [nn.BatchNorm1d(hidden), nn.ReLU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
        self.rest = nn.Sequential(*layers, nn.Linear(hidden, vocab))

    def hidden(self, tokens: Tensor) -> Tensor:
        """The window behind every token, ``[batch, seq, window]``, of ``[batch, seq]``."""
        return F.pad(tokens, (self.window - 1, 0)).unfold(1, self.window, 1)

    def logits(self, windows: Tensor) -> Tensor:
        """Logits ``[n, vocab]`` of the token behind each of ``[n, window]``."""
        places = self.vocab * torch.arange(self.window, device=windows.device)
        return self.rest(F.embedding_bag(windows + places, self.first.weight, mode="sum"))

    def num_parameters(self) -> int:
        """Number of learned numbers."""
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()
    def continued(self, tokens: Tensor, new: int) -> Tensor:
        """``tokens``, padded on the left, and the ``new`` likeliest tokens behind them."""
        for _ in range(new):
            likeliest = self.logits(self.hidden(tokens)[:, -1]).argmax(-1)
            tokens = torch.cat([tokens, likeliest[:, None]], 1)
        return tokens
