"""Text from tokens: where it stops, and which of it is final while more tokens are to come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

Decode = Callable[[list[int]], str]

REPLACEMENT = "\ufffd"  # what a decoder puts where bytes of a character are still missing


def final_pieces(
    tokens: Iterable[int], decode: Decode, strings: Sequence[str], eos: Sequence[int]
) -> Iterator[str]:
    """The text of ``tokens`` up to one of ``eos`` or a stop string, in pieces that no later token changes."""
    ids, text, shown = [], "", 0
    for token in tokens:
        if token in eos:
            break
        ids.append(token)
        text = decode(ids)
        stop = find_stop(text, strings)
        if stop is not None:
            text = text[:stop]
            break
        end = settled(text, strings)
        if end > shown:
            yield text[shown:end]
            shown = end
    if len(text) > shown:
        yield text[shown:]


def find_stop(text: str, strings: Sequence[str]) -> int | None:
    """Where the first stop string begins in ``text``; None if there is none."""
    found = [at for at in map(text.find, strings) if at >= 0]
    return min(found, default=None)


def settled(text: str, strings: Sequence[str]) -> int:
    """How much of ``text`` no further token can change or turn into the beginning of a stop string."""
    end = len(text.rstrip(REPLACEMENT))
    for string in strings:
        for size in range(min(len(string) - 1, len(text)), 0, -1):
            if text.endswith(string[:size]):
                end = min(end, len(text) - size)
                break
    return end
