"""DOIT (README.md): diffusion models adapted to rewards without training, by Doob's h-transform."""

from ..common.experiment import Experiment
from .claims import CLAIMS
from .results import draw, summary
from .run import PRESETS, Config, Trial, run, trials

EXPERIMENT = Experiment(
    name="doit",
    title="DOIT: training-free adaptation by Doob's h-transform",
    paper="DOIT, arXiv 2602.16198",
    question="A diffusion model is frozen, and its samples shall be tilted towards a reward that has no "
    "gradient. Does guidance by rewards of simulated continuations give the tilted law, does the cheap form "
    "with one step of lookahead give it too, and what does that bring to a policy over the best of plain "
    "samples?",
    config=Config,
    presets=PRESETS,
    trial=Trial,
    trials=trials,
    run=run,
    summary=summary,
    figures=draw,
    claims=CLAIMS,
)
