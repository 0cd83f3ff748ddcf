"""Text as pieces, which are tokens, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable

PIECE = re.compile(r"</?\w+>|\(\d,\d\)|\w+|[.,:;]|\n|[^ ]")
PUNCTUATION = (".", ",", ":", ";")
GLUED = {*PUNCTUATION, "\n"}  # no space in front of these


def split(text: str) -> list[str]:
    """Tags, coordinates, words and signs of a text; a character that belongs to none is a piece alone."""
    return PIECE.findall(text)


def joined(pieces: Iterable[str]) -> str:
    """The text of pieces; a tag has no space around it, a sign none in front of it."""
    text, tight = [], True
    for piece in pieces:
        tag = piece.startswith("<")
        text.append(piece if tight or tag or piece in GLUED else f" {piece}")
        tight = tag or piece == "\n"
    return "".join(text)
