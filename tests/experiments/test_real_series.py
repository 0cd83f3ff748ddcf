"""Real series: no method sees the future, and attention is what the experiment says it is."""

import numpy as np
import pytest

from flashlla import lla_attention, softmax_attention
from flashlla.experiments.real_series.data import FORMS, SERIES, series_stream
from flashlla.experiments.real_series.methods import METHODS, lla, operands, softmax
from flashlla.experiments.real_series.run import BLOCKS, Config, Trial, run

pytest.importorskip("sklearn")
pytest.importorskip("statsmodels")
NILE = SERIES["nile"]


@pytest.mark.parametrize("form", FORMS)
def test_features_are_the_targets_before(form):
    stream = series_stream(NILE.load(), NILE.lags, form)
    for t in range(NILE.lags, len(stream.targets)):
        assert (stream.features[t] == stream.targets[t - NILE.lags : t]).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", METHODS)
def test_later_values_change_no_earlier_prediction(name, form):
    series, later = NILE.load(), 80
    changed = np.concatenate([series[:later], series[later:] * 2.0])
    method = METHODS[name]
    predictions, others = (
        method.estimate(stream.features, stream.targets, stream.early, **method.settings()[-1])
        for stream in (series_stream(values, NILE.lags, form) for values in (series, changed))
    )
    first = len(predictions) - (len(series) - later)  # the prediction of the first value that is changed
    assert (predictions[: first + 1] == others[: first + 1]).all()
    assert (predictions[first + 1 :] != others[first + 1 :]).any()


@pytest.mark.parametrize("scale", (0.1, 3.0))
def test_attention_is_a_kernel_regression_on_the_pairs_before(scale):
    """Against flashlla on these pairs alone, and against the textbook's formulas in the features."""
    features, targets, _, early = series_stream(NILE.load(), NILE.lags, "differences")
    dim, ridge, t = NILE.lags, 0.1, early + 7
    means, lines = softmax(features, targets, early, scale), lla(features, targets, early, scale, ridge)

    q, k, v = operands(features, targets)
    pairs = q[:, t - 1 : t], k[:, :t], v[:, :t]
    mean = softmax_attention(*pairs, scale=scale / dim).item()
    line = lla_attention(*pairs, scale=scale / dim, ridge=ridge).item()
    assert means[7] == pytest.approx(mean, rel=1e-9)
    assert lines[7] == pytest.approx(line, rel=1e-9)

    kernel = np.exp(-scale / dim * np.square(features[:t] - features[t]).sum(1) / 2)
    weights = kernel / kernel.sum()
    mean, centre = weights @ targets[:t], weights @ features[:t]
    weighted = weights[:, None] * (features[:t] - centre)
    covariance = weighted.T @ (features[:t] - centre)
    slope = np.linalg.solve(covariance + ridge * np.eye(dim), weighted.T @ targets[:t])
    assert means[7] == pytest.approx(mean, rel=1e-5)
    assert lines[7] == pytest.approx(mean + slope @ (features[t] - centre), rel=1e-4)


def test_the_control_is_predicted_better_than_by_its_mean(tmp_path):
    rows = run(Trial("softmax", "diabetes", "rows", seed=0), tmp_path)
    assert len(rows) == BLOCKS
    assert sum(row["error"] for row in rows) < sum(row["naive"] for row in rows)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    (
        ("mixer", ("mesanet",), "mixer 'mesanet' is not in this experiment; choose from lla, softmax"),
        ("baseline", ("arima",), "baseline 'arima' is not in this experiment"),
        ("series", ("weather",), "series 'weather' is not in this experiment"),
        ("form", ("rows",), "form 'rows' is not in this experiment"),
        ("device", "cuda", "device 'cuda' is not for series as short as these"),
    ),
)
def test_wrong_arguments_give_one_line(field, value, complaint):
    with pytest.raises(ValueError, match=complaint):
        Config(**{field: value})
