"""A family of trees in which memory pays more the deeper they are: exact, nothing is learned.

A tree has ``children`` branches at every node and one hidden path of ``depth`` right ones, each path alike
likely. A step takes a branch; a wrong one leads back to the root, and one sees which it was. The episode pays
1 at the end of the path. With depth 1 these are as many arms as children, one of which pays. A memoryless
policy knows the node where it is, and neither the past nor the time.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from .chance import run_probability


def horizon(children: int, depth: int) -> int:
    """Steps in which one who remembers always succeeds: every wrong branch of the path is tried once, at
    level l after l - 1 right ones, and then the path is walked.
    """
    return (children - 1) * depth * (depth + 1) // 2 + depth


def deterministic_return(children: int, depth: int) -> float:
    """Of the best memoryless policy without chance, which walks one path for ever."""
    return children**-depth


def stochastic_return(children: int, depth: int) -> float:
    """Of the memoryless policy that takes every branch alike, in :func:`horizon` steps."""
    return run_probability([1 / children] * depth, horizon(children, depth))


def memoryless_bound(children: int, depth: int) -> float:
    """What no memoryless policy exceeds in :func:`horizon` steps.

    A walk from the root takes the hidden path with the probability that the policy gives to it, which is
    ``children**-depth`` in the mean over paths, and there are at most ``horizon - depth + 1`` walks that
    could still arrive.
    """
    return min(1.0, (horizon(children, depth) - depth + 1) * children**-depth)


def adaptive_return(children: int, depth: int, steps: int) -> float:
    """Of the best policy that remembers, by enumeration of what it can know.

    That is how far the path is known, how many branches behind that are ruled out, and where it is on the
    known part.
    """

    @cache
    def value(known: int, excluded: int, place: int, left: int) -> float:
        if left == 0:
            return 0.0
        back = value(known, excluded, 0, left - 1)  # a branch that is known to be wrong
        if place < known:
            return max(back, value(known, excluded, place + 1, left - 1))
        chance = 1 / (children - excluded)
        right = 1.0 if known + 1 == depth else value(known + 1, 0, known + 1, left - 1)
        wrong = value(known, excluded + 1, 0, left - 1) if chance < 1 else 0.0
        return max(back, chance * right + (1 - chance) * wrong)

    return value(0, 0, 0, steps)


def rows(most_children: int, most_depth: int) -> list[dict[str, Any]]:
    """A row for every number of arms, and for every depth of the trees with two children."""
    sizes = [(children, 1) for children in range(2, most_children + 1)]
    sizes += [(2, depth) for depth in range(2, most_depth + 1)]
    return [
        {
            "kind": "tree",
            "children": children,
            "depth": depth,
            "horizon": horizon(children, depth),
            "deterministic": deterministic_return(children, depth),
            "stochastic": stochastic_return(children, depth),
            "bound": memoryless_bound(children, depth),
            "adaptive": adaptive_return(children, depth, horizon(children, depth)),
        }
        for children, depth in sizes
    ]
