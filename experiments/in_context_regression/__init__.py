"""In-context regression (README.md): two trained layers without MLP, on data whose map keeps changing."""

from ..common.experiment import Experiment
from .claims import CLAIMS
from .results import draw, summary
from .run import PRESETS, Config, Trial, run, trials

EXPERIMENT = Experiment(
    name="in_context_regression",
    title="In-context regression",
    paper="Local Linear Attention, arXiv 2510.01450",
    question="Two trained layers without an MLP read pairs of x and y, and predict every y from its x. The "
    "map changes from segment to segment: which attention learns it best, and how does that depend on the "
    "length of the segments and on the kind of map?",
    config=Config,
    presets=PRESETS,
    trial=Trial,
    trials=trials,
    run=run,
    summary=summary,
    figures=draw,
    claims=CLAIMS,
)
