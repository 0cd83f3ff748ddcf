"""What the paper says of this experiment, what we doubt of it, and what we ask."""

from __future__ import annotations

from collections.abc import Callable

from ..common.claims import Claim, Verdict, above, below, unanswered
from ..common.figures import label
from ..common.statistics import bootstrap
from ..common.table import Table
from .effects import (
    PAPERS_MODEL,
    SOLVED,
    UNSOLVED,
    Effect,
    at_shots,
    correlations,
    drops_more,
    is_small,
    lead,
    least_gain,
    least_known,
    least_missing,
    lift,
    mean_beyond,
    over_fragments,
    over_sizes,
    probe_gap,
    seeds,
    solved_share,
)
from .mlp import MLP

SOURCE = "arXiv 2501.15857"
OURS = "asked by us"
LIFT = 0.8  # of whole-chain accuracy by one shot
KNOWN = 0.95  # values accuracy of a model that knows the edges
LOST = 0.3  # vertices accuracy of a model that has lost the order
STILL_KNOWN = 0.9  # values accuracy of a model that is too small for the order
POOR = 0.5  # values accuracy of one that does not know the edges either
READ = 0.5  # by how much more often the parent's value is read than another's
EQUAL = 0.05  # accuracies that differ by less count as equal
EXPLAINED = 0.6  # rank correlation with the ratio of fragment and chain


def _verdict(
    effect: Effect,
    judge: Callable[..., Verdict],
    threshold: float,
    unit: str,
    lacks: str,
    detail: Callable[[Table], str] = lambda table: "",
) -> Callable[[Table], Verdict]:
    """A judge of one number a seed; seeds that lack a part of it are left out."""

    def verdict(table: Table) -> Verdict:
        found = effect(table).dropna()
        if found.empty:
            return unanswered(f"the table lacks {lacks}")
        return judge(bootstrap(found), threshold, unit, detail(table))

    return verdict


def _both_correlations(table: Table) -> str:
    means = correlations(table).mean()
    return f"rank correlation {means['ratio']:.2f} with M/N, {means['fragment']:.2f} with M"


GAIN = "whole-chain accuracy of {0} less that of softmax"

CLAIMS = (
    Claim(
        "lift",
        f"B-1: softmax, one shot lifts whole-chain accuracy by at least {LIFT}.",
        SOURCE,
        _verdict(lift("softmax"), above, LIFT, "lift by one shot", "softmax with 0 and 1 shots"),
    ),
    Claim(
        "known",
        f"B-1: softmax knows the edges with and without a shot: values accuracy is at least {KNOWN} at both.",
        SOURCE,
        _verdict(
            least_known, above, KNOWN, "values accuracy, the lower of the two", "softmax with 0 and 1 shots"
        ),
    ),
    Claim(
        "fragments",
        "B-2: no line of training shows a complete chain.",
        SOURCE,
        _verdict(
            least_missing, above, 0.5, "vertices that a line lacks of a chain, at least", "rows at the end"
        ),
    ),
    Claim(
        "two",
        f"B-3: softmax, M = 2 does not suffice: whole-chain accuracy with one shot is at most {UNSOLVED}.",
        SOURCE,
        _verdict(
            over_fragments(lambda n, m: m == 2, "max"),
            below,
            UNSOLVED,
            "whole-chain accuracy at M = 2, greatest over N",
            "softmax with M = 2",
        ),
    ),
    Claim(
        "half",
        f"B-3: softmax, M of half the chain suffices: whole-chain accuracy with one shot >= {SOLVED}.",
        SOURCE,
        _verdict(
            over_fragments(lambda n, m: 2 * m >= n, "min"),
            above,
            SOLVED,
            "whole-chain accuracy at M >= N/2, least over cells",
            "softmax with M >= N/2",
        ),
    ),
    Claim(
        "monotone",
        "B-3: softmax, a larger M is never worse at the same N.",
        SOURCE,
        _verdict(
            least_gain, above, -EQUAL, "least gain in whole-chain accuracy to the next M", "two M at one N"
        ),
    ),
    Claim(
        "ratio",
        f"B-4: softmax, accuracy follows the ratio M/N: rank correlation over (N, M) above {EXPLAINED}.",
        SOURCE,
        _verdict(
            lambda table: correlations(table)["ratio"],
            above,
            EXPLAINED,
            "rank correlation with M/N",
            "four cells (N, M) at two N",
            _both_correlations,
        ),
    ),
    Claim(
        "fragment_alone",
        "B-4: softmax, M alone explains accuracy better than the ratio M/N.",
        "doubts about arXiv 2501.15857, whose figure mixes the two",
        _verdict(
            lambda table: correlations(table)["fragment"] - correlations(table)["ratio"],
            above,
            0.0,
            "rank correlation with M less that with M/N",
            "four cells (N, M) at two N",
            _both_correlations,
        ),
    ),
    Claim(
        "large",
        f"B-5: softmax with two layers and two heads or more finds the order: vertices accuracy >= {SOLVED}.",
        SOURCE,
        _verdict(
            over_sizes(lambda depth, heads: not is_small(depth, heads), "vertices", "min"),
            above,
            SOLVED,
            "vertices accuracy with one shot, least over sizes",
            "softmax with two layers and two heads",
        ),
    ),
    Claim(
        "single",
        f"B-5: softmax with one layer and one head loses the order: vertices accuracy at most {LOST}.",
        SOURCE,
        _verdict(
            over_sizes(lambda depth, heads: depth == heads == 1, "vertices", "max"),
            below,
            LOST,
            "vertices accuracy with one shot",
            "softmax with one layer and one head",
        ),
    ),
    Claim(
        "small_known",
        f"B-5: softmax with one layer or one head still knows the edges: values accuracy >= {STILL_KNOWN}.",
        SOURCE,
        _verdict(
            over_sizes(is_small, "values", "min"),
            above,
            STILL_KNOWN,
            "values accuracy with one shot, least over sizes",
            "softmax with one layer or one head",
        ),
    ),
    Claim(
        "mlp_order",
        f"B-5: an MLP loses the order: vertices accuracy at most {LOST}.",
        SOURCE,
        _verdict(
            over_sizes(lambda depth, heads: True, "vertices", "max", MLP),
            below,
            LOST,
            "vertices accuracy with one shot",
            "the MLP",
        ),
    ),
    Claim(
        "mlp_values",
        f"B-5: an MLP does not know the edges: values accuracy at most {POOR}.",
        SOURCE,
        _verdict(
            over_sizes(lambda depth, heads: True, "values", "max", MLP),
            below,
            POOR,
            "values accuracy with one shot",
            "the MLP",
        ),
    ),
    Claim(
        "more_shots",
        "B-6: softmax is no better with four shots than with one.",
        SOURCE,
        _verdict(
            lambda table: seeds(table, "whole", PAPERS_MODEL, 4) - seeds(table, "whole", PAPERS_MODEL, 1),
            below,
            EQUAL,
            "whole-chain accuracy with four shots less that with one",
            "softmax with 1 and 4 shots",
        ),
    ),
    Claim(
        "more_shots_fragment",
        "B-6: softmax loses more from one shot to four where M is small, among those solved with one.",
        SOURCE,
        _verdict(
            drops_more,
            above,
            0.0,
            "drop at the least M less that at the greatest",
            "two M at one N that softmax solves with one shot",
        ),
    ),
    Claim(
        "parent",
        f"B-7: softmax, a probe reads the parent's value more often than another's by at least {READ}, on "
        "lines of training and of the test.",
        SOURCE,
        _verdict(
            probe_gap("softmax"),
            above,
            READ,
            "share for the parent less that for others",
            "probes of softmax",
        ),
    ),
    Claim(
        "held_out",
        f"B-8: softmax computes values that it never saw: values accuracy >= {KNOWN} from held-out roots.",
        SOURCE,
        _verdict(
            at_shots("held_out_values", 1), above, KNOWN, "values accuracy from held-out roots", "softmax"
        ),
    ),
    *(
        Claim(
            f"lift_{mixer}",
            f"{label(mixer)}, too: one shot lifts whole-chain accuracy by at least {LIFT}.",
            OURS,
            _verdict(
                lift(mixer),
                above,
                LIFT,
                "lift by one shot",
                f"{label(mixer)} with 0 and 1 shots",
            ),
        )
        for mixer in ("lla", "parallax", "mesanet", "gated_deltanet", "linear_attention")
    ),
    Claim(
        "steps",
        f"LLA needs fewer steps than softmax to solve {SOLVED} of the chains with one shot.",
        OURS,
        _verdict(
            lead(solved_share),
            above,
            0.0,
            "share of evaluations that are solved, LLA less softmax",
            "LLA or softmax",
        ),
    ),
    Claim(
        "layers",
        "LLA needs fewer layers or heads than softmax: with one layer and one head it solves more chains.",
        OURS,
        _verdict(
            lead(lambda mixer: at_shots("whole", 1, mixer, depth=1, heads=1)),
            above,
            0.0,
            GAIN.format("LLA"),
            "LLA or softmax with one layer and one head",
        ),
    ),
    Claim(
        "no_shot",
        "LLA needs fewer shots than softmax: with none it solves more chains.",
        OURS,
        _verdict(
            lead(lambda mixer: at_shots("whole", 0, mixer)), above, 0.0, GAIN.format("LLA"), "LLA or softmax"
        ),
    ),
    Claim(
        "beyond",
        "LLA stays right for more shots than training shows where softmax does not.",
        OURS,
        _verdict(
            lead(mean_beyond), above, 0.0, GAIN.format("LLA"), "LLA, softmax or more shots than in training"
        ),
    ),
)
