"""MiniLab: rooms, instruments, and answers that count only after the experiment."""

import numpy as np
import pytest

from flashlla.experiments.worlds.base import rows
from flashlla.experiments.worlds.lab import BLUE, CONNECT, HELD, ON_MEASURE, PUT, RED, ROOMS, TASKS, MiniLab

WORLD = MiniLab()
CONTAINERS = 6


def play(state, until=None):
    """The expert's actions in words, up to the end, or to an action that begins so; that one is not done."""
    texts = []
    while True:
        (row,) = rows(state)
        code = WORLD.expert(row).code
        text = WORLD.action_text(row, code)
        if until and text.startswith(until):
            return texts
        texts.append(text)
        outcome = WORLD.step(state, np.array([code]))
        if outcome.done[0]:
            return [*texts, float(outcome.score[0])]


@pytest.mark.parametrize("task", TASKS)
def test_each_task_needs_its_experiment(task):
    for seed in range(10):
        state = MiniLab(tasks=(task,)).generate(np.random.default_rng(seed))
        *texts, score = play(state)
        verbs = [text.split()[0] for text in texts]
        assert score == 1 and texts[-1].endswith("box") and task in verbs
        (row,) = rows(state)
        kind, item, limit = row.goal
        red = row.place[item] == len(ROOMS) + RED
        hot = row.degrees[item] > limit
        assert red == (row.conducts[item] if kind == CONNECT else hot and task != "cool")


@pytest.mark.parametrize("task", ("measure", "connect"))
def test_an_answer_without_the_experiment_or_in_the_other_box_is_wrong(task):
    for seed in range(10):
        state = MiniLab(tasks=(task,)).generate(np.random.default_rng(seed))
        play(state, until=task)
        for tested in (False, True):
            scores = []
            for box in (RED, BLUE):
                other = state.copy()
                other["tested"] = tested
                item = int(other["goal"][0, 1])
                outcome = WORLD.step(other, np.array([PUT + item * CONTAINERS + box]))
                assert outcome.done.all()
                scores.append(float(outcome.score[0]))
            assert sorted(scores) == [0, float(tested)]


def test_rooms_are_connected_and_doors_lead_both_ways():
    for seed in range(60):
        state = WORLD.generate(np.random.default_rng(seed))
        door = state["door"][0]
        assert np.array_equal(door, door.T) and door.sum() == 2 * (len(ROOMS) - 1)
        assert (np.linalg.matrix_power(door + np.eye(len(ROOMS), dtype=int), len(ROOMS)) > 0).all()


def test_two_hands_and_what_an_instrument_shows():
    state = MiniLab(tasks=("measure",)).generate(np.random.default_rng(4))
    item = int(state["goal"][0, 1])
    play(state, until="measure")
    assert (state["place"][0] == HELD).sum() == 2
    assert not any(
        WORLD.action_text(rows(state)[0], int(c)).startswith("take")
        for c in np.flatnonzero(WORLD.admissible(state)[0])
    )
    before = " ".join(WORLD.describe(rows(state)[0]))
    WORLD.step(state, np.array([ON_MEASURE + item]))
    after = " ".join(WORLD.describe(rows(state)[0]))
    assert "degrees" not in before and f"is at {state['degrees'][0, item]} degrees." in after
    hidden = state.copy()
    WORLD.step(hidden, np.array([WORLD.expert(rows(hidden)[0]).code]))
    assert "degrees" not in " ".join(WORLD.describe(rows(hidden)[0]))


def test_hidden_properties_are_not_observed():
    state = WORLD.generate(np.random.default_rng(5))
    seen = WORLD.observe(state)
    state["degrees"] += 1
    state["conducts"] = ~state["conducts"]
    state["tested"] = True
    assert np.array_equal(WORLD.observe(state), seen)
    with pytest.raises(ValueError, match="tasks='boil' is unknown"):
        MiniLab(tasks=("boil",))
