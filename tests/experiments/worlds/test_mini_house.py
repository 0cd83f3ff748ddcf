"""MiniHouse: what each kind of task asks for, what is seen, and subtasks in a row."""

import numpy as np
import pytest

from flashlla.experiments.worlds.base import rows
from flashlla.experiments.worlds.house import HAS_DOOR, HOT, TASKS, MiniHouse


class Player:
    """Plays one episode by action texts."""

    def __init__(self, seed, **knobs):
        self.world = MiniHouse(**knobs)
        self.state = self.world.generate(np.random.default_rng(seed))

    @property
    def row(self):
        return rows(self.state)[0]

    def actions(self):
        codes = np.flatnonzero(self.world.admissible(self.state)[0])
        return {self.world.action_text(self.row, int(code)): code for code in codes}

    def do(self, action):
        return bool(self.world.step(self.state, np.array([self.actions()[action]])).done[0])

    def sees(self):
        return " ".join(self.world.describe(self.row))

    def expert(self):
        advice = self.world.expert(self.row)
        return self.world.action_text(self.row, advice.code), advice.subgoal


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_does_what_the_task_is_called(task):
    for seed in range(8):
        player, done, verbs, subgoals = Player(seed, tasks=(task,)), False, [], []
        while not done:
            action, subgoal = player.expert()
            verbs.append(action.split()[0])
            subgoals += [subgoal] if subgoals[-1:] != [subgoal] else []
            done = player.do(action)
        assert verbs[-1] == ("use" if task == "look" else "put")
        changes = {"clean", "heat", "cool"} & set(verbs)
        assert changes == ({task} if task in ("clean", "heat", "cool") else set())
        assert verbs.count("take") == (2 if task == "pick2" else 1)
        assert {subgoal.split()[0] for subgoal in subgoals} <= {"find", "take", "put", "use", *changes}


def test_houses_are_as_they_shall_be():
    world = MiniHouse()
    for seed in range(100):
        (row,) = rows(world.generate(np.random.default_rng(seed)))
        count = sum(kind > 0 for kind in row.kind)
        assert 8 <= count <= 15 and all(row.kind[:count])
        assert all(row.open[i] == (not HAS_DOOR[row.kind[i]]) for i in range(count))
        placed = [place for kind, place in zip(row.object, row.place, strict=True) if kind]
        assert len(placed) >= 10 and max(map(placed.count, placed)) <= 3 and row.open[row.lamp]
        _, kind, target = row.goal[0]
        there = [row.kind[p] for k, p in zip(row.object, row.place, strict=True) if k == kind]
        assert there and target not in there


def test_what_is_closed_or_elsewhere_is_not_seen():
    player = Player(0)
    assert "in the middle" in player.sees() and "in it is" not in player.sees()
    player.do("go to fridge 1")
    assert "it is closed" in player.sees() and not any(a.startswith("take") for a in player.actions())
    hidden = player.world.observe(player.state)
    for index, place in enumerate(player.row.place):
        if place == player.row.at:
            player.state["object"][0, index] = 1  # something else in there looks the same from outside
    assert np.array_equal(player.world.observe(player.state), hidden)
    player.do("open fridge 1")
    assert "in it is" in player.sees()


def test_only_examining_shows_the_state_of_an_object():
    player = Player(1, tasks=("clean",))
    while player.row.held < 0:
        player.do(player.expert()[0])
    (examine,) = (action for action in player.actions() if action.startswith("examine"))
    player.do(examine)
    assert "is dirty and warm." in player.sees()
    while not player.row.clean[player.row.held]:
        player.do(player.expert()[0])
    assert "clean" not in player.sees()
    player.do(examine)
    assert "is clean and warm." in player.sees()


def test_a_wrong_state_or_place_is_no_success():
    player = Player(2, tasks=("heat",))
    while player.row.held < 0:
        player.do(player.expert()[0])
    name = player.world._object(player.row, player.row.held)
    target = next(i for i, kind in enumerate(player.row.kind) if kind == player.row.goal[0][2])
    place = player.world._receptacle(player.row, target)
    if player.row.at != target:
        player.do(f"go to {place}")
    if not player.row.open[target]:
        player.do(f"open {place}")
    assert not player.do(f"put {name} in {place}")  # cold as yet
    done = False
    while not done:  # from there the expert takes it again
        done = player.do(player.expert()[0])
    thing = player.row.object.index(player.row.goal[0][1])
    assert player.row.heat[thing] == HOT


@pytest.mark.parametrize("subtasks", (1, 2, 3, 4))
def test_subtasks_count_in_their_order(subtasks):
    for seed in range(6):
        player, done, stages = Player(seed, subtasks=subtasks), False, []
        assert player.row.goals == subtasks
        assert player.world.task(player.row).count("then") == subtasks - 1
        while not done:
            done = player.do(player.expert()[0])
            stages.append(player.row.stage)
        assert stages[-1] == subtasks and set(stages) == set(range(subtasks + 1))


def test_what_a_later_subtask_asks_for_does_not_count_before_its_turn():
    player = Player(3, subtasks=2, tasks=("pick",))
    swapped = player.state["goal"][0, [1, 0]]
    player.state["goal"][0, :2] = swapped
    while player.row.stage == 0:  # the second is done first
        player.do(player.expert()[0])
    player.state["goal"][0, :2] = swapped[::-1]
    player.state["stage"] = 0
    while player.row.stage == 0:
        assert not player.do(player.expert()[0])
    puts, done = 0, False
    while not done:  # what is there already is taken and put again
        action, _ = player.expert()
        puts += action.startswith("put")
        done = player.do(action)
    assert puts == 1
