"""The grammar of prompts and answers, the same in all worlds (README.md has it in full)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .errors import check_range

BLOCKS = ("think", "switch", "subgoal", "action")
TAGS = tuple(f"<{slash}{block}>" for block in BLOCKS for slash in ("", "/"))
KEEP, SWITCH, NOTHING = "KEEP", "SWITCH", "None"
INVALID_TEXT = "invalid action"  # stands in the history for what was not admissible
WORDS = ("task", "step", "of", "seen", "done", "now", "subgoal", "actions", KEEP, SWITCH, NOTHING)
WORDS += tuple(INVALID_TEXT.split())


@dataclass(frozen=True)
class PromptStyle:
    """How prompts and answers are written.

    Attributes:
        history: pairs of an observation and an action that are shown, 0 to 50; HiPER has 2.
        plan: plan-execute: the prompt shows the subgoal, and answers keep or switch it.
        think: answers begin with a scratchpad.
        numbered: actions have numbers from 0, and an answer may be the number alone, one token.
    """

    history: int = 2
    plan: bool = False
    think: bool = False
    numbered: bool = False

    def __post_init__(self) -> None:
        check_range("history", self.history, 0, 50)


class Answer(NamedTuple):
    """The blocks of an answer; None for one that is not there."""

    think: str | None
    switch: str | None
    subgoal: str | None
    action: str


def write_prompt(
    style: PromptStyle,
    task: str,
    step: int,
    max_steps: int,
    history: Sequence[tuple[str, str]],
    observation: str,
    actions: Sequence[str],
    subgoal: str | None = None,
) -> str:
    """The prompt of a turn; it ends with a newline, and the answer follows.

    Args:
        step: steps made so far.
        history: observations and what was done then, the oldest first; the last ``style.history`` are shown.
        subgoal: the one pursued, None at the start; shown if ``style.plan``.
    """
    lines = [f"task: {task}", f"step: {step} of {max_steps}."]
    for seen, done in history[len(history) - style.history :] if style.history else ():
        lines += [f"seen: {seen}", f"done: {done}."]
    lines.append(f"now: {observation}")
    if style.plan:
        lines.append(f"subgoal: {subgoal or NOTHING}.")
    numbered = (f"{number} {text}" for number, text in enumerate(actions))
    lines.append(f"actions: {'; '.join(numbered if style.numbered else actions)}.")
    return "\n".join(lines) + "\n"


def write_answer(
    style: PromptStyle, action: str, subgoal: str = NOTHING, keep: bool = False, thought: str = ""
) -> str:
    """What a model should answer in this style, without an end token."""
    think = f"<think>{thought}</think>" if style.think else ""
    switch = KEEP if keep else SWITCH
    plan = f"<switch>{switch}</switch><subgoal>{subgoal}</subgoal>" if style.plan else ""
    return f"{think}{plan}<action>{action}</action>"


def read_answer(text: str) -> Answer:
    """The blocks of what a model has written.

    As in the code of HiPER: without a switch it is KEEP where there is a subgoal, and without an action block
    the whole text is the action.
    """
    found = {block: re.search(f"<{block}>(.*?)(</{block}>|$)", text, re.DOTALL) for block in BLOCKS}
    blocks = {block: match.group(1).strip() if match else None for block, match in found.items()}
    if blocks["action"] is None:
        blocks["action"] = text.strip()
    if blocks["subgoal"] is not None and blocks["switch"] != SWITCH:
        blocks["switch"] = KEEP
    return Answer(**blocks)
