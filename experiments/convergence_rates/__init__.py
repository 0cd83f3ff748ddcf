"""Convergence rates (README.md): how fast the error of an estimator falls with more keys."""

from ..common.experiment import Experiment
from .claims import CLAIMS
from .results import draw, summary
from .run import PRESETS, Config, Trial, run, trials

EXPERIMENT = Experiment(
    name="convergence_rates",
    title="Convergence rates",
    paper="Local Linear Attention, arXiv 2510.01450",
    question="On a smooth map that is not linear, with more and more keys: does the error of LLA fall "
    "with the power -4/(d+4) of their number, and that of softmax attention, because of the "
    "boundary, only with -3/(d+3)?",
    config=Config,
    presets=PRESETS,
    trial=Trial,
    trials=trials,
    run=run,
    summary=summary,
    figures=draw,
    claims=CLAIMS,
)
