"""The test: complete chains, which training never shows, behind some examples of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flashlla.models import LanguageModel, generate

from .data import COMMA, EQUALS, Sequences, Task, write
from .mlp import WindowMLP

BEYOND = 5  # tokens of a vertex in the answer, next to its contexts, that there is time for
ACCURACIES = ("whole", "final", "vertices", "values")


def complete_chains(
    task: Task, batch: int, shots: int, generator: torch.Generator, *, held_out: bool = False
) -> tuple[Sequences, Tensor, Tensor]:
    """``shots`` examples of a chain and the line that is asked for, answer and all.

    The lines of a sequence have the same N vertices and different values, whose roots are those of training;
    with ``held_out`` that of the last line is not.

    Returns:
        The sequences; letters ``[batch, N]``; the column of ``graph.values`` of each line,
        ``[batch, shots + 1]``.
    """
    letters = task.graph.chains[torch.arange(batch) % len(task.graph.chains)]
    drawn = torch.rand(batch, len(task.trained), generator=generator).argsort(1)[:, : shots + 1]
    roots = task.trained[drawn]
    if held_out:
        roots[:, -1] = task.held_out[torch.randint(len(task.held_out), (batch,), generator=generator)]
    values = task.graph.values[letters[:, None], roots[..., None]]
    lengths = torch.full((batch,), task.chain)
    return write(task, letters, values, lengths, generator), letters, roots


@torch.no_grad()
def accuracies(
    model: LanguageModel | WindowMLP, task: Task, batch: int, shots: int, seed: int, *, held_out: bool = False
) -> dict[str, float]:
    """Shares of right answers to ``batch`` prompts, in the definitions of arXiv 2501.15857's code.

    The model goes on greedily behind the first vertex of the last line. Of what it writes the vertices with a
    number behind ``=`` count.

    Returns:
        ``whole``: all vertices behind the root in order with their values, others in between being forgiven;
        ``vertices``: the same of the letters alone; ``final``: the last value of the vertex that is asked for
        is right, or all is; ``values``: of all vertices behind the root, the number is right behind the true
        text up to ``V=``.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    sequences, letters, roots = complete_chains(task, batch, shots, generator, held_out=held_out)
    answers = task.graph.values[letters, roots[:, -1:]][:, 1:]
    continuation = _continued(model, task, sequences, shots, device)
    right = score(task, continuation, letters[:, 1:], answers)
    return {name: share.double().mean().item() for name, share in right.items()} | {
        "values": _values_accuracy(model, sequences, shots, device)
    }


def score(task: Task, continuation: Tensor, letters: Tensor, values: Tensor) -> dict[str, Tensor]:
    """Whether continuations ``[batch, new]`` have letters and values ``[batch, N - 1]`` right, bool."""
    words = task.vocabulary
    letter, number = continuation[:, :-2] - words.first_letter, continuation[:, 2:] - words.first_number
    written = (letter >= 0) & (letter < words.first_context - words.first_letter)
    written &= (continuation[:, 1:-1] == words.equals) & (number >= 0)
    letter = letter.masked_fill(~written, -1)
    whole = _in_order(_pairs(letter, number), _pairs(letters, values))
    asked = letter == letters[:, -1:]
    last = asked.long() * torch.arange(1, letter.shape[1] + 1)
    final = number.gather(1, last.argmax(1, keepdim=True)) == values[:, -1:]
    return {
        "whole": whole,
        "vertices": _in_order(letter, letters),
        "final": whole | (asked.any(1) & final[:, 0]),
    }


def _pairs(letters: Tensor, values: Tensor) -> Tensor:
    return torch.where(letters < 0, -1, 1000 * letters + values)


def _in_order(found: Tensor, wanted: Tensor) -> Tensor:
    """Whether ``wanted`` ``[batch, n]`` is a subsequence of ``found`` ``[batch, m]``."""
    padded = torch.cat([wanted, torch.full_like(wanted[:, :1], -2)], 1)
    reached = torch.zeros_like(wanted[:, :1])
    for column in found.split(1, 1):
        reached += column == padded.gather(1, reached)
    return reached[:, 0] == wanted.shape[1]


def _continued(
    model: LanguageModel | WindowMLP, task: Task, sequences: Sequences, shots: int, device
) -> Tensor:
    """What the model writes behind the first vertex of the last line, ``[batch, new]``."""
    opening = (sequences.lines == shots) & (sequences.places == 0) & (sequences.kinds == COMMA)
    ends = opening.long().argmax(1).tolist()
    prompts = [row[: end + 1] for row, end in zip(sequences.tokens.to(device), ends, strict=True)]
    new = (task.chain - 1) * (task.inserted + BEYOND)
    if isinstance(model, WindowMLP):
        whole = model.continued(pad_sequence(prompts, True, task.vocabulary.pad, "left"), new)
    else:
        whole = generate(model, prompts, new)
    return whole[:, -new:].cpu()


def _values_accuracy(model: LanguageModel | WindowMLP, sequences: Sequences, shots: int, device) -> float:
    asked = (sequences.lines == shots) & (sequences.places >= 1) & (sequences.kinds == EQUALS)
    logits = model.logits(model.hidden(sequences.tokens.to(device))[asked.to(device)])
    right = sequences.tokens[:, 1:][asked[:, :-1]]
    return (logits.argmax(-1).cpu() == right).double().mean().item()
