"""Sokoban: push one box to the goal in a room of 6 x 6, walls included, told by coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import ClassVar

import numpy as np

from .base import Advice, Outcome, World
from .errors import check_pair

SIDE = 6
CELLS = SIDE * SIDE
MOVES = np.array([-SIDE, SIDE, -1, 1])
DIRECTIONS = ("up", "down", "left", "right")
BORDER = tuple(c for c in range(CELLS) if {c // SIDE, c % SIDE} & {0, SIDE - 1})
INTERIOR = tuple(c for c in range(CELLS) if c not in BORDER)
EMPTY_ROOM = np.isin(np.arange(CELLS), BORDER)  # its walls
ATTEMPTS = 1000  # to find a room with a solution of the length that is drawn
WORDS = ("wall", "at", "box", "goal", "player", "push", "the", "to", "walk", "move", "must", "onto")
WORDS += (*DIRECTIONS, "give", "get", "there", "is", "no", "next")


@dataclass(frozen=True)
class Sokoban(World):
    """One box, in coordinates (row, column) from the upper left corner.

    The border is wall. Admissible are the moves that move something. A box in a corner stays there; the
    episode then ends by its limit.

    Attributes:
        walls: least and most walls inside the border, 0 to 6.
        moves: least and most moves of the shortest solution.
        border: name the border in the observation. It is always the same, and most of the text.
    """

    walls: tuple[int, int] = (0, 4)
    moves: tuple[int, int] = (3, 12)
    border: bool = True

    name: ClassVar[str] = "Sokoban"
    dtype: ClassVar[np.dtype] = np.dtype(
        [("walls", "?", (CELLS,)), ("box", "i2"), ("player", "i2"), ("goal", "i2")]
    )
    actions: ClassVar[int] = len(MOVES)
    choices: ClassVar[int] = len(MOVES)
    features: ClassVar[int] = CELLS
    max_steps: ClassVar[int] = 15

    def __post_init__(self) -> None:
        check_pair("walls", self.walls, 0, 6)
        check_pair("moves", self.moves, 1, 20)

    def generate(self, rng: np.random.Generator) -> np.ndarray:
        """Play backwards from a solved room: of all that can be reached so, a start at a random distance."""
        state = np.zeros(1, self.dtype)
        for _ in range(ATTEMPTS):
            inside = rng.integers(self.walls[0], self.walls[1] + 1)
            *taken, goal = rng.permutation(INTERIOR)[: inside + 1].tolist()
            walls = EMPTY_ROOM.copy()
            walls[taken] = True
            distance = distances(walls.tobytes(), goal)
            moves = rng.integers(self.moves[0], self.moves[1] + 1)
            box, player = np.nonzero(distance == moves)
            if len(box):
                start = rng.integers(len(box))
                state[0] = (walls, box[start], player[start], goal)
                return state
        raise ValueError(
            f"moves={self.moves} with walls={self.walls} were not found in a room; ask for fewer moves"
        )

    def admissible(self, state: np.ndarray) -> np.ndarray:
        ahead = state["player"][:, None] + MOVES
        behind = np.clip(ahead + MOVES, 0, CELLS - 1)
        pushed = ahead == state["box"][:, None]
        taken = np.take_along_axis(state["walls"], np.where(pushed, behind, ahead), 1)
        return ~taken

    def step(self, state: np.ndarray, codes: np.ndarray) -> Outcome:
        state["player"] += MOVES[codes]
        state["box"] += np.where(state["player"] == state["box"], MOVES[codes], 0)
        solved = state["box"] == state["goal"]
        return Outcome(solved, solved.astype(np.float32))

    def observe(self, state: np.ndarray) -> np.ndarray:
        """By cells: 1 for a wall, and the sum of 2 for the goal, 4 for the box and 8 for the player."""
        seen, every = state["walls"].astype(np.int16), np.arange(len(state))
        for name, sign in (("goal", 2), ("box", 4), ("player", 8)):
            seen[every, state[name]] += sign
        return seen

    def task(self, row: SimpleNamespace) -> str:
        return "push the box to the goal."

    def paraphrases(self, row: SimpleNamespace) -> list[str]:
        return [f"the box must move to {cell(row.goal)}.", "get the box onto the goal.", self.task(row)]

    def describe(self, row: SimpleNamespace) -> list[str]:
        walls = [c for c, wall in enumerate(row.walls) if wall and (self.border or c in INTERIOR)]
        named = [("box", row.box), ("goal", row.goal), ("player", row.player)]
        return [f"{what} at {cell(c)}." for what, c in [*(("wall", c) for c in walls), *named]]

    def action_text(self, row: SimpleNamespace, code: int) -> str:
        return DIRECTIONS[code]

    def expert(self, row: SimpleNamespace) -> Advice:
        """A shortest solution; any move and ``give up`` once the box is stuck."""
        distance = distances(np.array(row.walls, dtype=bool).tobytes(), row.goal)
        if distance[row.box, row.player] <= 0:
            code = next(c for c in range(len(MOVES)) if moved(row.walls, row.box, row.player, c))
            return Advice(code, "give up", "there is no next move.")
        code, box, player = downhill(distance, row.walls, row.box, row.player)
        first, before = code, row.player
        while box == row.box:  # a walk: where does it end?
            before = player
            code, box, player = downhill(distance, row.walls, box, player)
        push = f"push box {DIRECTIONS[code]}"
        subgoal = push if before == row.player else f"walk to {cell(before)}"
        thought = f"box {cell(row.box)}, goal {cell(row.goal)}, player {cell(row.player)}. next: "
        return Advice(first, subgoal, f"{thought}{subgoal}.")


def cell(index: int) -> str:
    """A cell as text, ``(row,column)``."""
    return f"({index // SIDE},{index % SIDE})"


def moved(walls: list[bool], box: int, player: int, code: int) -> tuple[int, int] | None:
    """Box and player after a move; None if it is not possible."""
    by = int(MOVES[code])
    player += by
    box += by if player == box else 0
    return None if walls[player] or walls[box] else (box, player)


def downhill(distance: np.ndarray, walls: list[bool], box: int, player: int) -> tuple[int, int, int]:
    """A move of a shortest solution, and box and player after it."""
    every = ((c, moved(walls, box, player, c)) for c in range(len(MOVES)))
    able = [(c, *after) for c, after in every if after and distance[after] >= 0]
    return min(able, key=lambda move: distance[move[1], move[2]])


@lru_cache(8192)
def distances(walls: bytes, goal: int) -> np.ndarray:
    """Moves to the solution from every state, by breadth-first search backwards from the solved ones.

    Args:
        walls: bool for each cell, as bytes.
        goal: the cell of the goal.

    Returns:
        int16 ``[box, player]``, -1 where there is no solution. Do not change it: it is kept.
    """
    free = [not wall for wall in walls]
    steps = MOVES.tolist()
    distance = np.full((CELLS, CELLS), -1, dtype=np.int16)
    known = {(goal, player) for player in INTERIOR if free[player] and player != goal}
    front, moves = list(known), 0
    while front:
        distance[tuple(zip(*front, strict=True))] = moves
        before = []
        for box, player in front:
            for step in steps:
                start = player - step
                if not free[start] or start == box:
                    continue
                # The player came without the box, or with it: then the box stood where the player is now.
                for state in ((box, start), (player, start))[: 1 + (box == player + step)]:
                    if state not in known:
                        known.add(state)
                        before.append(state)
        front, moves = before, moves + 1
    return distance
