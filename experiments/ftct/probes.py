"""What a model does inside: whose value it reads, and whether it copies the order of an example."""

from __future__ import annotations

import torch
from torch import Tensor

from flashlla.models import LanguageModel

from .data import COMMA, EQUALS, NOISE, Sequences, Task, write

FOLDS = 5  # of the cross-validation of a probe: 80 % to learn from, 20 % to be tested on


@torch.no_grad()
def probe_accuracies(model: LanguageModel, task: Task, batch: int, shots: int, seed: int) -> dict[str, float]:
    """Whether the value of a vertex can be read off the last hidden state at the ``V=`` of its child.

    In the last line one value at a time is replaced by a random legal one, and a linear classifier learns
    to name it, as in arXiv 2501.15857: that of the parent, or of another vertex in front of the child. The
    child is the middle vertex of the first chain.

    Returns:
        Shares of right names on held-out prompts. ``probe_parent``, ``probe_others``: in complete chains;
        ``probe_train_parent``, ``probe_train_others``: in lines as in training, where parent and child stand
        among noise.
    """
    generator = torch.Generator().manual_seed(seed)
    child = task.chain // 2
    letters, values = _complete(task, batch, shots, generator)
    legal = task.graph.values[letters[0]][:, task.trained]
    test = [_probe(model, task, letters, values, legal[i], i, child, generator) for i in range(child)]
    letters, values = _among_noise(task, batch, shots, child, generator)
    legal = torch.arange(NOISE).expand(child, NOISE)
    train = [_probe(model, task, letters, values, legal[i], i, child, generator) for i in range(1, child)]
    parents = task.graph.values[letters[0, 0]][task.trained]
    return {
        "probe_parent": test[-1],
        "probe_others": sum(test[:-1]) / len(test[:-1]),
        "probe_train_parent": _probe(model, task, letters, values, parents, 0, child, generator),
        "probe_train_others": sum(train) / len(train),
    }


def _complete(task: Task, batch: int, shots: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Letters ``[batch, N]`` of the first chain, values ``[batch, shots + 1, N]``."""
    letters = task.graph.chains[:1].expand(batch, -1)
    roots = task.trained[torch.randint(len(task.trained), (batch, shots + 1, 1), generator=generator)]
    return letters, task.graph.values[letters[:, None], roots]


def _among_noise(
    task: Task, batch: int, shots: int, child: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The same of lines where the parent of ``child`` stands first and all but the two is noise."""
    letters, values = (t.clone() for t in _complete(task, batch, shots, generator))
    parents = letters[:, child - 1].clone(), values[:, :, child - 1].clone()
    outside = (~task.graph.letters).nonzero()[:, 0]
    for place in range(task.chain):
        if place == child:
            continue
        letters[:, place] = parents[0] if place == 0 else outside[place]
        noise = torch.randint(NOISE, values.shape[:2], generator=generator)
        values[:, :, place] = parents[1] if place == 0 else noise
    return letters, values


def _probe(
    model: LanguageModel,
    task: Task,
    letters: Tensor,
    values: Tensor,
    legal: Tensor,
    knocked: int,
    child: int,
    generator: torch.Generator,
) -> float:
    """How well one of the ``legal`` values, put in at place ``knocked``, is read at ``child``."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import KFold, cross_val_score

    drawn = torch.randint(len(legal), (len(letters),), generator=generator)
    values = values.clone()
    values[:, -1, knocked] = legal[drawn]
    lengths = torch.full((len(letters),), task.chain)
    sequences = write(task, letters, values, lengths, generator)
    last = sequences.lines == values.shape[1] - 1
    asked = last & (sequences.places == child) & (sequences.kinds == EQUALS)
    hidden = _hidden(model, sequences, asked)
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    return float(cross_val_score(RidgeClassifier(), hidden.numpy(), drawn.numpy(), cv=folds).mean())


@torch.no_grad()
def induction_scores(model: LanguageModel, task: Task, batch: int, seed: int) -> dict[str, float]:
    """How much the next vertex is copied from an example, for any mixer: the effect of knocking tokens out.

    In the second of two equal lines, behind any vertex, what is the probability of the contexts of the next
    one? A score is what it loses when that vertex is exchanged in the first line by another letter, less what
    it loses when a vertex elsewhere is. An induction head has 1.

    Returns:
        ``induction``: in lines of letters outside of the graph, whose order is to be copied and no more;
        ``induction_chain``: in complete chains, whose order may also be known from training.
    """
    generator = torch.Generator().manual_seed(seed)
    outside = (~task.graph.letters).nonzero()[:, 0]
    shuffled = torch.rand(batch, len(outside), generator=generator).argsort(1)
    noise = outside[shuffled[:, : task.chain]]
    noise_values = torch.randint(NOISE, (batch, 2, task.chain), generator=generator)
    return {
        "induction": _knocked_out(model, task, noise, noise_values, outside[shuffled[:, -1]], generator),
        "induction_chain": _knocked_out(
            model, task, *_complete(task, batch, 1, generator), outside[shuffled[:, -1]], generator
        ),
    }


def _knocked_out(
    model: LanguageModel,
    task: Task,
    letters: Tensor,
    values: Tensor,
    other: Tensor,
    generator: torch.Generator,
) -> float:
    """The score on lines of ``letters`` ``[batch, N]``; ``other`` ``[batch]`` are put in place of them."""
    batch, chain = letters.shape
    place = torch.randint(1, chain, (batch,), generator=generator)
    elsewhere = (place + 1 + torch.randint(chain - 2, (batch,), generator=generator)) % chain
    seed = int(torch.randint(2**31, (), generator=generator))  # both times the same contexts
    chances = []
    for knocked in (elsewhere, place):
        lines = letters[:, None].repeat(1, 2, 1)
        lines[torch.arange(batch), 0, knocked] = other
        lengths = torch.full((batch,), chain)
        sequences = write(task, lines, values, lengths, torch.Generator().manual_seed(seed))
        chances.append(_next_vertex(model, task, sequences, place, letters.gather(1, place[:, None])))
    return (chances[0] - chances[1]).mean().item()


def _next_vertex(
    model: LanguageModel, task: Task, sequences: Sequences, place: Tensor, letters: Tensor
) -> Tensor:
    """Probabilities ``[batch]`` of contexts of ``letters`` ``[batch, 1]`` in front of ``place`` in line 1."""
    words = task.vocabulary
    behind = (sequences.lines == 1) & (sequences.places == place[:, None] - 1) & (sequences.kinds == COMMA)
    device = next(model.parameters()).device
    logits = model.logits(_hidden(model, sequences, behind).to(device)).cpu()
    contexts = words.first_context + letters * words.contexts + torch.arange(words.contexts)
    return logits.softmax(-1).gather(1, contexts).sum(1)


def _hidden(model: LanguageModel, sequences: Sequences, asked: Tensor) -> Tensor:
    """Last hidden states ``[n, dim]`` where ``asked``."""
    device = next(model.parameters()).device
    return model.hidden(sequences.tokens.to(device))[asked.to(device)].float().cpu()
