"""The words of the task, and text to and from their numbers."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

LETTERS = string.ascii_lowercase + string.ascii_uppercase  # all vertices that there are
SYMBOLS = ("<pad>", "=", ",", "?:", "\n")
WORD = re.compile(r"<\w+>|\d+|[a-zA-Z]|=|,|\?:|\n")


@dataclass(frozen=True)
class Vocabulary:
    """One token a word: symbols, letters, the contexts of each letter, whole numbers.

    Attributes:
        contexts: tokens that every letter owns, written ``<A0>``, ``<A1>`` and so on.
        numbers: the numbers are 0 to ``numbers - 1``.
    """

    contexts: int
    numbers: int

    pad, equals, comma, query, newline = range(len(SYMBOLS))
    first_letter = len(SYMBOLS)
    first_context = first_letter + len(LETTERS)

    @property
    def first_number(self) -> int:
        return self.first_context + len(LETTERS) * self.contexts

    def __len__(self) -> int:
        return self.first_number + self.numbers

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The words in the order of their tokens."""
        contexts = (f"<{letter}{i}>" for letter in LETTERS for i in range(self.contexts))
        return (*SYMBOLS, *LETTERS, *contexts, *map(str, range(self.numbers)))

    @cached_property
    def _tokens(self) -> dict[str, int]:
        return {word: token for token, word in enumerate(self.words)}

    def encode(self, text: str) -> list[int]:
        """The tokens of a text.

        Raises:
            ValueError: something in it is no word.
        """
        words = WORD.findall(text)
        if "".join(words) != text or not self._tokens.keys() >= set(words):
            unknown = [word for word in words if word not in self._tokens] or WORD.sub("", text)
            raise ValueError(
                f"text has {unknown!r}, which this vocabulary does not; it has {len(self)} words"
            )
        return [self._tokens[word] for word in words]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some tokens."""
        return "".join(self.words[token] for token in tokens)
