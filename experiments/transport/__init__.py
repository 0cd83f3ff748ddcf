"""OPME (README.md): decisions about strategic agents, from a population that is not the one that counts."""

from ..common.experiment import Experiment
from .claims import CLAIMS
from .results import draw, summary
from .run import PRESETS, Config, Trial, run, trials

EXPERIMENT = Experiment(
    name="transport",
    title="OPME: strategic decisions with information asymmetry and transportability",
    paper="OPME, arXiv 2506.09940",
    question="Agents with private types answer to what they are offered, and their types also move the "
    "rewards. Does a principal who estimates with moments of the source population, and plans for the target "
    "population, come to the optimum at the rate of the theory where regression does not, and does it still "
    "when the feedback is a text that a transformer reads?",
    config=Config,
    presets=PRESETS,
    trial=Trial,
    trials=trials,
    run=run,
    summary=summary,
    figures=draw,
    claims=CLAIMS,
)
