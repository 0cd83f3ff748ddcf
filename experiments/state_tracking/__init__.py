"""Permutation state tracking (README.md): a negative result of the paper."""

from ..common.experiment import Experiment
from .claims import CLAIMS
from .results import draw, summary
from .run import PRESETS, Config, Trial, run, trials

EXPERIMENT = Experiment(
    name="state_tracking",
    title="Permutation state tracking",
    paper="Local Linear Attention, arXiv 2510.01450",
    question="After every swap of two things, which order are they in? Attention of constant depth should "
    "not follow for long, whatever it regresses; recurrences with negative eigenvalues should.",
    config=Config,
    presets=PRESETS,
    trial=Trial,
    trials=trials,
    run=run,
    summary=summary,
    figures=draw,
    claims=CLAIMS,
)
