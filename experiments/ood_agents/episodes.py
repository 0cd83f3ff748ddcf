"""Episodes that a policy plays: a prompt and an answer a turn, until the world comes to an end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flashlla.models import LanguageModel
from flashlla.models.rl import (
    Block,
    BlockKind,
    Grammar,
    Response,
    free_text,
    join_responses,
    phrase_table,
    respond,
)

from ..worlds import WorldVectorEnv, tokenizer
from .domains import shown

THOUGHT = 28  # tokens of a thought at most; the expert's have fewer
EVERY = 4  # tokens between two looks for rows that are finished


class Episodes(NamedTuple):
    """Episodes in turns; those of all episodes at one step are neighbours.

    Attributes:
        turns: answers of the policy, a row a turn.
        episode: int64 ``[turns]``, the episode that a turn belongs to, on the CPU.
        success: bool ``[episodes]``.
        steps: int64 ``[episodes]``, of each.
        tasks: a text an episode.
        prompts, observations, actions: a text a turn.
        seconds: that playing took, the policy's answers included.
    """

    turns: Response
    episode: Tensor
    success: Tensor
    steps: Tensor
    tasks: list[str]
    prompts: list[str]
    observations: list[str]
    actions: list[str]
    seconds: float

    def transcript(self, number: int) -> str:
        """One episode as text: the task, what was seen, thought and done at every step, and how it ended."""
        lines = [f"task: {self.tasks[number]}"]
        for turn in (self.episode == number).nonzero()[:, 0].tolist():
            lines += [self.observations[turn], f"> {self._thought(turn)}{self.actions[turn]}"]
        return "\n".join([*lines, "success" if self.success[number] else "failure"])

    def _thought(self, turn: int) -> str:
        answer = tokenizer().decode(self.turns.taken[turn][self.turns.mask[turn]].tolist())
        thought, tag, _ = answer.partition("</think>")
        return f"{thought} / " if tag else ""


@torch.no_grad()
def play(
    model: LanguageModel,
    env: WorldVectorEnv,
    seeds: np.ndarray,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
) -> Episodes:
    """One episode of every row of ``env``; only admissible actions can be answered.

    Args:
        env: with text and ``autoreset="Disabled"``.
        seeds: of the episodes, int64 ``[rows]``; those with equal ones begin alike.
        generator: source of the answers, on the model's device.
        temperature: of the answers, 0 or above.
    """
    begun, device = time.perf_counter(), model.embedding.weight.device
    opening = tokenizer().encode("<think>" if env.style.think else "<action>")
    _, info = env.reset(options={"episode_seeds": seeds})
    tasks, responses, episode, texts = list(info["task"]), [], [], []
    running = np.ones(env.num_envs, bool)
    while running.any():
        (rows,) = np.nonzero(running)
        seen, known = env.render(), env.actions()
        prompts = [shown(prompt) for prompt in env.prompts()]
        tokens = [torch.tensor(tokenizer().encode(prompts[row]) + opening, device=device) for row in rows]
        grammar = answer_grammar([known[row] for row in rows], env.style.think, device)
        response = respond(
            model,
            tokens,
            grammar,
            temperature=temperature,
            generator=generator,
            check_every=EVERY,
        )
        chosen = response.choices[:, -1].cpu().numpy()
        texts += [(prompts[i], seen[i], known[i][n]) for i, n in zip(rows, chosen, strict=True)]
        responses.append(response)
        episode.append(torch.from_numpy(rows))
        actions = np.full(env.num_envs, env.invalid)
        actions[rows] = chosen
        *_, terminated, truncated, info = env.step(actions)
        running = ~(terminated | truncated)
    found = (torch.from_numpy(info[name]) for name in ("success", "steps"))
    columns = (list(column) for column in zip(*texts, strict=True))
    turns = join_responses(responses)
    return Episodes(turns, torch.cat(episode), *found, tasks, *columns, time.perf_counter() - begun)


def answer_grammar(
    actions: Sequence[Sequence[str]], think: bool, device: torch.device | str | None = None
) -> Grammar:
    """One of the actions of each row, behind a thought if asked for; the first tag is in the prompt."""
    tokens = tokenizer()
    end_of_thought, end = tokens.encode("</think></action>")
    phrases = phrase_table([[tokens.encode(action) for action in row] for row in actions])
    start = tokens.encode("<action>") if think else ()
    blocks = [Block(phrases, BlockKind.ACTION, start=start, end=end)]
    if think:
        blocks.insert(0, free_text(THOUGHT, BlockKind.ACTION, end=end_of_thought))
    return Grammar(blocks, len(actions), len(tokens), device)
