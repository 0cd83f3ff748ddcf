"""The initial policies: supervised training on turns of noisy experts, and of a policy itself."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from flashlla.models import LanguageModel
from flashlla.models.rl import Response

from ..common.training import History, train
from ..worlds import WorldVectorEnv, expert_turns, tokenizer
from .domains import shown

LENGTHS = 4  # classes of lengths; a batch is of one


class Texts(NamedTuple):
    """Prompts with answers.

    Attributes:
        tokens: int64 ``[count, seq]``, padded on the right.
        answers: bool ``[count, seq]``, True at the tokens of answers.
    """

    tokens: Tensor
    answers: Tensor

    @classmethod
    def of_expert(cls, env: WorldVectorEnv, noise: float, seed: int) -> Texts:
        """All turns of an episode in each row. A share ``noise`` of the actions is random, and answers are
        what the expert would have done.
        """
        turns, encode = expert_turns(env, noise, labels="expert", seed=seed), tokenizer().encode
        prompts = [encode(shown(turn.prompt)) for turn in turns]
        answers = [encode(turn.answer) for turn in turns]
        texts = [torch.tensor(p + a) for p, a in zip(prompts, answers, strict=True)]
        starts = torch.tensor([len(prompt) + 1 for prompt in prompts])  # behind the opening tag
        return cls._between(texts, starts, torch.tensor([len(text) for text in texts]))

    @classmethod
    def of_policy(cls, turns: Response) -> Texts:
        """What a policy has answered."""
        return cls._between(
            list(turns.tokens.cpu()), turns.lengths.cpu(), (turns.lengths + turns.mask.sum(1)).cpu()
        )

    @classmethod
    def _between(cls, texts: Sequence[Tensor], starts: Tensor, ends: Tensor) -> Texts:
        tokens = pad_sequence(list(texts), batch_first=True, padding_value=tokenizer().pad)
        places = torch.arange(tokens.shape[1])
        return cls(tokens, (places >= starts[:, None]) & (places < ends[:, None]))

    def select(self, rows: Tensor) -> Texts:
        """Some of the rows, as wide as the longest of them."""
        tokens, answers = self.tokens[rows], self.answers[rows]
        width = int(answers.any(0).nonzero().max()) + 1
        return Texts(tokens[:, :width], answers[:, :width])


def join_texts(parts: Sequence[Texts]) -> Texts:
    """One behind the other."""
    width = max(part.tokens.shape[1] for part in parts)
    fields = zip(*parts, strict=True)
    return Texts(*(torch.cat([F.pad(t, (0, width - t.shape[1])) for t in field]) for field in fields))


def finetune(
    model: LanguageModel,
    sources: Sequence[Texts],
    weights: Sequence[float],
    folder: Path,
    *,
    batch: int,
    **recipe: Any,
) -> tuple[LanguageModel, History]:
    """A copy of the model, trained on some sources, in batches of texts that are about equally long.

    Args:
        weights: how often a turn comes from each source.
        batch: turns of a step.
        recipe: as for :func:`flashlla.experiments.common.training.train`.
    """
    texts, shares = join_texts(sources), torch.tensor(weights, dtype=torch.float)
    sizes = torch.tensor([len(source.tokens) for source in sources])
    first = sizes.cumsum(0) - sizes

    lengths = ends(texts)

    def draw(generator: torch.Generator) -> Texts:
        source = torch.multinomial(shares, LENGTHS * batch, replacement=True, generator=generator)
        within = torch.rand(len(source), generator=generator, dtype=torch.float64) * sizes[source]
        rows = first[source] + within.long()
        part = int(torch.randint(LENGTHS, (), generator=generator))
        return texts.select(rows[lengths[rows].argsort()].chunk(LENGTHS)[part])

    trained = deepcopy(model)
    history = train(trained, text_loss, draw, folder, **recipe)
    return trained.eval(), history


def ends(texts: Texts) -> Tensor:
    """Tokens of every text, padding not counted, int64 ``[count]``."""
    return (texts.answers * torch.arange(1, texts.answers.shape[1] + 1)).amax(1)


def text_loss(model: LanguageModel, texts: Texts) -> Tensor:
    """Mean cross-entropy of the tokens of answers, and that of prompts, which teaches to read them."""
    answers, targets = texts.answers[:, 1:], texts.tokens[:, 1:]
    hidden = model.hidden(texts.tokens[:, :-1])
    prompts = ~answers & (targets != tokenizer().pad)
    parts = (F.cross_entropy(model.logits(hidden[mask]), targets[mask]) for mask in (answers, prompts))
    return sum(parts)
