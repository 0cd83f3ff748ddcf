"""Solver study (README.md): the iterations that trained models need, and learned constants."""

from ..common.experiment import Experiment
from .claims import CLAIMS
from .results import draw, summary
from .run import PRESETS, Config, Trial, run, trials

EXPERIMENT = Experiment(
    name="solver_study",
    title="Solver, ridge and bandwidth in trained models",
    paper="Local Linear Attention, arXiv 2510.01450",
    question="In trained language models, does a constant number of conjugate-gradient iterations suffice, "
    "whatever the length, the ridge, the layer and the training step? And does it help to learn the ridge "
    "or the bandwidth?",
    config=Config,
    presets=PRESETS,
    trial=Trial,
    trials=trials,
    run=run,
    summary=summary,
    figures=draw,
    claims=CLAIMS,
)
