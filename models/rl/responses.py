"""Answers of a language model that keep to a grammar, with what a policy gradient needs to know of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..generation.decoder import Decoder
from ..generation.prompts import read_prompts
from ..generation.sampling import check_sampling, sample
from ..language_model import LanguageModel
from .grammar import Grammar
from .log_probs import token_log_probs


class Response(NamedTuple):
    """Prompts and the answers to them, a row an answer. Steps are counted from the first token of an answer.

    Attributes:
        tokens: int64 ``[rows, seq]``; every row is a prompt, an answer, and padding.
        lengths: int64 ``[rows]``, of the prompts.
        taken: the answers alone, int64 ``[rows, steps]``.
        mask: bool ``[rows, steps]``, False at the padding behind an answer.
        kinds: int64 ``[rows, steps]``, the :class:`BlockKind` of each token.
        allowed: bool ``[rows, steps, vocab_size]``, what the grammar allowed; anything at padding.
        log_probs: of the taken tokens among the allowed ones, ``[rows, steps]``; 0 at padding and wherever
            there was no choice.
        choices: int64 ``[rows, blocks]``, the numbers of the phrases that were chosen.
    """

    tokens: Tensor
    lengths: Tensor
    taken: Tensor
    mask: Tensor
    kinds: Tensor
    allowed: Tensor
    log_probs: Tensor
    choices: Tensor

    @property
    def free(self) -> Tensor:
        """Tokens that were a choice, bool ``[rows, steps]``: more than one was allowed."""
        return self.mask & (self.allowed.sum(-1) > 1)

    def select(self, rows: Tensor) -> Response:
        """Some of the rows, by a mask or by numbers: a minibatch."""
        return Response(*(field[rows] for field in self))


@torch.no_grad()
def respond(
    model: LanguageModel,
    prompts: Tensor | Sequence[Tensor],
    grammar: Grammar,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    pad_token_id: int = 0,
    cache: str = "static",
    check_every: int | None = None,
) -> Response:
    """Draw an answer to every prompt, token by token among those that the grammar allows.

    Prompts are read once, at the beginning, and that is where it waits for a GPU; the steps behind it do not,
    and there are as many as the longest answer could need. Log-probabilities are those that were drawn from:
    equal to :func:`constrained_log_probs` up to rounding.

    Args:
        prompts: int64 ``[rows, seq]``, all of one length, or a list of ``[seq]``, of any lengths.
        grammar: for so many rows.
        temperature: logits are divided by it; 0 takes the likeliest of the allowed tokens, and
            log-probabilities are then those of 1.
        generator: one source of randomness, or one for every row.
        pad_token_id: what finished rows go on with.
        cache: kind of the decode states, as for :func:`flashlla.models.generate`.
        check_every: look after every so many steps whether all rows are finished, which waits for a GPU; None
            does not, and is best where answers are about equally long.

    Raises:
        TypeError, ValueError: as generate does; a grammar for another number of rows.
    """
    check_sampling(temperature, None, None)
    read = read_prompts(model, prompts, None, pad_token_id)
    if len(read.lengths) != grammar.rows:
        raise ValueError(f"grammar has {grammar.rows} rows, but there are {len(read.lengths)} prompts")
    decoder, reader = Decoder(model, read, grammar.longest, 1, cache), grammar.reader(pad_token_id)
    steps, logits = [], decoder.prefill()
    while True:
        allowed, mask = reader.allowed(), ~reader.finished
        logits = _constrained(logits, allowed, temperature or 1.0)
        tokens = sample(logits, 1.0 if temperature else 0.0, generator=generator)
        log_probs = token_log_probs(logits[:, None], tokens[:, None])[:, 0]
        steps.append((tokens, mask, reader.read(tokens), allowed, log_probs))
        if len(steps) == grammar.longest:
            break
        if check_every and len(steps) % check_every == 0 and bool(reader.finished.all()):
            break
        logits = decoder.step(tokens)
    taken, *others = (torch.stack(parts, 1) for parts in zip(*steps, strict=True))
    lengths = torch.tensor(read.lengths).to(taken.device, non_blocking=True)
    tokens = F.pad(read.tokens, (0, taken.shape[1]))
    places = lengths[:, None] + torch.arange(taken.shape[1], device=taken.device)
    return Response(tokens.scatter(1, places, taken), lengths, taken, *others, reader.choices)


def join_responses(responses: Sequence[Response]) -> Response:
    """The rows of several responses, those of many turns for example, one behind the other.

    Padding is added where they are shorter than the longest. All have equally many blocks.
    """
    seq = max(r.tokens.shape[1] for r in responses)
    steps = max(r.taken.shape[1] for r in responses)
    fields = [_padded(r, seq - r.tokens.shape[1], steps - r.taken.shape[1]) for r in responses]
    return Response(*(torch.cat(parts) for parts in zip(*fields, strict=True)))


def response_hidden(model: LanguageModel, response: Response) -> Tensor:
    """What the model knows in front of every token of the answers, ``[rows, steps, dim]``.

    Logits and values are computed from it: that of step 0 has seen the prompt and nothing else.
    """
    hidden = model.hidden(response.tokens[:, :-1])
    steps = torch.arange(response.taken.shape[1], device=hidden.device)
    places = (response.lengths[:, None] - 1 + steps).clamp(max=hidden.shape[1] - 1)
    return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[2]))


def constrained_logits(
    model: LanguageModel, hidden: Tensor, response: Response, temperature: float = 1.0
) -> Tensor:
    """Logits of the distribution that answers are drawn from, ``[rows, steps, vocab_size]``.

    Args:
        hidden: from :func:`response_hidden`.
        temperature: that of the sampling.

    Returns:
        -inf at what the grammar did not allow, float32 or better, for :func:`token_log_probs` and
        :func:`token_entropy`.
    """
    return _constrained(model.logits(hidden), response.allowed, temperature)


def constrained_log_probs(model: LanguageModel, response: Response, temperature: float = 1.0) -> Tensor:
    """Log-probabilities that a model, changed since or not, gives to the answers under their grammar.

    Args:
        temperature: that of the sampling.

    Returns:
        ``[rows, steps]``, with a gradient; 0 wherever there was no choice.
    """
    logits = constrained_logits(model, response_hidden(model, response), response, temperature)
    return token_log_probs(logits, response.taken).masked_fill(~response.mask, 0.0)


def _constrained(logits: Tensor, allowed: Tensor, temperature: float) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (logits if temperature == 1 else logits / temperature).masked_fill(~allowed, -torch.inf)


def _padded(response: Response, seq: int, steps: int) -> Response:
    """A response with longer rows; what is added is in no mask."""
    r, behind = response, (0, steps)
    taken, kinds, log_probs = (F.pad(x, behind) for x in (r.taken, r.kinds, r.log_probs))
    mask, allowed = F.pad(r.mask, behind), F.pad(r.allowed, (0, 0, *behind), value=True)
    return Response(F.pad(r.tokens, (0, seq)), r.lengths, taken, mask, kinds, allowed, log_probs, r.choices)
