"""What the paper says of this experiment."""

from __future__ import annotations

from collections.abc import Callable

from ..common.claims import Claim, Verdict, above, unanswered, within
from ..common.figures import label
from ..common.statistics import bootstrap
from ..common.table import Table
from ..common.training import at_best_rate

SOURCE = "arXiv 2510.01450, permutation state tracking"
THEORY = "arXiv 2411.12537, negative eigenvalues"
EQUAL = 0.1  # accuracies that differ by less count as equal


def ends(table: Table) -> Table:
    """Accuracy on the last eighth of the sequences, each mixer at its best learning rate."""
    last = table[table["position"] == table["length"]]
    return at_best_rate(last, ["mixer", "positions", "length"], "accuracy", highest=True)


def _difference(table: Table, mixer: str, other: str) -> list[float]:
    """Per seed: how much more accurate ``mixer`` is than ``other``, mean over harder tasks."""
    hard = ends(table)
    hard = hard[hard["positions"] >= 3]
    wide = hard.pivot_table(index=["seed", "positions", "length"], columns="mixer", values="accuracy")
    if mixer not in wide or other not in wide:
        return []
    return list((wide[mixer] - wide[other]).groupby("seed").mean())


def _compare(mixer: str, other: str, judge: Callable[..., Verdict], *bounds: float):
    """How much more accurate ``mixer`` is than ``other``, held against the bounds of a judge."""

    def verdict(table: Table) -> Verdict:
        found = _difference(table, mixer, other)
        if not found:
            return unanswered(f"the table lacks {label(mixer)}, {label(other)} or tasks of 3 positions")
        unit = f"accuracy of {label(mixer)} less that of {label(other)}"
        return judge(bootstrap(found), *bounds, unit)

    return verdict


CLAIMS = (
    Claim(
        "same",
        "LLA tracks states no better than softmax attention: accuracies at the end differ by less than 0.1.",
        SOURCE,
        _compare("lla", "softmax", within, -EQUAL, EQUAL),
    ),
    Claim(
        "deltanet",
        "DeltaNet with negative eigenvalues tracks states better than LLA.",
        THEORY,
        _compare("deltanet", "lla", above, 0.0),
    ),
    Claim(
        "deltanet_softmax",
        "DeltaNet with negative eigenvalues tracks states better than softmax attention.",
        THEORY,
        _compare("deltanet", "softmax", above, 0.0),
    ),
)
