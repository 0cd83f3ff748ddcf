"""Words as tokens: one vocabulary for all worlds, their prompts and their answers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from . import augmentation, house, lab, prompts, shop, sokoban
from .text import PUNCTUATION, joined, split

SPECIAL = ("<pad>", "<eos>", "\n")
NUMBERS = tuple(map(str, range(100)))
COORDINATES = tuple(f"({row},{column})" for row in range(10) for column in range(10))


def _vocabulary() -> tuple[str, ...]:
    """The tokens in their order: signs and numbers first, then the words of the worlds by the alphabet."""
    parts = (module.WORDS for module in (augmentation, house, lab, prompts, shop, sokoban))
    words = sorted({word for part in parts for word in part} - set(NUMBERS))
    return (*SPECIAL, *prompts.TAGS, *PUNCTUATION, *NUMBERS, *COORDINATES, *words)


class Tokenizer:
    """Text to tokens and back. A word, a number below 100, a coordinate and a sign are a token each.

    ``decode(encode(text)) == text`` for all that the worlds write, and ``encode(decode(tokens)) == tokens``
    for any tokens.

    Attributes:
        words: the vocabulary, in the order of the tokens.
        pad, eos, newline: tokens.
    """

    words = _vocabulary()
    pad, eos, newline = range(len(SPECIAL))

    def __init__(self) -> None:
        self._tokens = {word: token for token, word in enumerate(self.words)}
        self._kept = lru_cache(1 << 16)(self._encode)  # actions and tasks come again and again

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text.

        Raises:
            ValueError: something in it is no word of the vocabulary.
        """
        return list(self._kept(text))

    def _encode(self, text: str) -> tuple[int, ...]:
        try:
            return tuple(self._tokens[piece] for piece in split(text))
        except KeyError as error:
            raise ValueError(
                f"text has {error.args[0]!r}, which is none of the {len(self)} words of the vocabulary"
            ) from None

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some tokens."""
        return joined(self.words[token] for token in tokens)


@lru_cache(1)
def tokenizer() -> Tokenizer:
    """The tokenizer that all worlds share."""
    return Tokenizer()
