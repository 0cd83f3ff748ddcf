"""HiPER (README.md): agents that plan and execute, with advantages for each level."""

from ..common.experiment import Experiment
from .claims import CLAIMS
from .results import draw, summary
from .run import PRESETS, Config, Trial, run, trials

EXPERIMENT = Experiment(
    name="hiper",
    title="HiPER: plan-execute agents",
    paper="HiPER, arXiv 2602.16165",
    question="An agent keeps or switches a subgoal in every turn, and acts. Is an advantage for each level, "
    "with values at the ends of segments, a better gradient than one for whole turns: exactly, where a small "
    "process can be enumerated, and in a household with several tasks in a row, where the subgoal is also "
    "what the agent remembers?",
    config=Config,
    presets=PRESETS,
    trial=Trial,
    trials=trials,
    run=run,
    summary=summary,
    figures=draw,
    claims=CLAIMS,
)
