"""BARL (README.md): exploration that drops refuted hypotheses, on triplets, trees and sums."""

from ..common.experiment import Experiment
from .claims import CLAIMS
from .results import draw, summary
from .run import PRESETS, Config, Trial, run, trials

EXPERIMENT = Experiment(
    name="barl",
    title="BARL: reflective exploration by Bayes-adaptive reinforcement learning",
    paper="BARL, arXiv 2505.20561",
    question="A policy that is trained where the right answer can be memorised need not learn to look for "
    "it. Does it learn to try hypotheses one after the other, and to drop those that are refuted, if its "
    "objective is the mean return over all decision processes that could be the true one?",
    config=Config,
    presets=PRESETS,
    trial=Trial,
    trials=trials,
    run=run,
    summary=summary,
    figures=draw,
    claims=CLAIMS,
)
