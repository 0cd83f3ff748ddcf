"""Multi-query associative recall (README.md) of the LLA paper, without short convolutions."""

from ..common.experiment import Experiment
from .claims import CLAIMS
from .results import draw, summary
from .run import PRESETS, Config, Trial, run, trials

EXPERIMENT = Experiment(
    name="associative_recall",
    title="Multi-query associative recall",
    paper="Local Linear Attention, arXiv 2510.01450",
    question="Keys and their values, then the keys again: which value belongs to each? Two layers have to "
    "bind a value to the key in front of it and to find it again, with no convolution to help.",
    config=Config,
    presets=PRESETS,
    trial=Trial,
    trials=trials,
    run=run,
    summary=summary,
    figures=draw,
    claims=CLAIMS,
)
