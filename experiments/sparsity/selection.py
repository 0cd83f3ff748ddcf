"""Which demonstrations a question gets: sparsity-guided in-context learning (arXiv 2603.03415) and others.

A score says how hard a question is. The pool is sorted by it and cut into levels of equal size; a question
has the level that its own score falls into. Demonstrations come from those of the pool that are most similar
to the question.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEVELS = 5
SIMILAR = 20  # of the pool that a demonstration is chosen among
SHOTS = 2


def difficulty_levels(pool: np.ndarray, questions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels 1, easy, to 5, hard, of the pool and of the questions; larger scores are harder.

    A question beyond the scores of the pool has the level that is next to it. (The authors' code gives it
    level 1 on one side, whatever the direction of the score.)
    """
    places = pool.argsort(kind="stable").argsort(kind="stable")
    limits = np.quantile(pool, np.arange(1, LEVELS) / LEVELS)
    return places * LEVELS // len(pool) + 1, np.searchsorted(limits, questions, side="left") + 1


def similar(pool: Sequence[frozenset], question: frozenset) -> list[int]:
    """The places in the pool that share the most with a question (Jaccard), the most similar first."""
    shares = [len(item & question) / len(item | question) for item in pool]
    return np.argsort(-np.array(shares), kind="stable")[:SIMILAR].tolist()


def guided(near: Sequence[int], levels: np.ndarray, level: int) -> list[int]:
    """Two demonstrations for a question of ``level`` among the places ``near``, similar ones first.

    Easy questions get one of their level and one of the next; those in the middle two of their level; hard
    ones get one of the level below and then one of their own. Where there is none of a level, the most
    similar that is left is taken. (Easy is the lowest third of the levels, hard the highest; in the authors'
    code whole numbers are compared with a rounded third, and no level is ever easy.)
    """
    if 3 * level <= LEVELS:
        wanted = (level, level + 1)
    elif 3 * level <= 2 * LEVELS:
        wanted = (level, level)
    else:
        wanted = (level - 1, level)
    chosen: list[int] = []
    for one in wanted:
        left = [place for place in near if place not in chosen]
        chosen.append(next((place for place in left if levels[place] == one), left[0]))
    return chosen
