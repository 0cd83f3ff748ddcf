"""All worlds alike: solved by their experts, behind gymnasium's interfaces, the same alone and together."""

import re
import time

import gymnasium
import numpy as np
import pytest
from gymnasium.utils import env_checker
from gymnasium.vector import AutoresetMode

from flashlla.experiments.worlds import (
    WORLDS,
    Augmentation,
    PromptStyle,
    expert_turns,
    noisy_codes,
    read_answer,
    rows,
    tokenizer,
)
from flashlla.experiments.worlds.vector import PLAIN_TOKENS

every_world = pytest.mark.parametrize("name", WORLDS)


def make(name, num_envs, **options):
    return gymnasium.make_vec(f"flashlla/{name}-v0", num_envs=num_envs, **options)


def advised(env):
    return env.index_of([env.world.expert(row).code for row in rows(env.state)])


def random_actions(env, info, rng, invalid=0.1):
    """Admissible ones, each as likely as another, and some that are not."""
    mask = info["action_mask"]
    chosen = np.where(mask, rng.random(mask.shape), -1).argmax(1)
    return np.where(rng.random(env.num_envs) < invalid, env.invalid, chosen)


def sentences(text):
    return re.split(r"(?<=[.:]) ", text)


@every_world
def test_the_expert_solves_every_episode(name):
    env = make(name, 300, autoreset="Disabled")
    _, info = env.reset(seed=1)
    done = np.zeros(300, bool)
    while not done.all():
        actions = advised(env)
        assert info["action_mask"][np.arange(300), actions][~done].all()
        _, rewards, terminated, truncated, info = env.step(actions)
        assert np.array_equal(rewards, np.where(terminated & ~done, 10.0, 0.0))
        done = terminated | truncated
    assert info["success"].all() and not truncated.any()


def test_the_expert_solves_four_subtasks():
    env = make("MiniHouse", 200, autoreset="Disabled", subtasks=4, max_steps=99)
    env.reset(seed=2)
    done = np.zeros(200, bool)
    while not done.all():
        _, _, terminated, truncated, info = env.step(advised(env))
        done = terminated | truncated
    assert info["success"].all()


@every_world
def test_a_noisy_expert_recovers_or_is_cut_off_but_is_never_lost(name):
    env, rng = make(name, 100, autoreset="Disabled", max_steps=99), np.random.default_rng(0)
    env.reset(seed=2)
    done = np.zeros(100, bool)
    while not done.all():
        codes, advice = noisy_codes(env.world, env.state, 0.4, rng)
        actions = env.index_of(codes)
        assert (actions < env.invalid).all() and all(a.subgoal and a.thought for a in advice)
        _, _, terminated, truncated, info = env.step(actions)
        done = terminated | truncated
    assert 0.3 < info["success"].mean() <= 1


@every_world
def test_admissible_actions_are_never_refused_and_texts_fit(name):
    env, rng = make(name, 40, observation="text"), np.random.default_rng(0)
    tokens = tokenizer()
    texts, info = env.reset(seed=3)
    for _ in range(40):
        assert env.observation_space.contains(texts)
        assert info["action_mask"].any(1).all() and not info["action_mask"][:, -1].any()
        for text, actions, codes in zip(texts, info["actions"], info["action_codes"], strict=True):
            assert len(set(actions)) == len(actions) == (codes >= 0).sum()
            assert len(tokens.encode(text)) <= PLAIN_TOKENS
        chosen = random_actions(env, info, rng, invalid=0)
        allowed = env.world.admissible(env.state)
        assert (
            allowed.sum(1).max() <= env.world.choices and (allowed.sum(1) == info["action_mask"].sum(1)).all()
        )
        written = [actions[i] for actions, i in zip(info["actions"], chosen, strict=True)]
        assert np.array_equal(env.indices(written), chosen)
        texts, _, _, _, info = env.step(chosen)
        assert not info["invalid"].any()


@every_world
def test_what_is_not_admissible_costs_a_tenth_and_changes_nothing_else(name):
    env = make(name, 20, observation="text")
    _, info = env.reset(seed=4)
    before, texts = env.state.copy(), env.render()
    wrong = env.indices(["fly to the moon", "", *["go to nowhere 99"] * 18])
    assert (wrong == env.invalid).all()
    _, rewards, terminated, truncated, after = env.step(wrong)
    assert (rewards == -0.1).all() and after["invalid"].all() and (after["steps"] == 1).all()
    assert np.array_equal(env.state, before) and env.render() == texts
    assert not (terminated | truncated).any() and np.array_equal(after["action_codes"], info["action_codes"])
    beyond = info["action_mask"].sum(1)  # the first index behind the list
    assert (env.step(beyond)[1] == -0.1).all()
    assert "done: invalid action." in env.prompts()[0]


@every_world
def test_together_is_as_alone(name):
    env, rng = make(name, 6, observation="text", max_steps=12), np.random.default_rng(0)
    seeds = list(range(50, 56))
    texts, info = env.reset(options={"episode_seeds": seeds})
    others = [make(name, 1, observation="text", max_steps=12) for _ in seeds]
    alone = [
        other.reset(options={"episode_seeds": [seed]}) for other, seed in zip(others, seeds, strict=True)
    ]
    for _ in range(40):  # over several episodes, each begun when the one before ends
        assert texts == tuple(text for (text,), *_ in alone)
        for i, (*_, other) in enumerate(alone):
            assert all(info[key][i] == other[key][0] for key in ("task", "actions", "score", "steps"))
        actions = random_actions(env, info, rng)
        texts, rewards, terminated, truncated, info = env.step(actions)
        alone = [other.step(actions[i : i + 1]) for i, other in enumerate(others)]
        for i, (_, reward, end, cut, _) in enumerate(alone):
            assert (reward[0], end[0], cut[0]) == (rewards[i], terminated[i], truncated[i])
    assert np.array_equal(np.concatenate([other.state for other in others]), env.state)


@every_world
def test_seeds_decide_and_episodes_leave_nothing_behind(name):
    def played(env, steps, seed):
        rng, seen = np.random.default_rng(seed), []
        observation, info = env.reset(seed=seed)
        for _ in range(steps):
            step = env.step(random_actions(env, info, rng))
            seen.append(step)
            observation, info = step[0], step[-1]
        return seen, observation

    env = make(name, 8, max_steps=10)
    first, _ = played(env, 35, seed=5)
    again, _ = played(env, 35, seed=5)  # in the same object, after other episodes
    assert env_checker.data_equivalence(first, again, exact=True)
    other, _ = played(make(name, 8, max_steps=10), 35, seed=6)
    assert not np.array_equal(first[0][0], other[0][0])

    # The second episode of a row is the same whatever was done in the first.
    kept = []
    for seed in (1, 2):
        _, info = env.reset(options={"episode_seeds": range(8)})
        rng = np.random.default_rng(seed)
        for _ in range(seed):
            *_, info = env.step(random_actions(env, info, rng))
        env.reset(options={"reset_mask": np.ones(8, bool)})
        kept.append(env.state.copy())
    assert np.array_equal(*kept)


@every_world
def test_both_ways_to_begin_again(name):
    env = make(name, 5, max_steps=2)
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    _, info = env.reset(seed=0)
    wrong = np.full(5, env.invalid)
    assert not env.step(wrong)[3].any() and env.step(wrong)[3].all()
    _, rewards, _, truncated, info = env.step(wrong)
    assert (rewards == 0).all() and not truncated.any() and (info["steps"] == 0).all()

    env = make(name, 5, max_steps=2, autoreset="Disabled")
    assert env.metadata["autoreset_mode"] == AutoresetMode.DISABLED
    env.reset(seed=0)
    for _ in range(4):
        _, rewards, _, truncated, info = env.step(wrong)
    assert (rewards == 0).all() and truncated.all() and (info["steps"] == 2).all()
    mask = np.array([True, False, True, False, False])
    before = env.state.copy()
    _, info = env.reset(options={"reset_mask": mask})
    assert np.array_equal(info["steps"], np.where(mask, 0, 2))
    assert np.array_equal(env.state[~mask], before[~mask]) and not np.array_equal(env.state, before)


@every_world
def test_members_of_a_group_have_one_episode(name):
    env = make(name, 6, observation="text")
    texts, info = env.reset(options={"episode_seeds": np.repeat([3, 4], 3)})
    assert len(set(texts[:3])) == 1 and len(set(info["task"][3:])) == 1
    assert not np.array_equal(env.state[0], env.state[3])


@every_world
@pytest.mark.parametrize("observation", ("array", "text", "tokens"))
@pytest.mark.filterwarnings("error")
def test_gymnasium_is_content(name, observation):
    env_checker.check_env(gymnasium.make(f"flashlla/{name}-v0", observation=observation).unwrapped)
    env = make(name, 3, observation=observation)
    assert env.spec.id == f"flashlla/{name}-v0"
    for check in (
        env_checker.check_reset_seed_determinism,
        env_checker.check_reset_options,
        env_checker.check_reset_return_type,
        env_checker.check_reset_return_info_deprecation,
        env_checker.check_seed_deprecation,
    ):
        check(env)
    env_checker.check_returned_data_not_reused(make(name, 1, observation=observation))
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(
        make(name, 3, observation=observation, max_steps=4)
    )
    env.reset(seed=0)
    for _ in range(5):
        env.step(np.zeros(3, np.int64))
    synchronous = make(name, 2, observation=observation, vectorization_mode="sync")
    observed, _ = synchronous.reset(seed=0)
    assert synchronous.observation_space.contains(observed)


@every_world
def test_tokens_are_those_of_the_text(name):
    tokens, padding = tokenizer(), tokenizer().pad
    text, token = (make(name, 10, observation=kind) for kind in ("text", "tokens"))
    texts, told = text.reset(seed=7)
    ids, info = token.reset(seed=7)
    assert token.observation_space.contains(ids)
    for i in range(10):
        assert tokens.decode(ids[i][ids[i] != padding]) == texts[i]
        written = info["task_tokens"][i]
        assert tokens.decode(written[written != padding]) == told["task"][i]
        actions = [tokens.decode(a[a != padding]) for a in info["action_tokens"][i] if a.any()]
        assert tuple(actions) == told["actions"][i]


@every_world
def test_arrays_show_what_the_text_shows(name):
    env, rng = make(name, 200, observation="text"), np.random.default_rng(0)
    _, info = env.reset(seed=8)
    for _ in range(6):
        _, _, _, _, info = env.step(random_actions(env, info, rng, invalid=0))
    arrays = [array.tobytes() for array in env.world.observe(env.state)]
    texts = list(zip(env.render(), info["task"], strict=True))
    by_array = {}
    for array, text in zip(arrays, texts, strict=True):
        assert by_array.setdefault(array, text) == text


@every_world
@pytest.mark.parametrize("plan", (False, True))
@pytest.mark.parametrize("think", (False, True))
def test_traces_are_in_the_style_and_replay(name, plan, think):
    style = PromptStyle(history=1, plan=plan, think=think)
    options = {"observation": "text", "autoreset": "Disabled", "prompt": style}
    env = make(name, 5, **options)
    turns = expert_turns(env, noise=0.2, seed=9)
    replay = make(name, 5, **options)
    replay.reset(seed=9)
    subgoals, tokens = [None] * 5, tokenizer()
    for step in range(max(turn.step for turn in turns) + 1):
        now = {turn.row: turn for turn in turns if turn.step == step}
        prompts, texts = replay.prompts(subgoals), [""] * 5
        for row, turn in now.items():
            assert turn.prompt == prompts[row]
            assert tokens.decode(tokens.encode(turn.prompt + turn.answer)) == turn.prompt + turn.answer
            answer = read_answer(turn.answer)
            assert (answer.think is not None) == think and (answer.subgoal is not None) == plan
            if plan:
                assert (answer.switch == "KEEP") == (answer.subgoal == subgoals[row])
            subgoals[row], texts[row] = answer.subgoal, answer.action
        *_, info = replay.step(replay.indices(texts))
    assert not info["invalid"].any()
    assert all(info["success"][turn.row] == turn.success for turn in turns)


@every_world
def test_a_trace_may_have_the_labels_of_the_expert_and_numbers(name):
    style = PromptStyle(numbered=True)
    env = make(name, 20, observation="text", autoreset="Disabled", prompt=style)
    done, told = (expert_turns(env, noise=0.5, labels=labels, seed=1) for labels in ("done", "expert"))
    assert [turn.prompt for turn in done] == [turn.prompt for turn in told]
    assert 0.1 < np.mean([a.answer != b.answer for a, b in zip(done, told, strict=True)]) < 0.6
    for turn in told:
        listed = turn.prompt.rsplit("actions: ", 1)[1].rstrip(".\n").split("; ")
        assert listed[int(read_answer(turn.answer).action)].startswith(f"{read_answer(turn.answer).action} ")


@every_world
@pytest.mark.parametrize("kind", ("distractors", "paraphrase", "noise"))
def test_augmentation_is_in_the_text_alone(name, kind):
    augmentation = Augmentation(120, 0.5, kind)
    plain, augmented = (
        make(name, 20, observation="text"),
        make(name, 20, observation="text", augmentation=augmentation),
    )
    rng = np.random.default_rng(0)
    texts, info = plain.reset(seed=10)
    others, same = augmented.reset(seed=10)
    changed = np.zeros(20, bool)
    for _ in range(15):
        assert augmented.observation_space.contains(others)
        assert all(tokenizer().decode(tokenizer().encode(text)) == text for text in others)
        for key in info:
            assert np.array_equal(info[key], same[key]), key
        assert np.array_equal(plain.state, augmented.state)
        for text, other in zip(texts, others, strict=True):
            lines = iter(sentences(other))
            assert all(line in lines for line in sentences(text)), "the sentences stay, in their order"
        changed |= np.array(texts) != np.array(others)
        actions = random_actions(plain, info, rng)
        texts, *outcome, info = plain.step(actions)
        others, *equal, same = augmented.step(actions)
        assert all(np.array_equal(a, b) for a, b in zip(outcome, equal, strict=True))
    assert changed.any()


@every_world
def test_a_step_is_fast(name):
    env, rng = make(name, 128), np.random.default_rng(0)
    _, info = env.reset(seed=0)
    seconds = []
    for _ in range(60):
        actions = random_actions(env, info, rng)
        begin = time.process_time()
        *_, info = env.step(actions)
        seconds.append(time.process_time() - begin)
    assert np.median(seconds) < 0.02, "four times what a free core of ours needs at most"


@pytest.mark.parametrize(
    ("options", "words"),
    (
        ({"observation": "pictures"}, "observation='pictures' is unknown"),
        ({"autoreset": "SameStep"}, "autoreset='SameStep' is unknown"),
        ({"max_steps": 100}, "max_steps=100 must be 1 to 99"),
        ({"subtasks": 5}, "subtasks=5 must be 1 to 4"),
        ({"receptacles": (4, 9)}, "receptacles="),
        ({"tasks": ("cook",)}, "tasks='cook' is unknown"),
        ({"tasks": ()}, "must name one at least"),
    ),
)
def test_arguments_that_do_not_fit(options, words):
    with pytest.raises(ValueError, match=words):
        make("MiniHouse", 2, **options)


def test_calls_that_do_not_fit():
    env = make("MiniHouse", 2)
    with pytest.raises(ValueError, match="reset first"):
        env.step(np.zeros(2, np.int64))
    env.reset(seed=0)
    for actions in ([0, 99], [0], [0.5, 1.0]):
        with pytest.raises(ValueError, match="are not ints"):
            env.step(np.array(actions))
    with pytest.raises(ValueError, match="keeps no history"):
        env.prompts()
    with pytest.raises(ValueError, match="episode_seeds has shape"):
        env.reset(options={"episode_seeds": [1]})
    with pytest.raises(ValueError, match="reset_mask has shape"):
        env.reset(options={"reset_mask": np.ones(3, bool)})
    with pytest.raises(ValueError, match="expert_turns needs"):
        expert_turns(env)
