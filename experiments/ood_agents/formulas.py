"""The measures of transfer, as the paper defines them (arXiv 2601.18217), on success rates by test domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

TIE = 0.005  # successes that differ by less have one rank: half a point of a percentage


def relative_change(before: Sequence[float], after: Sequence[float]) -> float:
    """``sum(after) / sum(before) - 1``; of one pair the relative change from the initial policy.

    With ``before`` and ``after`` the successes out of domain without and with something, this is Delta_OOD.
    It cannot be less than -1.

    Returns:
        NaN where ``before`` is nothing but zeros.
    """
    return sum(after) / sum(before) - 1 if sum(before) else float("nan")


def ranks(success: Mapping[str, float], tie: float = TIE) -> dict[str, int]:
    """Ranks from 1, the highest success; those that differ from the best of a rank by less than ``tie`` have
    the same, and the next rank follows without a gap.

    The paper says that such differences tie, and its scores follow if no rank is left out behind a tie.
    """
    found: dict[str, int] = {}
    rank, best = 0, float("inf")
    for name, value in sorted(success.items(), key=lambda item: -item[1]):
        if best - value >= tie:
            rank, best = rank + 1, value
        found[name] = rank
    return found


def ranking_scores(success: Mapping[str, Mapping[str, float]], tie: float = TIE) -> dict[str, int]:
    """The OOD ranking score of every training domain: the sum of its ranks in the others; lower is better.

    Args:
        success: by training domain, then by test domain. What a domain is not tested on, or is trained on,
            is left out.
    """
    scores = dict.fromkeys(success, 0)
    tests = dict.fromkeys(test for row in success.values() for test in row)
    for test in tests:
        column = {name: row[test] for name, row in success.items() if test in row and test != name}
        for name, rank in ranks(column, tie).items():
            scores[name] += rank
    return scores


def nearest(gains: Sequence[float], common: float) -> int:
    """Which of the gains of a run is nearest to a common value; the earliest of several."""
    return min(range(len(gains)), key=lambda i: abs(gains[i] - common))
