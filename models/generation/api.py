"""The functions for users: whole continuations, token by token, and text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flashlla.nn.cache import KINDS

from ..language_model import LanguageModel
from .decoder import Decoder
from .prompts import Prompts, read_prompts
from .sampling import check_sampling, sample
from .stopping import Stopping
from .text import Decode, final_pieces


def generate(
    model: LanguageModel,
    prompt: Tensor | Sequence[Tensor],
    max_new_tokens: int,
    *,
    attention_mask: Tensor | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    stop_strings: str | Sequence[str] | None = None,
    decode: Decode | None = None,
    num_return_sequences: int = 1,
    cache: str = "static",
    compile: bool = False,
    cuda_graph: bool = False,
    on_token: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Continue prompts by up to ``max_new_tokens`` tokens.

    Args:
        model: the model; put it into evaluation mode yourself.
        prompt: ``[batch, seq]``, int64, at least one token; or a list of ``[seq]``, of any lengths.
        max_new_tokens: most tokens to add. It ends earlier when all rows are finished.
        attention_mask: ``[batch, seq]``, 1 for tokens and 0 for padding on their left; None means no padding.
        temperature: 0 takes the likeliest token, of several the one with the lowest number; otherwise logits
            are divided by it before sampling.
        top_k: sample among the k likeliest tokens only.
        top_p: sample among the fewest tokens whose probabilities reach top_p only.
        generator: source of the randomness, on the device of the model. With one for every row, in a list,
            what a row draws does not depend on the others.
        eos_token_id: token, or tokens, behind which a row is finished. Looking for them, and for
            stop_strings, waits for the GPU at every step.
        pad_token_id: what finished rows go on with, and lists of prompts are padded with; None means the
            first eos_token_id, or else 0.
        stop_strings: string, or strings, in the text of the continuation with which a row is finished. The
            tokens that complete one are still part of the result.
        decode: from a list of token ids to their text; stop_strings need it. It is given all new tokens of a
            row at every step, because a character may take several of them.
        num_return_sequences: samples for each prompt, in neighbouring rows. With ``cache="paged"`` they share
            the prompt, which is then read once.
        cache: kind of the decode states: ``"static"``, ``"growing"``, ``"sliding"`` or ``"paged"``.
        compile: run the steps behind the prompt through ``torch.compile``.
        cuda_graph: capture such a step once and replay it; CUDA devices and static caches only.
        on_token: called with the new tokens, ``[batch]``, as soon as they are known.

    Returns:
        Prompt and continuation, ``[batch * num_return_sequences, seq + new]``, padding on the left as given.

    Raises:
        TypeError: wrong types or dtypes.
        ValueError: an empty prompt, tokens outside the vocabulary, options out of range or not together.
        NotImplementedError: cuda_graph without a CUDA device.
    """
    options = _Options(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        generator=generator,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        stop_strings=stop_strings,
        decode=decode,
        num_return_sequences=num_return_sequences,
        cache=cache,
        compile=compile,
        cuda_graph=cuda_graph,
    )
    prompts = _check(model, prompt, max_new_tokens, attention_mask, options)
    pieces = [prompts.given.repeat_interleave(num_return_sequences, 0)]
    for tokens in _tokens(model, prompts, max_new_tokens, options):
        pieces.append(tokens[:, None])
        if on_token is not None:
            on_token(tokens)
    return torch.cat(pieces, 1)


def stream(
    model: LanguageModel,
    prompt: Tensor | Sequence[Tensor],
    max_new_tokens: int,
    *,
    attention_mask: Tensor | None = None,
    **options,
) -> Iterator[Tensor]:
    """The new tokens of :func:`generate`, ``[batch]`` at a time, as soon as they are known.

    Arguments, options and errors are those of generate, but for on_token. Nothing is computed before the
    first token is asked for, and nothing behind the last.
    """
    options = _Options(**options)
    prompts = _check(model, prompt, max_new_tokens, attention_mask, options)
    return _tokens(model, prompts, max_new_tokens, options)


def stream_text(
    model: LanguageModel, prompt: Tensor, max_new_tokens: int, *, decode: Decode, **options
) -> Iterator[str]:
    """The text of one continuation in pieces that are final: joined, they are its text up to a stop string.

    A piece is held back while it may be the beginning of a stop string or of a character. Neither stop
    strings nor a token of eos_token_id are part of the text.

    Args:
        prompt: ``[1, seq]``.
        decode: from a list of token ids to their text.
        others: as for :func:`generate`, num_return_sequences and on_token excepted. Raises as it does.
    """
    settings = _Options(decode=decode, **options)
    prompts = _check(model, prompt, max_new_tokens, None, settings)
    if len(prompts.lengths) * settings.num_return_sequences != 1:
        raise ValueError("stream_text writes one text; give one prompt and num_return_sequences=1")
    endless = replace(
        settings, stop_strings=None, eos_token_id=None
    )  # the text ends where it should by itself
    tokens = map(int, _tokens(model, prompts, max_new_tokens, endless))
    return final_pieces(tokens, decode, settings.strings, settings.eos)


@dataclass(frozen=True)
class _Options:
    """What :func:`generate` takes by keyword, checked; see there."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None
    stop_strings: str | Sequence[str] | None = None
    decode: Decode | None = None
    num_return_sequences: int = 1
    cache: str = "static"
    compile: bool = False
    cuda_graph: bool = False

    def __post_init__(self):
        check_sampling(self.temperature, self.top_k, self.top_p)
        if self.strings and self.decode is None:
            raise ValueError("stop_strings need decode, a function from token ids to text")
        if "" in self.strings:
            raise ValueError("stop_strings has an empty string, which every text contains; leave it out")
        _check_int("num_return_sequences", self.num_return_sequences, 1)
        if self.num_return_sequences > 1 and self.temperature == 0:
            raise ValueError(
                f"num_return_sequences={self.num_return_sequences} needs temperature > 0: at 0 all are equal"
            )
        if self.cache not in KINDS:
            raise ValueError(f"cache={self.cache!r} is unknown; choose one of {', '.join(KINDS)}")
        if self.compile and self.cuda_graph:
            raise ValueError("compile and cuda_graph do not go together; pass one of them")
        if (self.compile or self.cuda_graph) and self.cache != "static":
            raise ValueError(f"compile and cuda_graph need cache='static', not {self.cache!r}")

    @property
    def eos(self) -> tuple[int, ...]:
        ids = self.eos_token_id
        return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)

    @property
    def pad(self) -> int:
        return self.pad_token_id if self.pad_token_id is not None else (*self.eos, 0)[0]

    @property
    def strings(self) -> tuple[str, ...]:
        strings = self.stop_strings
        return () if strings is None else (strings,) if isinstance(strings, str) else tuple(strings)

    @property
    def mode(self) -> str:
        return "compile" if self.compile else "cuda_graph" if self.cuda_graph else "eager"


@torch.no_grad()
def _tokens(
    model: LanguageModel, prompts: Prompts, max_new_tokens: int, options: _Options
) -> Iterator[Tensor]:
    if max_new_tokens == 0:
        return
    copies, device = options.num_return_sequences, prompts.tokens.device
    stopping = Stopping(
        len(prompts.lengths) * copies, device, options.eos, options.pad, options.strings, options.decode
    )
    decoder = Decoder(model, prompts, max_new_tokens, copies, options.cache, options.mode)
    logits = decoder.prefill()
    for left in range(max_new_tokens - 1, -1, -1):
        tokens = sample(logits, options.temperature, options.top_k, options.top_p, options.generator)
        tokens = stopping.follow(tokens)
        yield tokens
        if not left or stopping.everywhere():
            return
        logits = decoder.step(tokens)


def _check(
    model: LanguageModel, prompt, max_new_tokens: int, attention_mask: Tensor | None, options: _Options
) -> Prompts:
    _check_int("max_new_tokens", max_new_tokens, 0)
    for name, ids in (("eos_token_id", options.eos), ("pad_token_id", (options.pad,))):
        for i in ids:
            if not 0 <= i < model.config.vocab_size:
                raise ValueError(f"{name} has {i}; tokens lie in [0, {model.config.vocab_size})")
    prompts = read_prompts(model, prompt, attention_mask, options.pad)
    rows = len(prompts.lengths) * options.num_return_sequences
    if isinstance(options.generator, Sequence) and len(options.generator) != rows:
        raise ValueError(
            f"generator has {len(options.generator)} entries for {rows} rows; give one, or one a row"
        )
    return prompts


def _check_int(name: str, value: int, lowest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < lowest:
        raise ValueError(f"{name}={value} must be at least {lowest}")
