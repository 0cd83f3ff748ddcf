"""What a policy without memory comes to, exactly."""

from __future__ import annotations

from collections.abc import Sequence


def run_probability(chances: Sequence[float], steps: int) -> float:
    """Probability of ``len(chances)`` successes in a row within ``steps`` tries.

    Args:
        chances: of the first success of a row, the second, and so on; a failure begins the row anew.
    """
    reached, done = [1.0, *[0.0] * (len(chances) - 1)], 0.0  # by successes in a row so far
    for _ in range(steps):
        ahead = [mass * chance for mass, chance in zip(reached, chances, strict=True)]
        done += ahead[-1]
        reached = [sum(reached) - sum(ahead), *ahead[:-1]]
    return done
