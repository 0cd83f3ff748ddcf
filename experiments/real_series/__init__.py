"""Test-time regression on real series (README.md): attention beside the estimators of textbooks."""

from ..common.experiment import Experiment
from .claims import CLAIMS
from .results import draw, summary
from .run import PRESETS, Config, Trial, run, trials

EXPERIMENT = Experiment(
    name="real_series",
    title="Test-time regression on real series",
    paper="Local Linear Attention, arXiv 2510.01450",
    question="Without training, on real series that change with time: does local linear attention "
    "predict better than softmax attention, ridge regression, nearest neighbours or a Gaussian process?",
    config=Config,
    presets=PRESETS,
    trial=Trial,
    trials=trials,
    run=run,
    summary=summary,
    figures=draw,
    claims=CLAIMS,
)
