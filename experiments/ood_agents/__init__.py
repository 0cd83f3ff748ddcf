"""The generalisation tax of agents (README.md): trained in one text world, tested in three others."""

from ..common.experiment import Experiment
from .claims import CLAIMS
from .results import draw, summary
from .run import PRESETS, Config, Trial, run, trials

EXPERIMENT = Experiment(
    name="ood_agents",
    title="The generalisation tax of agents",
    paper="Paying Less Generalization Tax, arXiv 2601.18217",
    question="An agent that has some skill in four text worlds is trained further in one of them. What does "
    "it lose in the three others, which worlds cost least, and does it help to put sentences without use "
    "into what it reads, to train it on a mixture before, or to let it think?",
    config=Config,
    presets=PRESETS,
    trial=Trial,
    trials=trials,
    run=run,
    summary=summary,
    figures=draw,
    claims=CLAIMS,
)
