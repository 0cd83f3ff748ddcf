"""What the paper and its reviews say of this experiment."""

from __future__ import annotations

from collections.abc import Collection

from ..common.claims import Claim, Verdict, above, unanswered
from ..common.figures import label
from ..common.statistics import bootstrap
from ..common.table import Table
from ..common.training import at_best_rate

SOURCE = "arXiv 2510.01450, associative recall without short convolutions"
REVIEWS = "reviews of arXiv 2510.01450: softmax was behind both for sequences below 256"
EQUAL = 0.01  # "at least": one answer in a hundred less still counts


def best(table: Table) -> Table:
    """Accuracies, each mixer and width at the learning rate that is best over all numbers of pairs."""
    return at_best_rate(table, ["mixer", "dim"], "accuracy", highest=True)


def _lead(mixer: str, threshold: float, others: Collection[str] = ()):
    """How much more accurate ``mixer`` is than the best of ``others``, or of all; a mean over all tasks."""

    def judge(table: Table) -> Verdict:
        means = best(table).groupby(["seed", "mixer"])["accuracy"].mean().unstack()
        rivals = [name for name in means if name != mixer and (not others or name in others)]
        if mixer not in means or not rivals or not set(others) <= set(rivals):
            return unanswered(f"the table lacks one of {', '.join(map(label, (mixer, *others)))}")
        strongest = means[rivals].mean().idxmax()
        lead = bootstrap(means[mixer] - means[rivals].max(axis=1))
        return above(
            lead,
            threshold,
            f"accuracy of {label(mixer)} less that of the best other",
            f"strongest of the others: {label(strongest)}",
        )

    return judge


CLAIMS = (
    Claim(
        "all",
        "LLA recalls at least as well as every other mixer.",
        SOURCE,
        _lead("lla", -EQUAL),
    ),
    Claim("softmax", "LLA recalls better than softmax attention.", SOURCE, _lead("lla", 0.0, ["softmax"])),
    Claim(
        "recurrent",
        "Softmax attention recalls at least as well as Gated DeltaNet and Mamba-2.",
        REVIEWS,
        _lead("softmax", -EQUAL, ["gated_deltanet", "mamba2"]),
    ),
)
