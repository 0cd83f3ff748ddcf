"""Time and memory of attention by the length of the sequence (README.md)."""

from ..common.experiment import Experiment
from .claims import CLAIMS
from .results import draw, summary
from .run import PRESETS, Config, Trial, run, trials

EXPERIMENT = Experiment(
    name="cost_profile",
    title="Time and memory by length",
    paper="Local Linear Attention, arXiv 2510.01450",
    question="How much longer than softmax attention does LLA take, forward, backward and for a step of "
    "decoding, and how does the memory of its forms grow with the sequence?",
    config=Config,
    presets=PRESETS,
    trial=Trial,
    trials=trials,
    run=run,
    summary=summary,
    figures=draw,
    claims=CLAIMS,
)
