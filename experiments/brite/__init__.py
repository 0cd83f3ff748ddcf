"""BRiTE (README.md): reasoning learned without rationales, on chains of lookups."""

from ..common.experiment import Experiment
from .claims import CLAIMS
from .results import draw, summary
from .run import PRESETS, Config, Trial, run, trials

EXPERIMENT = Experiment(
    name="brite",
    title="BRiTE: bootstrapping reinforced thinking",
    paper="BRiTE, arXiv 2501.18858",
    question="A model has learned from texts that are wrong about half of the facts. From problems and their "
    "answers alone, does it learn to reason better when another model first learns which rationales lead to "
    "the answers than when it keeps what it happened to get right, and does that depend on the attention?",
    config=Config,
    presets=PRESETS,
    trial=Trial,
    trials=trials,
    run=run,
    summary=summary,
    figures=draw,
    claims=CLAIMS,
)
