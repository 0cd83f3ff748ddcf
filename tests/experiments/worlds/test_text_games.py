"""Probes: the grammar on a game of the test's own, and the real ones where they are installed."""

import importlib.util
import shutil

import pytest

from flashlla.experiments.worlds import PromptStyle
from flashlla.experiments.worlds.probes import (
    Game,
    Probe,
    Scene,
    ScienceWorldGame,
    TextWorldGame,
    needed,
)


class Door(Game):
    """Open a door that is there."""

    task = "open the door."

    def reset(self, seed):
        return Scene("a closed door.", ("open door", "wait"), 0.0, False)

    def step(self, action):
        opened = action == "open door"
        return Scene("an open door." if opened else "a closed door.", ("wait",), float(opened), opened)

    def close(self):
        pass


def test_a_game_has_the_prompts_of_the_worlds():
    probe = Probe(Door(), PromptStyle(history=1, plan=True), max_steps=5)
    probe.reset()
    assert probe.prompt() == (
        "task: open the door.\nstep: 0 of 5.\nnow: a closed door.\nsubgoal: None.\n"
        "actions: open door; wait.\n"
    )
    scene, over = probe.step("break door")
    assert not over and scene.observation == "a closed door." and "done: invalid action." in probe.prompt()
    scene, over = probe.step("open door")
    assert over and scene.score == 1 and "seen: a closed door.\ndone: open door." in probe.prompt("find key")
    assert Probe(Door(), max_steps=1).reset().score == 0


def test_a_package_that_is_missing_is_named_with_the_remedy():
    with pytest.raises(ModuleNotFoundError, match=r"no_such_game: pip install 'flashlla\[agents\]'"):
        needed("no_such_game")


def without(package):
    return importlib.util.find_spec(package) is None


def play_a_bit(game):
    probe = Probe(game, max_steps=4)
    try:
        scene = probe.reset(seed=3)
        assert game.task and scene.actions and not scene.done
        for _ in range(3):
            scene, _ = probe.step(scene.actions[0])
        assert probe.prompt().count("seen: ") == 2 and 0 <= scene.score <= 1
    finally:
        game.close()


@pytest.mark.skipif(without("textworld"), reason="textworld is not installed: pip install 'flashlla[agents]'")
def test_textworld():
    play_a_bit(TextWorldGame())


@pytest.mark.skipif(
    without("scienceworld"), reason="scienceworld is not installed: pip install 'flashlla[agents]'"
)
@pytest.mark.skipif(shutil.which("java") is None, reason="ScienceWorld needs Java")
def test_scienceworld():
    play_a_bit(ScienceWorldGame())
