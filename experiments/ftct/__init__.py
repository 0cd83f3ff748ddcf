"""Fragmented at training, chained at testing (README.md): composing what was only ever seen in pieces."""

from ..common.experiment import Experiment
from .claims import CLAIMS
from .results import draw, summary
from .run import PRESETS, Config, Trial, run, trials

EXPERIMENT = Experiment(
    name="ftct",
    title="Fragmented at training, chained at testing",
    paper="arXiv 2501.15857",
    question="Chains of dependent values are seen in pieces, among noise. Does one example of a whole chain "
    "suffice to compose the pieces? Its order has to be copied, and every value computed from its parent.",
    config=Config,
    presets=PRESETS,
    trial=Trial,
    trials=trials,
    run=run,
    summary=summary,
    figures=draw,
    claims=CLAIMS,
)
