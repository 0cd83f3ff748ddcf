"""MiniLab: experiments in rooms and containers, after tasks of ScienceWorld (arXiv 2203.07540)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np

from .base import Advice, Outcome, World
from .errors import check_choice

TASKS = ("measure", "heat", "cool", "connect")
MEASURE, HEAT, COOL, CONNECT = range(len(TASKS))
ROOMS = ("hall", "kitchen", "workshop", "greenhouse", "study")
CONTAINERS = ("red box", "blue box", "cupboard", "chest", "jar", "crate")
RED, BLUE = range(2)  # the boxes that answers are put in; they are open
DEVICES = ("thermometer", "heater", "freezer", "circuit")
HEATER, FREEZER, CIRCUIT = range(1, len(DEVICES))
SUBSTANCES = ("iron", "copper", "gold", "silver", "tin", "glass", "wood", "wax", "salt", "chalk", "rubber")
SUBSTANCES += ("plastic", "stone", "clay", "ice", "honey", "oil", "sand", "coal", "paper")
SENTENCE_WORDS = """
you are in the doors lead to there is a closed on floor nothing hold at degrees bulb off put it if above
else or below and go open take drop find goal next not tested with must
"""
WORDS = (*ROOMS, *DEVICES, *SUBSTANCES, *{word for name in CONTAINERS for word in name.split()}, *TASKS)
WORDS += tuple(SENTENCE_WORDS.split())

OBJECTS = 10  # object 0 is the thermometer
HANDS = 2
HELD = -1
ANSWER = 50  # degrees; what is above belongs into the red box
CHANGE = 20  # degrees that heating or cooling makes
NO_READING, TEMPERATURE, BULB = range(3)

GO = 0
OPEN = GO + len(ROOMS)
TAKE = OPEN + len(CONTAINERS)
DROP = TAKE + OBJECTS
PUT = DROP + OBJECTS  # PUT + object * containers + container
ON_MEASURE = PUT + OBJECTS * len(CONTAINERS)
ON_HEAT, ON_COOL, ON_CONNECT = (ON_MEASURE + OBJECTS * i for i in (1, 2, 3))
VERBS = {
    ON_MEASURE: "measure {}",
    ON_HEAT: "heat {}",
    ON_COOL: "cool {}",
    ON_CONNECT: "connect {} to circuit",
}


@dataclass(frozen=True)
class MiniLab(World):
    """Five rooms, whose doors make a tree; two hands; properties that only an instrument shows.

    One substance is asked about. To put it in the red or the blue box is the answer, and the end. It is right
    if the box is, and the experiment has been made before; temperature and conduction are new in every
    episode.

    Attributes:
        tasks: kinds that occur, each as likely as another: measure, heat, cool, connect.
    """

    tasks: tuple[str, ...] = TASKS

    name: ClassVar[str] = "MiniLab"
    dtype: ClassVar[np.dtype] = np.dtype(
        [
            ("door", "?", (len(ROOMS), len(ROOMS))),
            ("home", "i2", (len(CONTAINERS),)),  # the room of a container
            ("open", "?", (len(CONTAINERS),)),
            ("device", "i2", (len(DEVICES),)),  # the room of a device; the thermometer's is not used
            ("substance", "i2", (OBJECTS,)),  # of objects 1 to 9
            ("place", "i2", (OBJECTS,)),  # HELD, a room, or the number of rooms and a container
            ("degrees", "i2", (OBJECTS,)),
            ("conducts", "?", (OBJECTS,)),
            ("tested", "?", (OBJECTS,)),  # measured or connected since it was last heated or cooled
            ("seen", "?", (len(ROOMS) + len(CONTAINERS),)),  # as places
            ("at", "i2"),
            ("reading", "i2"),  # NO_READING, TEMPERATURE or BULB: what the last action shows
            ("read", "i2"),  # of which object
            ("goal", "i2", (3,)),  # task, object, degrees
        ]
    )
    actions: ClassVar[int] = ON_CONNECT + OBJECTS
    choices: ClassVar[int] = 30
    features: ClassVar[int] = 1 + len(ROOMS) + 2 * len(CONTAINERS) + len(DEVICES) - 1 + 2 * OBJECTS + 3 + 3
    max_steps: ClassVar[int] = 50

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError(f"tasks=() must name one at least of {', '.join(TASKS)}")
        for task in self.tasks:
            check_choice("tasks", task, TASKS)

    def generate(self, rng: np.random.Generator) -> np.ndarray:
        state = np.zeros(1, self.dtype)
        lab, count = state[0], len(ROOMS)
        order = rng.permutation(count)
        for i in range(1, count):
            other = order[rng.integers(i)]
            lab["door"][order[i], other] = lab["door"][other, order[i]] = True
        lab["home"] = rng.integers(count, size=len(CONTAINERS))
        lab["home"][BLUE] = lab["home"][RED]
        lab["open"][[RED, BLUE]] = True
        lab["device"] = rng.integers(count, size=len(DEVICES))
        lab["substance"] = rng.permutation(len(SUBSTANCES))[:OBJECTS]
        lab["place"] = rng.integers(count + len(CONTAINERS) - 2, size=OBJECTS)
        lab["place"] += np.where(lab["place"] < count, 0, 2)  # nothing is in the boxes of the answers
        lab["conducts"] = rng.random(OBJECTS) < 0.5
        lab["at"] = rng.integers(count)
        lab["seen"][lab["at"]] = True
        lab["seen"][count + RED], lab["seen"][count + BLUE] = np.repeat(lab["home"][RED] == lab["at"], 2)

        task = TASKS.index(self.tasks[rng.integers(len(self.tasks))])
        lab["goal"] = task, rng.integers(1, OBJECTS), {HEAT: 60, COOL: 20}.get(task, ANSWER)
        low, high = {HEAT: (5, 30), COOL: (50, 80)}.get(task, (5, 96))
        lab["degrees"] = rng.integers(low, high, OBJECTS)
        return state

    @staticmethod
    def _visible(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Containers in the room, and objects on its floor or in what is open there; bool ``[rows, ...]``."""
        here = state["home"] == state["at"][:, None]
        floor = np.arange(len(ROOMS)) == state["at"][:, None]
        places = np.concatenate([floor, here & state["open"]], axis=1)
        seen = np.take_along_axis(places, np.maximum(state["place"], 0), 1)
        return here, seen & (state["place"] >= 0)

    def admissible(self, state: np.ndarray) -> np.ndarray:
        every = np.arange(len(state))
        here, visible = self._visible(state)
        held = state["place"] == HELD
        free = held.sum(1, keepdims=True) < HANDS
        probe = held & (np.arange(OBJECTS) > 0)
        device = state["device"] == state["at"][:, None]
        put = held[:, :, None] & (here & state["open"])[:, None]
        parts = [state["door"][every, state["at"]], here & ~state["open"], visible & free, held]
        parts += [put.reshape(len(state), -1), probe & held[:, :1]]
        parts += [probe & device[:, i, None] for i in (HEATER, FREEZER, CIRCUIT)]
        return np.concatenate(parts, axis=1)

    def step(self, state: np.ndarray, codes: np.ndarray) -> Outcome:
        (go,) = np.nonzero(codes < OPEN)
        state["at"][go] = codes[go]
        (opened,) = np.nonzero((codes >= OPEN) & (codes < TAKE))
        state["open"][opened, codes[opened] - OPEN] = True
        (take,) = np.nonzero((codes >= TAKE) & (codes < DROP))
        state["place"][take, codes[take] - TAKE] = HELD
        (drop,) = np.nonzero((codes >= DROP) & (codes < PUT))
        state["place"][drop, codes[drop] - DROP] = state["at"][drop]
        self._experiment(state, codes)

        (put,) = np.nonzero((codes >= PUT) & (codes < ON_MEASURE))
        item, container = np.divmod(codes[put] - PUT, len(CONTAINERS))
        state["place"][put, item] = len(ROOMS) + container
        here, _ = self._visible(state)
        state["seen"][np.arange(len(state)), state["at"]] = True
        state["seen"][:, len(ROOMS) :] |= here & state["open"]

        done = np.zeros(len(state), dtype=bool)
        done[put] = (item == state["goal"][put, 1]) & (container <= BLUE)
        return Outcome(done, (done & self._right(state)).astype(np.float32))

    @staticmethod
    def _experiment(state: np.ndarray, codes: np.ndarray) -> None:
        """Measure, heat, cool, connect; what an instrument shows is seen until the next action."""
        state["reading"] = NO_READING
        for first, change in ((ON_HEAT, CHANGE), (ON_COOL, -CHANGE)):
            (rows,) = np.nonzero((codes >= first) & (codes < first + OBJECTS))
            item = codes[rows] - first
            state["degrees"][rows, item] = np.clip(state["degrees"][rows, item] + change, 0, 99)
            state["tested"][rows, item] = False
        for first, kind in ((ON_MEASURE, TEMPERATURE), (ON_CONNECT, BULB)):
            (rows,) = np.nonzero((codes >= first) & (codes < first + OBJECTS))
            item = codes[rows] - first
            state["reading"][rows], state["read"][rows] = kind, item
            task = state["goal"][rows, 0]
            state["tested"][rows, item] |= (task == CONNECT) == (kind == BULB)

    @staticmethod
    def _right(state: np.ndarray) -> np.ndarray:
        """Is the substance in the box where it belongs, and has the experiment been made?"""
        every = np.arange(len(state))
        task, item, limit = state["goal"].T
        degrees, tested = state["degrees"][every, item], state["tested"][every, item]
        red = np.where(task == CONNECT, state["conducts"][every, item], degrees > limit)
        ready = np.select([task == HEAT, task == COOL], [degrees > limit, degrees < limit], tested)
        red = np.where(task == COOL, False, red)
        return ready & (state["place"][every, item] == len(ROOMS) + np.where(red, RED, BLUE))

    def observe(self, state: np.ndarray) -> np.ndarray:
        """Room, doors, containers and devices in it, objects seen or held and which of these; the reading
        (kind, object, number); the goal.
        """
        every = np.arange(len(state))
        here, visible = self._visible(state)
        held = state["place"] == HELD
        kind, item = state["reading"], state["read"]
        number = np.where(kind == TEMPERATURE, state["degrees"][every, item], state["conducts"][every, item])
        shown = np.stack([kind, np.where(kind > 0, item, -1), np.where(kind > 0, number, -1)], 1)
        known = np.where(visible | held, np.where(np.arange(OBJECTS) > 0, state["substance"] + 1, 0), -1)
        device = (state["device"] == state["at"][:, None])[:, HEATER:]
        parts = [state["at"][:, None], state["door"][every, state["at"]], here, here & state["open"], device]
        parts += [known, held, shown, state["goal"]]
        return np.concatenate(parts, axis=1).astype(np.int16)

    def task(self, row: SimpleNamespace) -> str:
        task, item, limit = row.goal
        what, otherwise = self._object(row, item), "else in the blue box."
        return {
            MEASURE: f"measure {what}. put it in the red box if it is above {limit} degrees, {otherwise}",
            HEAT: f"heat {what} above {limit} degrees and put it in the red box.",
            COOL: f"cool {what} below {limit} degrees and put it in the blue box.",
            CONNECT: f"connect {what} to the circuit. put it in the red box if the bulb is on, {otherwise}",
        }[task]

    def paraphrases(self, row: SimpleNamespace) -> list[str]:
        task, item, limit = row.goal
        what = self._object(row, item)
        return {
            MEASURE: [f"find {what}. if {what} is at {limit} degrees or below put it in the blue box."],
            HEAT: [f"the red box must hold {what} at above {limit} degrees."],
            COOL: [f"the blue box must hold {what} at below {limit} degrees."],
            CONNECT: [
                f"find {what}. if the bulb is off with {what} put it in the blue box, else in the red box."
            ],
        }[task]

    def describe(self, row: SimpleNamespace) -> list[str]:
        doors = ", ".join(room for room, door in zip(ROOMS, row.door[row.at], strict=True) if door)
        lines = [f"you are in {ROOMS[row.at]}.", f"doors lead to {doors}."]
        lines += [f"there is a {DEVICES[i]}." for i in (HEATER, FREEZER, CIRCUIT) if row.device[i] == row.at]
        lines.append(f"on floor: {self._content(row, row.at)}.")
        for c, home in enumerate(row.home):
            if home == row.at:
                content = f"in {CONTAINERS[c]}: {self._content(row, len(ROOMS) + c)}."
                lines.append(content if row.open[c] else f"{CONTAINERS[c]} is closed.")
        lines.append(f"you hold {self._content(row, HELD)}.")
        if row.reading == TEMPERATURE:
            lines.append(f"{self._object(row, row.read)} is at {row.degrees[row.read]} degrees.")
        elif row.reading == BULB:
            lines.append(f"the bulb is {'on' if row.conducts[row.read] else 'off'}.")
        return lines

    def _content(self, row: SimpleNamespace, place: int) -> str:
        found = (self._object(row, o) for o in range(OBJECTS) if row.place[o] == place)
        return ", ".join(found) or "nothing"

    @staticmethod
    def _object(row: SimpleNamespace, item: int) -> str:
        return SUBSTANCES[row.substance[item]] if item else DEVICES[0]

    def action_text(self, row: SimpleNamespace, code: int) -> str:
        if code < OPEN:
            return f"go to {ROOMS[code]}"
        if code < TAKE:
            return f"open {CONTAINERS[code - OPEN]}"
        if code < DROP:
            return f"take {self._object(row, code - TAKE)}"
        if code < PUT:
            return f"drop {self._object(row, code - DROP)}"
        if code < ON_MEASURE:
            item, container = divmod(code - PUT, len(CONTAINERS))
            return f"put {self._object(row, item)} in {CONTAINERS[container]}"
        first = code - (code - ON_MEASURE) % OBJECTS
        return VERBS[first].format(self._object(row, code - first))

    def expert(self, row: SimpleNamespace) -> Advice:
        """Fetches the substance and the instrument, makes the experiment, and answers."""
        task, item, limit = row.goal
        code, subgoal = self._plan(row, task, item, limit)
        known = f"at {row.degrees[item]} degrees" if row.tested[item] and task != CONNECT else "not tested"
        return Advice(
            code, subgoal, f"goal: {TASKS[task]} {self._object(row, item)}, {known}. next: {subgoal}."
        )

    def _plan(self, row: SimpleNamespace, task: int, item: int, limit: int) -> tuple[int, str]:
        what, tools = self._object(row, item), [item] if task == CONNECT else [item, 0]
        tested, degrees = row.tested[item], row.degrees[item]
        ready = tested and (degrees > limit if task == HEAT else degrees < limit if task == COOL else True)
        for tool in [item] if ready else tools:
            if row.place[tool] != HELD:
                return self._fetch(row, tool, keep=tools)
        if ready:
            red = row.conducts[item] if task == CONNECT else task != COOL and degrees > limit
            box = RED if red else BLUE
            code = PUT + item * len(CONTAINERS) + box
            return self._at(row, row.home[box], code, f"put {what} in {CONTAINERS[box]}", CONTAINERS[box])
        if task == CONNECT:
            return self._at(row, row.device[CIRCUIT], ON_CONNECT + item, f"connect {what}", "circuit")
        if task == MEASURE or not tested:
            return ON_MEASURE + item, f"measure {what}"
        device, code = (HEATER, ON_HEAT) if task == HEAT else (FREEZER, ON_COOL)
        return self._at(row, row.device[device], code + item, f"{TASKS[task]} {what}", DEVICES[device])

    def _fetch(self, row: SimpleNamespace, item: int, keep: list[int]) -> tuple[int, str]:
        name, held = self._object(row, item), [o for o in range(OBJECTS) if row.place[o] == HELD]
        if len(held) == HANDS:
            other = next(o for o in held if o not in keep or o == 0)
            return DROP + other, f"drop {self._object(row, other)}"
        place = row.place[item]
        room = place if place < len(ROOMS) else row.home[place - len(ROOMS)]
        if not row.seen[place]:
            return self._explore(row), f"find {name}"
        if room == row.at:
            return TAKE + item, f"take {name}"
        return self._towards(row, lambda r: r == room), f"find {name}"

    def _at(self, row: SimpleNamespace, room: int, code: int, subgoal: str, what: str) -> tuple[int, str]:
        """Do something in a room, or go there if it is known, or look for it."""
        if row.at == room:
            return code, subgoal
        if row.seen[room]:
            return self._towards(row, lambda r: r == room), subgoal
        return self._towards(row, lambda r: not row.seen[r]), f"find {what}"

    def _explore(self, row: SimpleNamespace) -> int:
        """Open what is closed here, or go towards the nearest room that is new or has something closed."""
        closed = [row.home[c] for c in range(len(CONTAINERS)) if not row.open[c]]
        for c, home in enumerate(row.home):
            if home == row.at and not row.open[c]:
                return OPEN + c
        return self._towards(row, lambda room: not row.seen[room] or room in closed)

    @staticmethod
    def _towards(row: SimpleNamespace, wanted) -> int:
        """The next room on the way to the nearest that is wanted; the way lies in rooms that were seen."""
        queue, first = deque([row.at]), {row.at: row.at}
        while queue:
            room = queue.popleft()
            if wanted(room):
                return GO + first[room]
            for other in np.flatnonzero(row.door[room]).tolist():
                if other not in first:
                    first[other] = other if room == row.at else first[room]
                    queue.append(other)
        raise ValueError("there is no such room")
