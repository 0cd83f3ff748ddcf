"""Probes of hidden states: how sparse they are, beside a Gaussian and beside a random rotation."""

from .comparison import Comparison, Row, compare
from .controls import Null, gaussian_null, random_rotation, rotated
from .metrics import (
    METRICS,
    effective_rank,
    gini,
    hoyer,
    kurtosis,
    l0,
    l1,
    measure,
    participation_ratio,
    top_energy,
    top_l1,
)
from .states import hidden_states, load_transformers

__all__ = [
    "METRICS",
    "Comparison",
    "Null",
    "Row",
    "compare",
    "effective_rank",
    "gaussian_null",
    "gini",
    "hidden_states",
    "hoyer",
    "kurtosis",
    "l0",
    "l1",
    "load_transformers",
    "measure",
    "participation_ratio",
    "random_rotation",
    "rotated",
    "top_energy",
    "top_l1",
]
