"""Sokoban: distances against a search that plays forwards, and the rules."""

import numpy as np
import pytest

from flashlla.experiments.worlds.base import rows
from flashlla.experiments.worlds.sokoban import BORDER, MOVES, Sokoban, distances, moved


def forwards(row):
    """Moves of the shortest solution, by breadth-first search from the start; None if there is none."""
    front, known, moves = {(row.box, row.player)}, set(), 0
    while front:
        if any(box == row.goal for box, _ in front):
            return moves
        known |= front
        after = (moved(row.walls, *state, code) for state in front for code in range(len(MOVES)))
        front, moves = {state for state in after if state} - known, moves + 1
    return None


def test_playing_backwards_gives_rooms_that_can_be_solved():
    world = Sokoban(walls=(0, 6), moves=(2, 12))
    found = []
    for seed in range(150):
        (row,) = rows(world.generate(np.random.default_rng(seed)))
        walls = np.array(row.walls)
        assert walls[list(BORDER)].all() and len(BORDER) <= walls.sum() <= len(BORDER) + 6
        assert not walls[[row.box, row.player, row.goal]].any() and len({row.box, row.player}) == 2
        found.append(forwards(row))
        assert found[-1] == distances(walls.tobytes(), row.goal)[row.box, row.player]
    assert set(found) == set(range(2, 13))


def test_dead_ends_have_no_distance():
    walls = np.isin(np.arange(36), BORDER)
    distance = distances(walls.tobytes(), goal=14)
    assert (distance[7] == -1).all()  # a corner
    assert distance[14, 8] == 0 and distance[13, 12] == -1 and distance[15, 16] == 1


def test_moves_walk_and_push():
    world = Sokoban()
    state = np.repeat(world.generate(np.random.default_rng(0)), 4)
    state["walls"] = np.isin(np.arange(36), BORDER)
    state["box"], state["player"], state["goal"] = 15, 14, 16
    assert world.admissible(state).all()
    outcome = world.step(state, np.arange(4))
    assert state["player"].tolist() == [8, 20, 13, 15] and state["box"].tolist() == [15, 15, 15, 16]
    assert outcome.done.tolist() == [False, False, False, True]
    state["box"], state["player"] = 16, 15
    assert world.admissible(state).tolist() == [[True, True, True, False]] * 4
    state["box"], state["player"] = [16, 7, 7, 10], [15, 8, 13, 9]
    allowed = world.admissible(state)
    assert not allowed[1, 2] and not allowed[2, 0] and not allowed[3, 3] and not allowed[3, 0]


def test_the_border_may_go_unsaid():
    (row,) = rows(Sokoban(walls=(2, 2)).generate(np.random.default_rng(0)))
    assert len(Sokoban().describe(row)) == 20 + 2 + 3 and len(Sokoban(border=False).describe(row)) == 2 + 3
    for wrong in ({"walls": (3, 2)}, {"walls": (0, 9)}, {"moves": (0, 3)}):
        with pytest.raises(ValueError):
            Sokoban(**wrong)
    with pytest.raises(ValueError, match="ask for fewer moves"):
        Sokoban(walls=(0, 0), moves=(20, 20)).generate(np.random.default_rng(0))
