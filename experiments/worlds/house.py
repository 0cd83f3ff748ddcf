"""MiniHouse: household tasks of the six kinds of ALFWorld (arXiv 2010.03768) in one partially seen room."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np

from .base import Advice, Outcome, World
from .errors import check_choice, check_pair, check_range

TASKS = ("pick", "look", "clean", "heat", "cool", "pick2")
PICK, LOOK, CLEAN, HEAT, COOL, PICK2 = range(len(TASKS))

# Kinds of receptacles and of objects are numbers from 1; 0 is none.
RECEPTACLES = ("", "fridge", "microwave", "sink", "table", "cabinet", "drawer", "shelf", "counter")
RECEPTACLES += ("desk", "bed", "sofa", "dresser")
FRIDGE, MICROWAVE, SINK, TABLE, CABINET, DRAWER = range(1, 7)
ALWAYS = (FRIDGE, MICROWAVE, SINK, TABLE)  # one of each is in every house
HAS_DOOR = np.isin(np.arange(len(RECEPTACLES)), (FRIDGE, MICROWAVE, CABINET, DRAWER))
FOOD = ("apple", "bread", "egg", "lettuce", "potato", "tomato")
DISHES = ("bowl", "cup", "mug", "plate", "pan", "pot", "fork", "knife", "spoon")
THINGS = ("book", "candle", "clock", "key", "laptop", "newspaper", "pen", "pencil", "pillow", "phone")
THINGS += ("soap", "sponge", "towel", "vase", "wallet", "watch")
OBJECTS = ("", *FOOD, *DISHES, *THINGS)
FITTING = {  # objects that a task may be about
    PICK: OBJECTS[1:],
    LOOK: ("book", "clock", "key", "laptop", "newspaper", "pen", "pencil", "phone", "wallet", "watch"),
    CLEAN: (*FOOD[:1], *FOOD[3:], *DISHES, "soap", "sponge", "towel"),
    HEAT: (*FOOD[:3], *FOOD[4:], "cup", "mug", "plate"),
    COOL: (*FOOD, "bowl", "cup", "mug", "plate", "pan", "pot"),
    PICK2: OBJECTS[1:],
}
STATION = {CLEAN: SINK, HEAT: MICROWAVE, COOL: FRIDGE}
STATE_WORD = {CLEAN: "clean", HEAT: "hot", COOL: "cold"}
STATION_VERB = {CLEAN: "clean", HEAT: "heat", COOL: "cool"}
SENTENCE_WORDS = """
you are in the middle of room see at it is open closed nothing hold lamp and put one two look with first
then go to take from use examine dirty warm find goal hand next bring place under into light
"""
WORDS = (*RECEPTACLES[1:], *OBJECTS[1:], *STATE_WORD.values(), *STATION_VERB.values())
WORDS += tuple(SENTENCE_WORDS.split())

SLOTS = 15  # receptacles at most
THINGS_AT_MOST = 16  # objects at most
SUBTASKS = 4  # at most
CAPACITY = 3  # objects that one receptacle has at the start
HOT, COLD = 1, 2

GO, TAKE = 0, SLOTS
PUT = SLOTS + THINGS_AT_MOST
OPEN, STATIONS, USE, EXAMINE = PUT + 1, PUT + 2, PUT + 5, PUT + 6  # STATIONS + 0, 1, 2: clean, heat, cool


@dataclass(frozen=True)
class MiniHouse(World):
    """Find objects, change them, and bring them to a place, with one hand.

    Closed receptacles show nothing, and what is elsewhere is not shown; whether an object is clean or hot is
    seen when it is examined. With several subtasks each counts only when those before it are done: a subtask
    is done by the action that completes it. The end, and the reward, come with the last.

    Attributes:
        subtasks: tasks in a row, 1 to 4.
        receptacles: least and most of them, within 8 to 15.
        tasks: kinds that occur, each as likely as another: pick, look, clean, heat, cool, pick2.
    """

    subtasks: int = 1
    receptacles: tuple[int, int] = (8, 15)
    tasks: tuple[str, ...] = TASKS

    name: ClassVar[str] = "MiniHouse"
    dtype: ClassVar[np.dtype] = np.dtype(
        [
            ("kind", "i2", (SLOTS,)),  # of a receptacle, 0 where there is none
            ("number", "i2", (SLOTS,)),  # "cabinet 2"
            ("open", "?", (SLOTS,)),  # what has no door is open
            ("seen", "?", (SLOTS,)),  # its content has been seen
            ("object", "i2", (THINGS_AT_MOST,)),  # kind, 0 where there is none
            ("object_number", "i2", (THINGS_AT_MOST,)),
            ("place", "i2", (THINGS_AT_MOST,)),  # a receptacle, -1 in the hand or nowhere
            ("clean", "?", (THINGS_AT_MOST,)),
            ("heat", "i2", (THINGS_AT_MOST,)),  # 0, HOT or COLD
            ("lamp", "i2"),  # the receptacle that it stands on
            ("at", "i2"),  # receptacle, -1 in the middle of the room
            ("held", "i2"),  # object, -1 for none
            ("examined", "?"),  # the last action was to examine what is held
            ("goal", "i2", (SUBTASKS, 3)),  # task, kind of object, kind of receptacle
            ("goals", "i2"),
            ("stage", "i2"),  # subtasks done
        ]
    )
    actions: ClassVar[int] = EXAMINE + 1
    choices: ClassVar[int] = SLOTS + THINGS_AT_MOST + 2
    features: ClassVar[int] = 3 * SLOTS + 2 * THINGS_AT_MOST + 6 + 3 * SUBTASKS
    max_steps: ClassVar[int] = 50

    def __post_init__(self) -> None:
        check_range("subtasks", self.subtasks, 1, SUBTASKS)
        check_pair("receptacles", self.receptacles, 8, SLOTS)
        if not self.tasks:
            raise ValueError(f"tasks=() must name one at least of {', '.join(TASKS)}")
        for task in self.tasks:
            check_choice("tasks", task, TASKS)

    def generate(self, rng: np.random.Generator) -> np.ndarray:
        state = np.zeros(1, self.dtype)
        house = state[0]
        house["at"] = house["held"] = house["place"][:] = -1
        kinds = self._furnish(rng)
        house["kind"][: len(kinds)] = kinds
        house["number"][: len(kinds)] = numbered(kinds)
        house["open"] = ~HAS_DOOR[house["kind"]]
        house["lamp"] = rng.choice(np.flatnonzero(~HAS_DOOR[kinds] & (kinds != SINK)))

        goals, wanted = self._goals(rng, kinds)
        house["goals"] = len(goals)
        house["goal"][: len(goals)] = goals
        others = [kind for kind in range(1, len(OBJECTS)) if kind not in wanted]
        count = rng.integers(max(10, len(wanted)), THINGS_AT_MOST + 1)
        objects = np.array([*wanted, *rng.choice(others, count - len(wanted))])
        house["object"][:count] = objects
        house["object_number"][:count] = numbered(objects)
        house["place"][:count] = self._places(rng, kinds, objects, goals)
        return state

    def _furnish(self, rng: np.random.Generator) -> np.ndarray:
        """Kinds of the receptacles of a house, in a random order; at most three of a kind."""
        count = rng.integers(self.receptacles[0], self.receptacles[1] + 1)
        more = np.repeat(np.arange(CABINET, len(RECEPTACLES)), 3)
        kinds = np.concatenate([ALWAYS, rng.choice(more, count - len(ALWAYS), replace=False)])
        return rng.permutation(kinds)

    def _goals(self, rng: np.random.Generator, kinds: np.ndarray) -> tuple[list[tuple], list[int]]:
        """(task, object, receptacle) of each subtask, no object twice, and the objects that are needed."""
        goals, wanted = [], []
        for _ in range(self.subtasks):
            task = TASKS.index(self.tasks[rng.integers(len(self.tasks))])
            fitting = [OBJECTS.index(name) for name in FITTING[task]]
            kind = int(rng.choice([o for o in fitting if o not in wanted]))
            target = 0 if task == LOOK else int(rng.choice(kinds))
            goals.append((task, kind, target))
            wanted += [kind] * (2 if task == PICK2 else 1)
        return goals, wanted

    def _places(
        self, rng: np.random.Generator, kinds: np.ndarray, objects: np.ndarray, goals: list[tuple]
    ) -> list[int]:
        """A receptacle for each object: with room in it, and not where a subtask wants it."""
        target = {kind: receptacle for _, kind, receptacle in goals}
        kinds, room, places = kinds.tolist(), [CAPACITY] * len(kinds), []
        for kind, chance in zip(objects.tolist(), rng.random(len(objects)).tolist(), strict=True):
            unwanted = target.get(kind, 0)
            able = [slot for slot, left in enumerate(room) if left and kinds[slot] != unwanted]
            places.append(able[int(chance * len(able))])
            room[places[-1]] -= 1
        return places

    def admissible(self, state: np.ndarray) -> np.ndarray:
        allowed = np.zeros((len(state), self.actions), dtype=bool)
        at, free = state["at"], state["held"] < 0
        kind, is_open = self._here(state, "kind"), self._here(state, "open")
        inside = is_open & (at >= 0)
        allowed[:, GO:TAKE] = (state["kind"] > 0) & (np.arange(SLOTS) != at[:, None])
        there = (state["object"] > 0) & (state["place"] == at[:, None])
        allowed[:, TAKE:PUT] = there & (inside & free)[:, None]
        allowed[:, PUT] = inside & ~free
        allowed[:, OPEN] = ~is_open & (at >= 0)
        for i, station in enumerate(STATION.values()):
            allowed[:, STATIONS + i] = ~free & (at >= 0) & (kind == station)
        allowed[:, USE] = (state["lamp"] == at) & (at >= 0)
        allowed[:, EXAMINE] = ~free
        return allowed

    @staticmethod
    def _here(state: np.ndarray, name: str) -> np.ndarray:
        """A field of the receptacle where the agent is; that of some other in the middle of the room."""
        return state[name][np.arange(len(state)), np.maximum(state["at"], 0)]

    def step(self, state: np.ndarray, codes: np.ndarray) -> Outcome:
        (go,) = np.nonzero(codes < TAKE)
        state["at"][go] = codes[go]
        (take,) = np.nonzero((codes >= TAKE) & (codes < PUT))
        state["held"][take] = codes[take] - TAKE
        state["place"][take, codes[take] - TAKE] = -1
        (opened,) = np.nonzero(codes == OPEN)
        state["open"][opened, state["at"][opened]] = True
        for i, task in enumerate(STATION):
            (changed,) = np.nonzero(codes == STATIONS + i)
            held = state["held"][changed]
            if task == CLEAN:
                state["clean"][changed, held] = True
            else:
                state["heat"][changed, held] = HOT if task == HEAT else COLD
        state["examined"] = codes == EXAMINE
        (put,) = np.nonzero(codes == PUT)
        state["place"][put, state["held"][put]] = state["at"][put]

        state["stage"] += self._completes(state, codes)
        state["held"][put] = -1
        (somewhere,) = np.nonzero(state["at"] >= 0)
        at = state["at"][somewhere]
        state["seen"][somewhere, at] |= state["open"][somewhere, at]
        done = state["stage"] >= state["goals"]
        return Outcome(done, done.astype(np.float32))

    def _completes(self, state: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Does the action complete the subtask that is next? An object put down is still ``held``."""
        every, held = np.arange(len(state)), np.maximum(state["held"], 0)
        task, kind, target = state["goal"][every, np.minimum(state["stage"], SUBTASKS - 1)].T
        right = (state["held"] >= 0) & (state["object"][every, held] == kind)
        clean, heat = state["clean"][every, held], state["heat"][every, held]
        fit = ((task != CLEAN) | clean) & ((task != HEAT) | (heat == HOT)) & ((task != COOL) | (heat == COLD))
        placed = (state["object"] == kind[:, None]) & (state["place"] >= 0)
        where = np.take_along_axis(state["kind"], np.maximum(state["place"], 0), 1)
        enough = (placed & (where == target[:, None])).sum(1) >= np.where(task == PICK2, 2, 1)
        brought = (codes == PUT) & (self._here(state, "kind") == target) & fit & enough & (task != LOOK)
        return right & (brought | ((codes == USE) & (task == LOOK)))

    def observe(self, state: np.ndarray) -> np.ndarray:
        """Receptacles (kind, number, which one the agent is at); objects that are seen or held (kind,
        number); whether this receptacle is open and has the lamp; the object held and, when examined, its
        state; the goals.
        """
        every, at, held = np.arange(len(state)), state["at"], np.maximum(state["held"], 0)
        inside = self._here(state, "open") & (at >= 0)
        visible = (state["place"] == at[:, None]) & inside[:, None]
        visible |= np.arange(THINGS_AT_MOST) == state["held"][:, None]
        clean, heat = state["clean"][every, held], state["heat"][every, held]
        examined = state["examined"] & (state["held"] >= 0)
        single = [inside, (state["lamp"] == at) & (at >= 0), state["held"], examined]
        single += [examined & clean, examined * heat]
        parts = [state["kind"], state["number"], np.arange(SLOTS) == at[:, None]]
        parts += [state["object"] * visible, state["object_number"] * visible, np.stack(single, 1)]
        return np.concatenate([*parts, state["goal"].reshape(len(state), -1)], axis=1, dtype=np.int16)

    def task(self, row: SimpleNamespace) -> str:
        return self._tasks(row, self._goal_text)

    def paraphrases(self, row: SimpleNamespace) -> list[str]:
        return [
            self._tasks(row, lambda goal: self._goal_text(goal, "bring", "into", "under the light of")),
            self._tasks(row, lambda goal: self._goal_text(goal, "place", "in", "under")),
        ]

    def _tasks(self, row: SimpleNamespace, say) -> str:
        goals = [say(goal) for goal in row.goal[: row.goals]]
        return " ".join(
            f"{'then' if i else 'first'} {g}." if len(goals) > 1 else f"{g}." for i, g in enumerate(goals)
        )

    @staticmethod
    def _goal_text(goal: list[int], verb: str = "put", into: str = "in", under: str = "with") -> str:
        task, thing, target = goal[0], OBJECTS[goal[1]], RECEPTACLES[goal[2]]
        if task == LOOK:
            return f"look at one {thing} {under} the lamp"
        count = "two" if task == PICK2 else "one"
        state = f" {STATE_WORD[task]}" if task in STATE_WORD else ""
        return f"{verb} {count}{state} {thing} {into} the {target}"

    def describe(self, row: SimpleNamespace) -> list[str]:
        slots = range(sum(kind > 0 for kind in row.kind))
        if row.at < 0:
            around = ", ".join(self._receptacle(row, slot) for slot in slots)
            lines = ["you are in the middle of the room.", f"you see {around}."]
        else:
            lines = [f"you are at {self._receptacle(row, row.at)}."]
            lines += [f"in it is {self._content(row)}."] if row.open[row.at] else ["it is closed."]
        lines.append(f"you hold {self._object(row, row.held) if row.held >= 0 else 'nothing'}.")
        if row.examined:
            clean, heat = row.clean[row.held], row.heat[row.held]
            found = "clean" if clean else "dirty", ("warm", "hot", "cold")[heat]
            lines.append(f"{self._object(row, row.held)} is {' and '.join(found)}.")
        return lines

    def _content(self, row: SimpleNamespace) -> str:
        things = [
            self._object(row, o) for o in range(THINGS_AT_MOST) if row.object[o] and row.place[o] == row.at
        ]
        return ", ".join(things + ["lamp"] * (row.lamp == row.at)) or "nothing"

    @staticmethod
    def _receptacle(row: SimpleNamespace, slot: int) -> str:
        return f"{RECEPTACLES[row.kind[slot]]} {row.number[slot]}"

    @staticmethod
    def _object(row: SimpleNamespace, index: int) -> str:
        return f"{OBJECTS[row.object[index]]} {row.object_number[index]}"

    def action_text(self, row: SimpleNamespace, code: int) -> str:
        if code < TAKE:
            return f"go to {self._receptacle(row, code)}"
        if code < PUT:
            return f"take {self._object(row, code - TAKE)} from {self._receptacle(row, row.at)}"
        if code == USE:
            return "use lamp"
        if code == OPEN:
            return f"open {self._receptacle(row, row.at)}"
        held = self._object(row, row.held)
        if code == EXAMINE:
            return f"examine {held}"
        if code == PUT:
            return f"put {held} in {self._receptacle(row, row.at)}"
        verb = tuple(STATION_VERB.values())[code - STATIONS]
        return f"{verb} {held} with {self._receptacle(row, row.at)}"

    def expert(self, row: SimpleNamespace) -> Advice:
        """Looks through the receptacles in their order, from where it is, until it has seen what it needs."""
        goal = row.goal[min(row.stage, row.goals - 1)]
        held = row.object[row.held] if row.held >= 0 else 0
        code, subgoal = self._fetch(row, goal) if not held else self._use(row, goal, held)
        wanted = self._goal_text(goal)
        thought = f"goal: {wanted}. hand: {OBJECTS[held] or 'nothing'}. next: {subgoal}."
        return Advice(code, subgoal, thought)

    def _fetch(self, row: SimpleNamespace, goal: list[int]) -> tuple[int, str]:
        """Find and take an object of the goal that is not yet where it shall be."""
        _, kind, target = goal
        every = [(index, row.place[index]) for index, other in enumerate(row.object) if other == kind]
        missing = [(index, place) for index, place in every if row.kind[place] != target]
        for index, place in missing or every:
            if row.seen[place]:
                at = place == row.at
                return (TAKE + index if at else place), f"{'take' if at else 'find'} {OBJECTS[kind]}"
        return self._explore(row), f"find {OBJECTS[kind]}"

    def _use(self, row: SimpleNamespace, goal: list[int], held: int) -> tuple[int, str]:
        """Do with the object in the hand what its subtask wants; put any other object away."""
        task, kind, target = goal
        if held != kind:
            place = row.at if row.at >= 0 else row.kind.index(TABLE)
            return self._put(row, [place]), f"put {OBJECTS[held]} in {RECEPTACLES[row.kind[place]]}"
        if task == LOOK:
            known = row.seen[row.lamp]
            code = USE if row.at == row.lamp else row.lamp if known else self._explore(row)
            return code, "use lamp" if known else "find lamp"
        changed = {
            CLEAN: row.clean[row.held],
            HEAT: row.heat[row.held] == HOT,
            COOL: row.heat[row.held] == COLD,
        }
        if not changed.get(task, True):
            station = row.kind.index(STATION[task])
            code = STATIONS + list(STATION).index(task) if row.at == station else station
            return code, f"{STATION_VERB[task]} {OBJECTS[kind]}"
        places = [slot for slot in range(SLOTS) if row.kind[slot] == target]
        return self._put(row, places), f"put {OBJECTS[kind]} in {RECEPTACLES[target]}"

    @staticmethod
    def _put(row: SimpleNamespace, places: list[int]) -> int:
        """Towards putting down what is held in one of these."""
        if row.at not in places:
            return places[0]
        return PUT if row.open[row.at] else OPEN

    @staticmethod
    def _explore(row: SimpleNamespace) -> int:
        """Open what is closed here, or go to the next receptacle whose content is not known."""
        if row.at >= 0 and not row.open[row.at]:
            return OPEN
        count = sum(kind > 0 for kind in row.kind)
        order = ((row.at + 1 + i) % count for i in range(count))
        return next(slot for slot in order if not row.seen[slot])


def numbered(kinds: np.ndarray) -> list[int]:
    """For each entry, the how-manieth of its kind it is, from 1."""
    before, numbers = Counter(), []
    for kind in kinds.tolist():
        before[kind] += 1
        numbers.append(before[kind])
    return numbers
