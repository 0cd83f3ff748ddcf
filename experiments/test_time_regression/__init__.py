"""Test-time regression (README.md): attention as an estimator, without training."""

from ..common.experiment import Experiment
from .claims import CLAIMS
from .results import draw, summary
from .run import PRESETS, Config, Trial, run, trials

EXPERIMENT = Experiment(
    name="test_time_regression",
    title="Test-time regression",
    paper="Local Linear Attention, arXiv 2510.01450",
    question="Without training, on data whose linear map changes from segment to segment: which attention "
    "estimates the value of a new key best, and how does that depend on position, dimension and segment?",
    config=Config,
    presets=PRESETS,
    trial=Trial,
    trials=trials,
    run=run,
    summary=summary,
    figures=draw,
    claims=CLAIMS,
)
