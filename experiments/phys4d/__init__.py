"""Phys4D (README.md): physics-consistent 4-D worlds from video diffusion, in three stages."""

from ..common.experiment import Experiment
from .claims import CLAIMS
from .results import draw, summary
from .run import PRESETS, Config, Trial, run, trials

EXPERIMENT = Experiment(
    name="phys4d",
    title="Phys4D: physics-consistent 4-D worlds",
    paper="Phys4D, arXiv 2603.03485",
    question="A video model has learned what things look like and not how they move. Do heads for depth and "
    "motion, fine-tuning on a simulation and rewards for the right places in space and time teach it that, "
    "and does that depend on the attention?",
    config=Config,
    presets=PRESETS,
    trial=Trial,
    trials=trials,
    run=run,
    summary=summary,
    figures=draw,
    claims=CLAIMS,
)
