"""MiniShop: the score of WebShop, and catalogues with one item that has all."""

import numpy as np
import pytest

from flashlla.experiments.worlds.base import rows
from flashlla.experiments.worlds.shop import BUY, ITEM, ITEMS, MiniShop


def best(state):
    """The score of every item with the options wanted, where it has them."""
    world, found = MiniShop(), []
    for item in range(ITEMS):
        one = state.copy()
        one["page"], one["item"] = ITEM, item
        color, size = int(one["color"][0]), int(one["size"][0])
        has = one["colors"][0, item, color], one["sizes"][0, item, size]
        one["chosen"] = [color if has[0] else -1, size if has[1] else -1]
        found.append(float(world.scores(one)[0]))
    return np.array(found)


@pytest.mark.parametrize("alike", (0, 3, 4))
def test_one_item_has_all_and_others_of_its_kind_lack_one_thing(alike):
    for seed in range(60):
        state = MiniShop(alike=alike).generate(np.random.default_rng(seed))
        score, (row,) = best(state), rows(state)
        same = np.array(row.kind) == row.want
        assert same.sum() == ITEMS // 2 and (score == 1).sum() == 1
        assert np.allclose(np.sort(score[same])[:-1], 0.8) and (score[~same] == 0).all()
        assert ((np.array(row.price) <= row.limit) & same).sum() >= 1
        assert (np.array(row.colors).sum(1) == 3).all() and (np.array(row.sizes).sum(1) == 2).all()


def test_score_is_the_share_of_what_is_met():
    world = MiniShop()
    state = world.generate(np.random.default_rng(0))
    item = int(best(state).argmax())
    state["page"], state["item"] = ITEM, item
    worth = []
    for color, size, limit in ((-1, -1, 0), (-1, -1, 99), (0, -1, 99), (0, 0, 99)):
        state["chosen"][0] = np.where([color == 0, size == 0], [state["color"][0], state["size"][0]], -1)
        state["limit"] = limit
        worth.append(float(world.scores(state)[0]))
    assert np.allclose(worth, [0.4, 0.6, 0.8, 1.0])
    assert world.step(state.copy(), np.array([BUY])).done.all()
    state["want"] = (state["want"] + 1) % 10
    outcome = world.step(state, np.array([BUY]))
    assert outcome.done.all() and outcome.score[0] == 0


def test_pages_lead_to_each_other():
    world, state = MiniShop(), MiniShop().generate(np.random.default_rng(1))

    def texts():
        (row,) = rows(state)
        return {world.action_text(row, int(c)): c for c in np.flatnonzero(world.admissible(state)[0])}

    (row,) = rows(state)
    goal = world.action_text(row, world.expert(row).code)
    before = texts()
    world.step(state, np.array([before[goal]]))
    first = texts()
    assert {"back", "next page"} <= set(first) and "previous page" not in first and len(first) == 6
    world.step(state, np.array([first["next page"]]))
    second = texts()
    assert "previous page" in second and "next page" not in second
    assert not {a for a in first if a.startswith("open")} & {a for a in second if a.startswith("open")}
    item = next(a for a in second if a.startswith("open"))
    world.step(state, np.array([second[item]]))
    assert {"buy", "back"} <= set(texts()) and sum(a.startswith("choose") for a in texts()) == 5
    for _ in range(2):
        world.step(state, np.array([texts()["back"]]))
    assert texts() == before
