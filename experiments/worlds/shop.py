"""MiniShop: search, look at items, choose options and buy, paid as in WebShop (arXiv 2207.01206)."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np

from .base import Advice, Outcome, World
from .errors import check_range

PRODUCTS = ("shirt", "jacket", "scarf", "hat", "shoe", "bag", "belt", "dress", "glove", "sock")
ATTRIBUTES = ("cotton", "wool", "leather", "silk", "soft", "thin", "waterproof", "washable")
ATTRIBUTES += ("handmade", "elastic", "organic", "classic")
COLORS = ("red", "blue", "green", "black", "white", "yellow", "brown", "purple")
SIZES = ("small", "medium", "large", "extra")
SENTENCE_WORDS = """
buy one that is and color size for at most dollars search page results item it colors sizes chosen nothing
next previous back open choose find want the you are on in do not pay more than must be no
"""
WORDS = (*PRODUCTS, *ATTRIBUTES, *COLORS, *SIZES)
WORDS += tuple(SENTENCE_WORDS.split())

ITEMS = 16
SHOWN = 4  # items on a page of results
OWN, WANTED = 3, 2  # attributes of an item, and of a goal
HIGHEST = 99  # price
OFFERED = (3, 2)  # colors and sizes of an item
PRICE = WANTED + 2  # an item may lack an attribute (0, 1), the color (2), the size (3), or cost too much
NO_LACK = -1
SEARCH_PAGE, RESULTS, ITEM = range(3)

SEARCH = 0
NEXT = len(PRODUCTS)
PREVIOUS, BACK, CLICK = NEXT + 1, NEXT + 2, NEXT + 3
COLOR = CLICK + ITEMS
SIZE = COLOR + len(COLORS)
BUY = SIZE + len(SIZES)


@dataclass(frozen=True)
class MiniShop(World):
    """Buy the one item that has a kind, two attributes, a color, a size and a price that are asked for.

    A page of results shows of an item one attribute and the price; all else is on the page of the item. The
    score of a purchase is that of WebShop with the kind, right or wrong, in place of its text match: 0 for
    another kind, and else the share of what is met of two attributes, two options and the price.

    Attributes:
        alike: other items of the kind that are cheap enough and lack one thing, 0 to 4.
    """

    alike: int = 3

    name: ClassVar[str] = "MiniShop"
    dtype: ClassVar[np.dtype] = np.dtype(
        [
            ("kind", "i2", (ITEMS,)),
            ("own", "i2", (ITEMS, OWN)),  # attributes; the first is in the title
            ("price", "i2", (ITEMS,)),
            ("colors", "?", (ITEMS, len(COLORS))),
            ("sizes", "?", (ITEMS, len(SIZES))),
            ("want", "i2"),  # kind
            ("attributes", "i2", (WANTED,)),
            ("color", "i2"),
            ("size", "i2"),
            ("limit", "i2"),  # highest price
            ("page", "i2"),
            ("query", "i2"),  # kind searched for, -1 before
            ("offset", "i2"),  # first result on the page
            ("item", "i2"),  # -1 for none
            ("chosen", "i2", (2,)),  # color and size, -1 for none
            ("opened", "?", (ITEMS,)),
        ]
    )
    actions: ClassVar[int] = BUY + 1
    choices: ClassVar[int] = 3 + len(COLORS) + len(SIZES)
    features: ClassVar[int] = 5 + WANTED + 3 + SHOWN * 3 + OWN + 1 + len(COLORS) + len(SIZES) + 2
    max_steps: ClassVar[int] = 20

    def __post_init__(self) -> None:
        check_range("alike", self.alike, 0, 4)

    def generate(self, rng: np.random.Generator) -> np.ndarray:
        want, other = rng.permutation(len(PRODUCTS))[:2].tolist()
        wanted = rng.permutation(len(ATTRIBUTES))[:WANTED].tolist()
        color, size = int(rng.integers(len(COLORS))), int(rng.integers(len(SIZES)))
        limit = int(rng.integers(20, 80))
        order = rng.permutation(ITEMS)
        same, lack = (
            order[: ITEMS // 2],
            np.full(ITEMS // 2, PRICE),
        )  # items of the kind, the one that fits first
        lack[0], lack[1 : 1 + self.alike] = NO_LACK, rng.integers(PRICE, size=self.alike)
        kind = np.full(ITEMS, other)
        kind[same] = want
        price = rng.integers(10, HIGHEST + 1, ITEMS)
        low, high = np.where(lack == PRICE, limit + 1, 10), np.where(lack == PRICE, HIGHEST, limit)
        price[same] = rng.integers(low, high + 1)

        # What has the lowest ranks is there: those of the wanted are set from outside of 0 to 1.
        ranks = [rng.random((ITEMS, len(names))) for names in (ATTRIBUTES, COLORS, SIZES)]
        columns = [(0, wanted[0]), (0, wanted[1]), (1, color), (2, size)]
        for thing, (table, column) in enumerate(columns):
            ranks[table][same, column] = np.where(lack == thing, 2.0, -1.0)
        own = rng.permuted(ranks[0].argsort(1)[:, :OWN], axis=1)
        colors, sizes = (rank.argsort(1).argsort(1) < n for rank, n in zip(ranks[1:], OFFERED, strict=True))
        goal = (want, wanted, color, size, limit)
        state = np.zeros(1, self.dtype)
        state[0] = (kind, own, price, colors, sizes, *goal, SEARCH_PAGE, -1, 0, -1, -1, False)
        return state

    @staticmethod
    def _listed(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Items of the query, bool ``[rows, ITEMS]``, and which of them are on the page shown."""
        found = state["kind"] == state["query"][:, None]
        rank = found.cumsum(1) - 1 - state["offset"][:, None]
        return found, found & (rank >= 0) & (rank < SHOWN)

    def admissible(self, state: np.ndarray) -> np.ndarray:
        allowed = np.zeros((len(state), self.actions), dtype=bool)
        page, item = state["page"], np.maximum(state["item"], 0)
        results, detail = page == RESULTS, page == ITEM
        found, shown = self._listed(state)
        allowed[:, SEARCH:NEXT] = (page == SEARCH_PAGE)[:, None]
        allowed[:, NEXT] = results & (found.sum(1) > state["offset"] + SHOWN)
        allowed[:, PREVIOUS] = results & (state["offset"] > 0)
        allowed[:, BACK] = results | detail
        allowed[:, CLICK:COLOR] = shown & results[:, None]
        for i, (name, first, end) in enumerate((("colors", COLOR, SIZE), ("sizes", SIZE, BUY))):
            offered = state[name][np.arange(len(state)), item]
            other = np.arange(end - first) != state["chosen"][:, i, None]
            allowed[:, first:end] = offered & other & detail[:, None]
        allowed[:, BUY] = detail
        return allowed

    def step(self, state: np.ndarray, codes: np.ndarray) -> Outcome:
        (searched,) = np.nonzero(codes < NEXT)
        state["page"][searched], state["query"][searched] = RESULTS, codes[searched]
        state["offset"][searched] = 0
        state["offset"] += np.where(codes == NEXT, SHOWN, 0) - np.where(codes == PREVIOUS, SHOWN, 0)
        (back,) = np.nonzero(codes == BACK)
        state["page"][back] -= 1
        state["item"][back] = state["chosen"][back] = -1
        (clicked,) = np.nonzero((codes >= CLICK) & (codes < COLOR))
        item = codes[clicked] - CLICK
        state["page"][clicked], state["item"][clicked] = ITEM, item
        state["opened"][clicked, item] = True
        for i, (first, end) in enumerate(((COLOR, SIZE), (SIZE, BUY))):
            (chose,) = np.nonzero((codes >= first) & (codes < end))
            state["chosen"][chose, i] = codes[chose] - first
        bought = codes == BUY
        return Outcome(bought, np.where(bought, self.scores(state), 0).astype(np.float32))

    def scores(self, state: np.ndarray) -> np.ndarray:
        """What the item on the page would be worth with the options chosen, float ``[rows]``, 0 to 1."""
        every, item = np.arange(len(state)), np.maximum(state["item"], 0)
        met = (state["own"][every, item][:, :, None] == state["attributes"][:, None]).any(1).sum(1)
        met += (state["chosen"] == np.stack([state["color"], state["size"]], 1)).sum(1)
        met += state["price"][every, item] <= state["limit"]
        kind = state["kind"][every, item] == state["want"]
        return np.where(kind, met / (WANTED + 3), 0.0)

    def observe(self, state: np.ndarray) -> np.ndarray:
        """The goal, the page, and of what it shows: number, first attribute and price of results; or all
        attributes, the price, the options and those chosen of the item.
        """
        every, item = np.arange(len(state)), np.maximum(state["item"], 0)
        goal = [state[name][:, None] for name in ("want", "color", "size", "limit")] + [state["attributes"]]
        page = [state[name][:, None] for name in ("page", "query", "offset", "item")]
        _, shown = self._listed(state)
        shown &= (state["page"] == RESULTS)[:, None]
        first = np.argsort(~shown, axis=1, kind="stable")[:, :SHOWN]
        there = np.take_along_axis(shown, first, 1)
        columns = (
            first,
            state["own"][every[:, None], first, 0],
            np.take_along_axis(state["price"], first, 1),
        )
        results = [np.where(there, column, -1) for column in columns]
        detail = [state[name][every, item] for name in ("own", "colors", "sizes")]
        detail.append(state["price"][every, item][:, None])
        detail = [np.where(state["item"][:, None] >= 0, part, -1) for part in detail]
        parts = [*goal, *page, *results, *detail, state["chosen"]]
        return np.concatenate(parts, axis=1).astype(np.int16)

    def task(self, row: SimpleNamespace) -> str:
        first, second = (ATTRIBUTES[a] for a in row.attributes)
        options = f"color {COLORS[row.color]}, size {SIZES[row.size]}, for at most {row.limit} dollars"
        return f"buy one {PRODUCTS[row.want]} that is {first} and {second}, {options}."

    def paraphrases(self, row: SimpleNamespace) -> list[str]:
        first, second = (ATTRIBUTES[a] for a in row.attributes)
        product, color, size = PRODUCTS[row.want], COLORS[row.color], SIZES[row.size]
        return [
            f"you want the {color} {product} in {size}. it must be {second} and {first}.",
            f"do not pay more than {row.limit} dollars for the {size} {color} {product}.",
        ]

    def describe(self, row: SimpleNamespace) -> list[str]:
        if row.page == SEARCH_PAGE:
            return ["you are on the search page."]
        if row.page == RESULTS:
            items = [i for i in range(ITEMS) if row.kind[i] == row.query]
            items = items[row.offset : row.offset + SHOWN]
            return ["results:", *(self._title(row, i) for i in items)] if items else ["no results."]
        item, (color, size) = row.item, row.chosen
        chosen = [COLORS[color]] * (color >= 0) + [SIZES[size]] * (size >= 0)
        return [
            self._title(row, item),
            f"it is {', '.join(ATTRIBUTES[a] for a in row.own[item])}.",
            f"colors: {self._offered(COLORS, row.colors[item])}.",
            f"sizes: {self._offered(SIZES, row.sizes[item])}.",
            f"chosen: {', '.join(chosen) or 'nothing'}.",
        ]

    @staticmethod
    def _offered(names: tuple[str, ...], has: list[bool]) -> str:
        return ", ".join(name for name, offered in zip(names, has, strict=True) if offered)

    @staticmethod
    def _title(row: SimpleNamespace, item: int) -> str:
        attribute, product = ATTRIBUTES[row.own[item][0]], PRODUCTS[row.kind[item]]
        return f"item {item}: {attribute} {product}, {row.price[item]} dollars."

    def action_text(self, row: SimpleNamespace, code: int) -> str:
        if code < NEXT:
            return f"search {PRODUCTS[code]}"
        if code < CLICK:
            return ("next page", "previous page", "back")[code - NEXT]
        if code < COLOR:
            return f"open item {code - CLICK}"
        if code == BUY:
            return "buy"
        return f"choose {COLORS[code - COLOR] if code < SIZE else SIZES[code - SIZE]}"

    def expert(self, row: SimpleNamespace) -> Advice:
        """Opens what is cheap enough, one after the other, until an item has all that is wanted."""
        product = PRODUCTS[row.want]
        code, subgoal = self._search(row, f"find {product}")
        if row.page == ITEM and self._fits(row, row.item):
            code, subgoal = self._buy(row)
        first, second = (ATTRIBUTES[a] for a in row.attributes)
        thought = (
            f"want: {first}, {second}, {COLORS[row.color]}, {SIZES[row.size]}, {row.limit}. next: {subgoal}."
        )
        return Advice(code, subgoal, thought)

    @staticmethod
    def _buy(row: SimpleNamespace) -> tuple[int, str]:
        if row.chosen[0] != row.color:
            return COLOR + row.color, f"choose {COLORS[row.color]}"
        if row.chosen[1] != row.size:
            return SIZE + row.size, f"choose {SIZES[row.size]}"
        return BUY, f"buy {PRODUCTS[row.want]}"

    def _search(self, row: SimpleNamespace, subgoal: str) -> tuple[int, str]:
        if row.page == SEARCH_PAGE:
            return SEARCH + row.want, subgoal
        if row.page == ITEM or row.query != row.want:
            return BACK, subgoal
        items = [i for i in range(ITEMS) if row.kind[i] == row.want]
        worth = [i for i in items if row.price[i] <= row.limit and (not row.opened[i] or self._fits(row, i))]
        ranks = [items.index(i) - row.offset for i in worth]
        here = [i for i, rank in zip(worth, ranks, strict=True) if 0 <= rank < SHOWN]
        if here:
            return CLICK + here[0], subgoal
        return (NEXT if ranks[0] >= SHOWN else PREVIOUS), subgoal

    @staticmethod
    def _fits(row: SimpleNamespace, item: int) -> bool:
        """Has an item all that is wanted? The expert asks of items that it has opened alone."""
        attributes = set(row.attributes) <= set(row.own[item]) and row.kind[item] == row.want
        return (
            attributes
            and row.price[item] <= row.limit
            and row.colors[item][row.color]
            and row.sizes[item][row.size]
        )
