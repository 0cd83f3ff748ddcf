"""Sparsity under shift (README.md): are hidden states sparser the harder a prompt is?"""

from ..common.experiment import Experiment
from .claims import CLAIMS
from .results import draw, summary
from .run import PRESETS, Config, Trial, run, trials

EXPERIMENT = Experiment(
    name="sparsity",
    title="Sparsity of representations under shift",
    paper="Farther the Shift, Sparser the Representation, arXiv 2603.03415",
    question="Is the last hidden state sparser the farther a prompt is from what was learned? On a knowledge "
    "graph while a model learns it, and on prompts that ask for more steps, are longer, have distractors or "
    "contradict what is known; and does sparsity choose better demonstrations?",
    config=Config,
    presets=PRESETS,
    trial=Trial,
    trials=trials,
    run=run,
    summary=summary,
    figures=draw,
    claims=CLAIMS,
)
