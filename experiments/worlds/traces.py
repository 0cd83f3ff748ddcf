"""What a language model is fine-tuned on: turns of the expert, or of a noisy one, in any style."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .base import noisy_codes
from .errors import check_choice
from .prompts import write_answer
from .vector import AutoresetMode, WorldVectorEnv


class Turn(NamedTuple):
    """A prompt and the answer to learn, with where it comes from.

    Attributes:
        row: the episode, from 0.
        step: of the episode, from 0.
        prompt, answer: text.
        success: whether the episode came to a success in the end.
    """

    row: int
    step: int
    prompt: str
    answer: str
    success: bool


def expert_turns(
    env: WorldVectorEnv, noise: float = 0.0, labels: str = "done", seed: int | None = None
) -> list[Turn]:
    """One episode of each row, played by the expert.

    With noise a share of the actions is drawn from all that are admissible, and the expert goes on from
    where they lead. ``labels="done"`` writes what was done into the answers, ``"expert"`` what the expert
    would have done, which teaches to recover. Subgoals are the expert's own either way; the prompts show the
    one that was written last, and an answer keeps it as long as it is the same.

    Args:
        env: with observations in words and ``autoreset="Disabled"``; its style is that of the text.
        seed: of the environment and the noise.

    Raises:
        ValueError: the environment writes no text or resets by itself, or labels is unknown.
    """
    check_choice("labels", labels, ("done", "expert"))
    if env.observation == "array" or env.autoreset != AutoresetMode.DISABLED:
        raise ValueError("expert_turns needs observation='text' or 'tokens' and autoreset='Disabled'")
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    n = env.num_envs
    subgoals: list[str | None] = [None] * n
    turns, running, success = [], np.ones(n, bool), np.zeros(n, bool)
    while running.any():
        prompts, texts = env.prompts(subgoals), env.actions()
        codes, advice = noisy_codes(env.world, env.state, noise, rng)
        done = env.index_of(codes)
        told = done if labels == "done" else env.index_of([a.code for a in advice])
        for row in np.flatnonzero(running):
            subgoal, keep = advice[row].subgoal, advice[row].subgoal == subgoals[row]
            action = str(told[row]) if env.style.numbered else texts[row][told[row]]
            answer = write_answer(env.style, action, subgoal, keep, advice[row].thought)
            turns.append((int(row), int(env.steps[row]), prompts[row], answer))
            subgoals[row] = subgoal
        _, _, terminated, truncated, info = env.step(done)
        running, success = ~(terminated | truncated), info["success"]
    return [Turn(*turn, bool(success[turn[0]])) for turn in turns]
