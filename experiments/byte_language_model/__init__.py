"""Byte-level language modelling (README.md): three mixers, two optimizers."""

from ..common.experiment import Experiment
from .claims import CLAIMS
from .results import draw, summary
from .run import PRESETS, Config, Trial, run, trials

EXPERIMENT = Experiment(
    name="byte_language_model",
    title="Byte-level language modelling",
    paper="Parallax, arXiv 2605.29157; Local Linear Attention, arXiv 2510.01450",
    question="On real text, at the same number of tokens and at the same time: does the linear correction of "
    "LLA and of Parallax lower the loss of softmax attention, and does that depend on the optimizer?",
    config=Config,
    presets=PRESETS,
    trial=Trial,
    trials=trials,
    run=run,
    summary=summary,
    figures=draw,
    claims=CLAIMS,
)
