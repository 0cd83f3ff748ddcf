"""Household tasks, and how turns become tokens: short prompts, and answers of up to three blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import gymnasium
import torch
from torch import Tensor

from flashlla.models.rl import NONE, Block, BlockKind, Grammar, phrase_table

from ..worlds import Answer, PromptStyle, WorldVectorEnv, tokenizer
from ..worlds.house import OBJECTS, RECEPTACLES

SIGNS = 4  # of each kind: a task has at most four subtasks
THINGS = tuple(f"(0,{i})" for i in range(SIGNS))  # signs that the worlds have for coordinates
PLACES = tuple(f"(1,{i})" for i in range(SIGNS))
OTHER = "(2,0)"  # all things that the task does not name
VERBS = ("find", "take", "clean", "heat", "cool")
SUBGOALS = (  # what the scripted expert writes, whether it makes sense or not
    *(f"{verb} {thing}" for verb in VERBS for thing in (*THINGS, OTHER)),
    *(f"put {thing} in {place}" for thing in (*THINGS, OTHER) for place in (*PLACES, *RECEPTACLES[1:])),
    "find lamp",
    "use lamp",
)
KEEP, SWITCH, SUBGOAL_END, ACTION_END = (
    tokenizer().encode(word)[0] for word in ("KEEP", "SWITCH", "</subgoal>", "</action>")
)
NAME = re.compile(rf"\b({'|'.join(OBJECTS[1:])})( \d+)?\b|\b({'|'.join(RECEPTACLES[1:])})\b")
ROOM = re.compile(r"you see [^.]*\.")
LEFT_OUT = frozenset(
    tokenizer().encode("task: step of the one you are middle room see at it is in to from . , ;")
)


@dataclass(frozen=True)
class Task:
    """Which tasks there are in MiniHouse, and what an agent is shown of the past.

    Attributes:
        subtasks: in a row; each counts only when those before are done, and the reward comes with the last.
        history: pairs of an observation and an action in the prompt.
        max_steps: after so many an episode is over, without a reward.
        kinds: of tasks.
        receptacles: least and most of them.
    """

    subtasks: int
    history: int
    max_steps: int
    kinds: tuple[str, ...]
    receptacles: tuple[int, int]

    def env(self, episodes: int, plan: bool) -> WorldVectorEnv:
        """So many houses, whose finished episodes wait."""
        return gymnasium.make_vec(
            "flashlla/MiniHouse-v0",
            num_envs=episodes,
            observation="text",
            autoreset="Disabled",
            prompt=PromptStyle(history=self.history, plan=plan),
            max_steps=self.max_steps,
            subtasks=self.subtasks,
            receptacles=self.receptacles,
            tasks=self.kinds,
        ).unwrapped


def signs(task: str) -> dict[str, str]:
    """The signs of the things and places that a task names, in their order."""
    found: dict[str, str] = {}
    for thing, _, place in NAME.findall(task):
        kinds, name = (THINGS, thing) if thing else (PLACES, place)
        found.setdefault(name, kinds[sum(sign in kinds for sign in found.values())])
    return found


def with_signs(text: str, names: Mapping[str, str]) -> str:
    """A text with signs in place of names, so that what is learned of one thing is known of all.

    Things lose their numbers, and all that the task does not name become one.
    """
    return NAME.sub(lambda name: names.get(name[1] or name[3], OTHER if name[1] else name[0]), text)


def telegram(text: str) -> list[int]:
    """The tokens of a text without words that say nothing: half of them."""
    return [token for token in tokenizer().encode(text) if token not in LEFT_OUT]


def prompt_tokens(prompt: str) -> list[int]:
    """A prompt with signs, without its list of actions and, in the first turn, of receptacles: the grammar of
    answers has both already.
    """
    return telegram(ROOM.sub("", prompt[: prompt.rindex("actions:")]))


def answer_tokens(answer: Answer) -> list[int]:
    """An answer without the tags that open blocks: KEEP or SWITCH, subgoal, its end, action, its end."""
    action = [*telegram(answer.action), ACTION_END]
    if answer.subgoal is None:
        return action
    return [*telegram(answer.switch), *telegram(answer.subgoal), SUBGOAL_END, *action]


@lru_cache(1)
def subgoal_table() -> Tensor:
    """The tokens of all subgoals, int64 ``[subgoals, length]``."""
    return phrase_table([[telegram(text) for text in SUBGOALS]])[0]


def grammar(
    actions: Sequence[Sequence[str]], old: Tensor | None, device: torch.device | str | None = None
) -> Grammar:
    """What may be answered in a turn of several episodes.

    Args:
        actions: the admissible ones of each episode, with signs. Of equal ones the first is done.
        old: int64 ``[episodes]``, numbers of the subgoals that are pursued, -1 for none, on the CPU; None is
            for answers without a plan.

    Returns:
        The last block is the action, numbered as in ``actions``. With a plan the first is KEEP (0) or SWITCH
        (1), and the second the old subgoal (0) or a new one (its number and 1).
    """
    table = phrase_table([[telegram(text) for text in row] for row in actions])
    blocks = [Block(table, BlockKind.ACTION, end=ACTION_END)]
    if old is not None:
        some = old[:, None] >= 0
        keep = torch.where(some, KEEP, NONE)
        decisions = torch.stack([keep, torch.full_like(keep, SWITCH)], 1)
        kept = subgoal_table()[old.clamp(min=0)].masked_fill(~some, NONE)
        phrases = torch.cat([kept[:, None], subgoal_table().expand(len(old), -1, -1)], 1)
        fresh = torch.arange(phrases.shape[1])[None] > 0
        blocks = [
            Block(decisions, BlockKind.SWITCH),
            Block(phrases, BlockKind.SUBGOAL, end=SUBGOAL_END, requires=fresh.long()),
            *blocks,
        ]
    return Grammar(blocks, len(actions), len(tokenizer()), device)
