"""Sums in steps: problems, and texts that think them through, with mistakes and corrections.

A problem is a number below 100 and some operations with a digit, modulo 100. A thought has one result after
the other; some are wrong, and half of these are followed by WAIT and the right one. Then comes END, and
the last result is the answer::

    47 + 8 * 3 = 55 ; 61 wait 65 ; so 65 .
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PLUS, MINUS, TIMES, EQUALS, STEP, WAIT, END, STOP = range(10, 18)
VOCABULARY = 18
SIGNS = (" + ", " - ", " * ", " = ", " ; ", " wait ", "so ", " .")
MODULUS = 100
WRONG, CORRECTED = 0.3, 0.5  # of the results in the corpus, and of the wrong ones


class Problems(NamedTuple):
    """Problems and their results.

    Attributes:
        prompts: int64 ``[count, 3 + 2 operations]``.
        results: int64 ``[count, operations]``, behind every operation; the last is the answer.
    """

    prompts: Tensor
    results: Tensor

    @property
    def answers(self) -> Tensor:
        return self.results[:, -1]

    def to(self, device: torch.device | str) -> Problems:
        return Problems(*(field.to(device) for field in self))


def problems(count: int, operations: int, generator: torch.Generator) -> Problems:
    """Random ones, on the CPU."""
    number = torch.randint(MODULUS, (count,), generator=generator)
    signs = torch.randint(3, (count, operations), generator=generator)
    operands = torch.randint(1, 10, (count, operations), generator=generator)
    written = torch.stack([signs + PLUS, operands], 2).flatten(1)
    prompts = torch.cat([digits(number), written, torch.full((count, 1), EQUALS)], 1)
    results = []
    for sign, operand in zip(signs.T, operands.T, strict=True):
        number = _applied(sign, operand, number)
        results.append(number)
    return Problems(prompts, torch.stack(results, 1))


def digits(numbers: Tensor) -> Tensor:
    """Two digits, ``[..., 2]``."""
    return torch.stack([numbers // 10, numbers % 10], -1)


def longest(operations: int) -> int:
    """Tokens of the longest text of the corpus behind its prompt."""
    return 6 * operations + 4


def texts(given: Problems, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Texts of the corpus behind prompts: wrong results are what the next operation goes on from.

    Returns:
        Tokens, ``[count, prompt + longest]``, STOP behind the end, and a bool mask of what is written behind
        the prompt, ``[count, longest]``.
    """
    count, operations = given.results.shape
    wrong = torch.rand(count, operations, generator=generator) < WRONG
    corrected = torch.rand(count, operations, generator=generator) < CORRECTED
    errors = torch.randint(1, MODULUS, (count, operations), generator=generator)
    signs, operands = given.prompts[:, 2:-1].unflatten(1, (-1, 2)).unbind(2)
    number = given.prompts[:, 0] * 10 + given.prompts[:, 1]
    parts, kept = [], []
    for i in range(operations):
        right = _applied(signs[:, i] - PLUS, operands[:, i], number)
        first = torch.where(wrong[:, i], (right + errors[:, i]) % MODULUS, right)
        again = wrong[:, i] & corrected[:, i]
        number = torch.where(again, right, first)
        single = torch.ones(count, 1, dtype=torch.int64)
        parts += [digits(first), WAIT * single, digits(right), STEP * single]
        kept += [single.expand(-1, 2), again[:, None].expand(-1, 3), single]
    parts += [END * single, digits(number), STOP * single]
    kept += [single.expand(-1, 4)]
    written, mask = torch.cat(parts, 1), torch.cat(kept, 1).bool()
    order = torch.argsort((~mask).int(), dim=1, stable=True)  # what is not written goes to the end
    mask = mask.gather(1, order)
    written = written.gather(1, order).masked_fill(~mask, STOP)
    return torch.cat([given.prompts, written], 1), mask


def _applied(signs: Tensor, operands: Tensor, numbers: Tensor) -> Tensor:
    """Results of operations, ``[count]``; signs are 0, 1, 2 for plus, minus, times."""
    ways = torch.stack([numbers + operands, numbers - operands, numbers * operands])
    return ways.gather(0, signs[None])[0] % MODULUS


def as_text(tokens: Tensor) -> str:
    """One text, ``[seq]``, up to its first STOP."""
    words = []
    for token in tokens.tolist():
        words.append(str(token) if token < PLUS else SIGNS[token - PLUS])
        if token == STOP:
            break
    return "".join(words)
