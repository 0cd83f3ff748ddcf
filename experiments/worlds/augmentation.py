"""State information augmentation (arXiv 2601.18217): sentences without use in what an agent reads.

Only the text of observations changes: no state, transition, reward, goal or admissible action.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np

from .base import World
from .errors import check_choice, check_range
from .text import PUNCTUATION, joined, split

KINDS = ("distractors", "paraphrase", "noise")
STREAM = 1  # random numbers of an episode's augmentation; its layout has stream 0
THINGS = (
    "badge",
    "balloon",
    "basket",
    "bell",
    "blanket",
    "bottle",
    "box",
    "brush",
    "button",
    "camera",
    "carpet",
)
THINGS += ("coin", "crate", "doll", "fan", "globe", "hammer", "kite", "ladder", "magnet", "mirror", "puzzle")
THINGS += ("radio", "ribbon", "rope", "statue", "toy", "umbrella")  # 28, as many as in the paper
LOOKS = (
    "old",
    "new",
    "tiny",
    "huge",
    "round",
    "square",
    "shiny",
    "dull",
    "striped",
    "plain",
    "broken",
    "heavy",
)
LOOKS += ("light", "rough", "smooth", "pale", "dark", "painted", "wooden")  # 19, as many as in the paper
OPENINGS = ("there is a", "you notice a", "nearby stands a", "far away is a")
GRID = 10  # Sokoban's distractors have coordinates up to here, outside of the room
ROOM = 6
WORDS = (*THINGS, *LOOKS, *{word for opening in OPENINGS for word in opening.split()})
WORDS += ("it", "looks", "shows", "unreachable", "ad", "not", "for", "sale", "note")
NOISE = sorted(set(WORDS))


@dataclass(frozen=True)
class Augmentation:
    """How much is added to observations, how often, and what.

    Attributes:
        volume: eps of the paper: for how many lines, see :func:`distractors`.
        probability: p of the paper: the chance that an episode is augmented, in all of its steps.
        kind: ``distractors`` as in the paper, or a control with as many words: in as many lines
            ``noise``, random words; or with as many words in sentences of its own, to within one,
            ``paraphrase``, the task said again and again.
    """

    volume: int
    probability: float = 1.0
    kind: str = "distractors"

    most_volume: ClassVar[int] = 1000

    def __post_init__(self) -> None:
        check_range("volume", self.volume, 0, self.most_volume)
        check_range("probability", self.probability, 0, 1)
        check_choice("kind", self.kind, KINDS)

    def augment(self, world: World, row: SimpleNamespace, lines: list[str], seeds: list[int]) -> list[str]:
        """The sentences of an observation with others among them; Sokoban has them at the end.

        Args:
            lines: what :meth:`World.describe` gives.
            seeds: of the episode, and the step behind them: what is added is drawn anew at each step.
        """
        *episode, _ = seeds
        if np.random.default_rng([*episode, STREAM]).random() >= self.probability:
            return lines
        chances = _chances(np.random.default_rng([*seeds, STREAM]))
        added = distractors(world, row, self.volume, chances)
        if self.kind == "paraphrase":
            added = _said_again(world.paraphrases(row), sum(len(split(line)) for line in added))
        elif self.kind == "noise":
            added = [_noise(line, chances) for line in added]
        places = [len(lines)] * len(added)
        if world.name != "Sokoban":
            places = sorted(_pick(range(len(lines) + 1), chances) for _ in added)
        lines = list(lines)
        for place, line in zip(places[::-1], added[::-1], strict=True):
            lines.insert(place, line)
        return lines


def _said_again(texts: list[str], count: int) -> list[str]:
    """Sentences of these texts, over and over, with ``count`` tokens or one less; the last may be cut."""
    words = split(" ".join(texts))
    pieces = [words[i % len(words)] for i in range(count)]
    sentences = "".join(f" {piece}" for piece in [*pieces[:-1], "."]).split(" .")
    return [joined([*split(sentence), "."]) for sentence in sentences if sentence]


def _noise(line: str, chances: Iterator[float]) -> str:
    """The signs of a line, and other words between them."""
    return joined(piece if piece in PUNCTUATION else _pick(NOISE, chances) for piece in split(line))


def distractors(world: World, row: SimpleNamespace, volume: int, chances: Iterator[float]) -> list[str]:
    """Sentences of a volume, as many as in the paper; MiniLab, which it does not augment, as MiniHouse.

    - MiniHouse, MiniLab: floor(eps / 12) about things that are not there;
    - Sokoban: max(1, floor(eps / 10)) about places outside of the room;
    - MiniShop: on a page of results min(floor(eps / 100 * 0.5 * 10), 10) advertisements, on that of an item
      max(1, floor(eps / 25)) features and max(1, floor(eps / 30)) advertisements, on the first page none.

    Args:
        chances: random numbers in [0, 1).
    """
    if volume == 0:
        return []
    if world.name == "Sokoban":
        return [_outside(chances) for _ in range(max(1, volume // 10))]
    if world.name == "MiniShop":
        count, ads = _shop_counts(volume, row.page)
        return [_feature(chances) for _ in range(count)] + [_advertisement(chances) for _ in range(ads)]
    return [_thing(chances) for _ in range(volume // 12)]


def _shop_counts(volume: int, page: int) -> tuple[int, int]:
    """Features and advertisements of MiniShop's pages: 0 search, 1 results, 2 an item."""
    if page == 2:
        return max(1, volume // 25), max(1, volume // 30)
    return 0, min(volume * 5 // 100, 10) if page == 1 else 0


def _outside(chances: Iterator[float]) -> str:
    far, any_line = int(ROOM + (GRID - ROOM) * next(chances)), int(GRID * next(chances))
    row, column = (far, any_line) if next(chances) < 0.5 else (any_line, far)
    return f"({row},{column}) shows a {_pick(THINGS, chances)}, {_pick(LOOKS, chances)}, unreachable."


def _thing(chances: Iterator[float]) -> str:
    opening, thing, look = (_pick(words, chances) for words in (OPENINGS, THINGS, LOOKS))
    return f"{opening} {thing} {_pick(range(1, 100), chances)}, {look}."


def _feature(chances: Iterator[float]) -> str:
    return f"note, it looks {_pick(LOOKS, chances)}."


def _advertisement(chances: Iterator[float]) -> str:
    return f"ad, {_pick(LOOKS, chances)} {_pick(THINGS, chances)}, not for sale."


def _pick(options: Sequence, chances: Iterator[float]):
    return options[int(next(chances) * len(options))]


def _chances(rng: np.random.Generator) -> Iterator[float]:
    """Random numbers in [0, 1) without end; drawn many at a time, since one alone takes long."""
    while True:
        yield from rng.random(256).tolist()
