"""The tokenizer and the grammar of prompts and answers."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashlla.experiments.worlds import (
    Augmentation,
    PromptStyle,
    read_answer,
    tokenizer,
    write_answer,
    write_prompt,
)
from flashlla.experiments.worlds.augmentation import distractors
from flashlla.experiments.worlds.base import rows
from flashlla.experiments.worlds.house import MiniHouse
from flashlla.experiments.worlds.shop import MiniShop
from flashlla.experiments.worlds.sokoban import Sokoban


def test_vocabulary_is_small_and_has_no_word_twice():
    words = tokenizer().words
    assert 200 <= len(words) <= 500 and len(set(words)) == len(words)
    assert words[tokenizer().pad] == "<pad>" and words[tokenizer().newline] == "\n"


@given(st.lists(st.integers(0, len(tokenizer()) - 1)))
def test_any_tokens_are_a_text_that_gives_them_back(tokens):
    assert tokenizer().encode(tokenizer().decode(tokens)) == tokens


def test_a_strange_word_is_named():
    with pytest.raises(ValueError, match="'zebra'"):
        tokenizer().encode("the zebra is closed.")


def test_prompt_has_what_the_style_asks_for():
    past = [("you hold apple 1.", "go to desk 1"), ("you hold pen 1.", "invalid action")]
    arguments = ("put one pen in the desk.", 2, 50, past, "it is closed.", ["open desk 1", "use lamp"])
    assert write_prompt(PromptStyle(history=1), *arguments) == (
        "task: put one pen in the desk.\nstep: 2 of 50.\nseen: you hold pen 1.\ndone: invalid action.\n"
        "now: it is closed.\nactions: open desk 1; use lamp.\n"
    )
    written = write_prompt(PromptStyle(history=0, plan=True, numbered=True), *arguments)
    assert written.endswith("now: it is closed.\nsubgoal: None.\nactions: 0 open desk 1; 1 use lamp.\n")
    assert "seen" not in written
    assert write_prompt(PromptStyle(), *arguments).count("seen: ") == 2
    assert "subgoal: find pen.\n" in write_prompt(PromptStyle(plan=True), *arguments, subgoal="find pen")


def test_answers_are_written_and_read():
    for plan in (False, True):
        for think in (False, True):
            style = PromptStyle(plan=plan, think=think)
            text = write_answer(style, "use lamp", "find lamp", True, "goal: look at one pen.")
            answer = read_answer(text)
            assert answer.action == "use lamp"
            assert answer.think == ("goal: look at one pen." if think else None)
            assert (answer.switch, answer.subgoal) == (("KEEP", "find lamp") if plan else (None, None))
    assert read_answer("use lamp").action == "use lamp"
    assert read_answer("<subgoal>find pen</subgoal><action>use lamp").switch == "KEEP"
    assert read_answer("<switch>SWITCH</switch><subgoal>find pen</subgoal>").switch == "SWITCH"
    with pytest.raises(ValueError, match="history=51"):
        PromptStyle(history=51)


def one(world, **fields):
    state = world.generate(np.random.default_rng(0))
    for name, value in fields.items():
        state[name] = value
    return rows(state)[0]


@pytest.mark.parametrize(
    ("world", "fields", "volume", "count"),
    (
        (MiniHouse(), {}, 300, 25),
        (MiniHouse(), {}, 200, 16),
        (Sokoban(), {}, 80, 8),
        (Sokoban(), {}, 5, 1),
        (MiniShop(), {"page": 0}, 40, 0),
        (MiniShop(), {"page": 1}, 40, 2),
        (MiniShop(), {"page": 1}, 300, 10),
        (MiniShop(), {"page": 2}, 30, 1 + 1),
        (MiniShop(), {"page": 2}, 100, 4 + 3),
        (MiniShop(), {"page": 2}, 0, 0),
    ),
)
def test_as_many_distractors_as_in_the_paper(world, fields, volume, count):
    assert len(distractors(world, one(world, **fields), volume, itertools.repeat(0.5))) == count


def test_distractors_of_sokoban_are_outside_and_at_the_end():
    world, row = Sokoban(), one(Sokoban())
    lines = world.describe(row)
    told = Augmentation(200).augment(world, row, lines, [1, 0, 0])
    assert told[: len(lines)] == lines and len(told) == len(lines) + 20
    for line in told[len(lines) :]:
        assert max(int(line[1]), int(line[3])) >= 6 and "unreachable" in line


def test_controls_are_as_long_as_the_distractors():
    world = MiniHouse()
    row = one(world)
    told = {
        kind: Augmentation(120, kind=kind).augment(world, row, world.describe(row), [1, 0, 0])
        for kind in ("distractors", "paraphrase", "noise")
    }
    lengths = {kind: [len(tokenizer().encode(line)) for line in lines] for kind, lines in told.items()}
    assert sorted(lengths["noise"]) == sorted(lengths["distractors"])
    assert 0 <= sum(lengths["distractors"]) - sum(lengths["paraphrase"]) <= 1
    added = " ".join(line for line in told["paraphrase"] if line not in world.describe(row))
    words = {word for text in world.paraphrases(row) for word in text.replace(".", "").split()}
    assert {word.strip(".,") for word in added.split()} <= words


def test_share_of_augmented_episodes_is_the_probability():
    world = MiniHouse()
    row = one(world)
    lines, augmentation = world.describe(row), Augmentation(60, 0.5)
    changed = np.array(
        [[augmentation.augment(world, row, lines, [s, 0, t]) != lines for t in range(3)] for s in range(400)]
    )
    assert (changed.all(1) == changed.any(1)).all() and 0.42 < changed[:, 0].mean() < 0.58
    for wrong in ({"volume": -1}, {"volume": 1, "probability": 2}, {"volume": 1, "kind": "magic"}):
        with pytest.raises(ValueError):
            Augmentation(**wrong)
