"""Episodes of a policy: played together, as arrays, in numbers and in words."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flashlla.models import LanguageModel
from flashlla.models.rl import BlockKind, Response, join_responses, respond

from ..worlds import tokenizer
from .task import OTHER, SUBGOALS, SWITCH, Task, grammar, prompt_tokens, signs, with_signs


class Episodes(NamedTuple):
    """Turns of several episodes, a row a turn, in the order in which they were made.

    Attributes:
        texts: prompts and answers.
        episode, turn: int64 ``[rows]``, both from 0.
        rewards: ``[rows]``.
        observed: int64 ``[rows]``, numbers of observations.
        old: int64 ``[rows]``, the subgoal in front of the turn, a number of SUBGOALS; -1 for none.
        success: bool ``[episodes]``.
        observations: in words, those that were made.
        tasks: in words, of the episodes.
        seconds: that it took, of environments and policy together.
    """

    texts: Response
    episode: Tensor
    turn: Tensor
    rewards: Tensor
    observed: Tensor
    old: Tensor
    success: Tensor
    observations: tuple[str, ...]
    tasks: tuple[str, ...]
    seconds: float

    @property
    def switched(self) -> Tensor:
        """Turns that begin with SWITCH, bool ``[rows]``."""
        return self.texts.taken[:, 0] == SWITCH

    @property
    def made(self) -> Tensor:
        """Turns that there were, bool ``[episodes, turns]``."""
        return self.grid(torch.ones_like(self.turn, dtype=torch.bool))

    def grid(self, rows: Tensor) -> Tensor:
        """From rows to ``[episodes, turns]``, 0 where an episode is over."""
        cells = rows.new_zeros(len(self.success), int(self.turn.max()) + 1)
        return cells.index_put((self.episode, self.turn), rows)

    def rows(self, grid: Tensor) -> Tensor:
        """The inverse of :meth:`grid`."""
        return grid[self.episode, self.turn]


@torch.no_grad()
def play(
    actor: LanguageModel,
    task: Task,
    seeds: Sequence[int],
    *,
    plan: bool,
    generator: torch.Generator,
    temperature: float = 1.0,
) -> Episodes:
    """An episode for each seed; equal seeds are equal houses."""
    begun, count, device = time.perf_counter(), len(seeds), actor.embedding.weight.device
    env = task.env(count, plan)
    _, info = env.reset(options={"episode_seeds": seeds})
    old, running, turns = np.full(count, -1), np.ones(count, bool), []
    names, numbers = [signs(text) for text in info["task"]], {}  # the latter are those of observations
    while running.any():
        rows = np.flatnonzero(running)
        prompts = env.prompts([SUBGOALS[goal] if goal >= 0 else None for goal in old])
        known, seen = env.actions(), env.render()
        actions = [[with_signs(text, names[row]) for text in known[row]] for row in rows]
        before = torch.from_numpy(old[rows])
        out = respond(
            actor,
            [torch.tensor(prompt_tokens(with_signs(prompts[r], names[r])), device=device) for r in rows],
            grammar(actions, before if plan else None, device),
            temperature=temperature,
            generator=generator,
            check_every=1 if device.type == "cpu" else None,
        )
        choices, chosen = out.choices.cpu().numpy(), np.full(count, env.invalid)
        chosen[rows] = choices[:, -1]
        if plan:
            old[rows] = np.where(choices[:, 1] > 0, choices[:, 1] - 1, old[rows])
        steps = env.steps[rows].copy()
        _, rewards, terminated, truncated, info = env.step(chosen)
        observed = [numbers.setdefault(seen[row], len(numbers)) for row in rows]
        turns.append((out, rows, steps, rewards[rows].astype(np.float32), np.array(observed), before.numpy()))
        running = ~(terminated | truncated)
    texts, *columns = zip(*turns, strict=True)
    columns = [torch.from_numpy(np.concatenate(column)).to(device) for column in columns]
    success = torch.from_numpy(info["success"]).to(device)
    words = tuple(numbers), tuple(info["task"])
    return Episodes(join_responses(texts), *columns, success, *words, time.perf_counter() - begun)


def numbers(episodes: Episodes) -> dict[str, Any]:
    """Success and length of episodes, steps a second, and how often their subgoals were switched where they
    could have been kept; with the mean length of segments.
    """
    turns, later = len(episodes.turn), episodes.turn > 0
    plans = bool((episodes.texts.kinds == BlockKind.SWITCH).any())
    boundaries = (episodes.switched | ~later).sum().item()
    switches = episodes.switched[later].double().mean().item()
    return {
        "success": episodes.success.double().mean().item(),
        "turns": turns / len(episodes.success),
        "switch_rate": switches if plans else None,
        "segment": turns / boundaries if plans else None,
        "steps": turns,
        "steps_per_second": turns / episodes.seconds,
    }


def transcript(episodes: Episodes, number: int) -> str:
    """An episode in words: the task, and a line for every turn."""
    texts, task, lines = episodes.texts, episodes.tasks[number], []
    words = {sign: name for name, sign in signs(task).items()} | {OTHER: "another"}
    for row in (episodes.episode == number).nonzero()[:, 0].tolist():
        answer = tokenizer().decode(texts.taken[row][texts.mask[row]].tolist())
        for end, sign in (("KEEP", "KEEP,"), ("SWITCH", "SWITCH,"), ("</subgoal>", ", "), ("</action>", "")):
            answer = answer.replace(end, sign)
        for sign, name in words.items():
            answer = answer.replace(sign, name)
        lines.append(f"{episodes.observations[episodes.observed[row]]} > {answer}")
    outcome = "success" if episodes.success[number] else "no success"
    return "\n".join([task, *lines, f"{outcome} after {len(lines)} steps"])
