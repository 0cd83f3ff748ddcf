"""What is measured of hidden states, and how much sparser some are than others."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from flashlla.models import probes

MAIN = "top_10"  # the paper's main metric: share of the energy in the largest tenth of the entries
NAMES = ("top_5", MAIN, "erank", "hoyer", "l0")
RESAMPLES = 2000
CONFIDENCE = 0.95
DIGITS = 4  # of what goes into a table


def describe(states: Tensor) -> dict[str, float]:
    """Means over states ``[n, dim]``: all metrics, the main one behind random rotations, and the length."""
    found = {name: values.mean().item() for name, values in probes.measure(states, NAMES).items()}
    turned = probes.rotated(states, [MAIN])[MAIN].mean().item()
    length = states.float().norm(dim=-1).mean().item()
    return {**found, **describe_main(states), "rotated": turned, "norm": length}


def describe_main(states: Tensor) -> dict[str, float]:
    """Mean of the main metric over states ``[n, dim]``, and ``std``, from state to state."""
    values = probes.METRICS[MAIN].compute(states)
    return {MAIN: values.mean().item(), "std": values.std().item()}


def compare(states: Tensor, others: Tensor, lengths: tuple[Tensor, Tensor]) -> dict[str, float]:
    """How much more of the main metric ``others`` have than ``states``, ``[n, dim]`` each.

    Args:
        lengths: of both before the final norm, ``[n]`` each.

    Returns:
        ``low`` and ``high``, the ends of a 95 % bootstrap interval of the difference over both sets;
        ``matched``, the difference to the states that are the most alike in length.
    """
    first, second = (probes.METRICS[MAIN].compute(h).double().cpu().numpy() for h in (states, others))
    low, high = _difference_interval(first, second)
    matched = second.mean() - first[_nearest(*(t.double().cpu().numpy() for t in lengths))].mean()
    return {"low": low, "high": high, "matched": float(matched)}


def _difference_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    means = [v[rng.integers(len(v), size=(RESAMPLES, len(v)))].mean(1) for v in (first, second)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means[1] - means[0], [tail, 1 - tail])
    return float(low), float(high)


def _nearest(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each of ``wanted`` the place of the value next to it."""
    order = values.argsort(kind="stable")
    right = np.searchsorted(values[order], wanted).clip(1, len(values) - 1)
    left_is_nearer = wanted - values[order][right - 1] < values[order][right] - wanted
    return order[right - left_is_nearer]


def rounded(row: dict) -> dict:
    """Numbers with as many digits as mean something."""
    return {name: round(v, DIGITS) if isinstance(v, float) else v for name, v in row.items()}


def rank_correlation(x: np.ndarray, y: np.ndarray, given: np.ndarray | None = None) -> float:
    """Spearman's rho, 0 where one side is constant; with ``given`` the partial one, its ranks held fixed."""
    from scipy.stats import rankdata

    columns = [rankdata(v) for v in ((x, y) if given is None else (x, y, given))]
    if any(v.std() == 0 for v in columns[:2]):
        return 0.0
    if given is not None and columns[2].std() > 0:
        design = np.stack([np.ones(len(x)), columns[2]], 1)
        columns = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in columns[:2]]
    return float(np.corrcoef(columns[0], columns[1])[0, 1])
