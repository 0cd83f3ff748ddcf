"""In-context regression: the data, a model that cannot see ahead, and claims on made-up tables."""

import itertools

import pandas
import pytest
import torch

from flashlla.experiments.in_context_regression.claims import CLAIMS
from flashlla.experiments.in_context_regression.data import BEND, TARGETS, pairs
from flashlla.experiments.in_context_regression.run import PRESETS, Config, build_model, trials
from flashlla.models.mixers import MIXERS

VARIANCES = {"linear": 1.0, "fourier": 1.0, "spline": 0.85}


@pytest.fixture
def draw(generator):
    def make(target, batch=64, length=64, dim=4, segment=32, noise=0.0):
        return pairs(target, batch, length, dim, segment, noise, generator)

    return make


@pytest.mark.parametrize("target", TARGETS)
def test_entries_have_their_variance_and_noise(target, draw):
    x, y = draw(target, batch=2000, length=16, segment=8)
    assert x.shape == y.shape == (2000, 16, 4)
    assert x.var().item() == pytest.approx(1.0, abs=0.05)
    assert y.square().mean().item() == pytest.approx(VARIANCES[target], abs=0.07)
    _, louder = draw(target, batch=2000, length=16, segment=8, noise=1.0)
    assert louder.square().mean().item() == pytest.approx(VARIANCES[target] + 1.0, abs=0.1)


def left_by_lines(x, y):
    """Share of the variance within a sequence that its best line leaves."""
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    line = torch.linalg.lstsq(x, y).solution
    return ((x @ line - y).square().mean() / y.square().mean()).item()


@pytest.mark.parametrize("target", TARGETS)
def test_a_line_fits_a_segment_if_the_map_is_linear_alone(target, draw):
    x, y = draw(target, length=2048, segment=1024)
    segment, both = left_by_lines(x[:, :1024], y[:, :1024]), left_by_lines(x, y)
    if target == "linear":
        assert segment < 1e-6
    elif target == "fourier":  # cos(b + s z), normal z: of 1 - exp(-s^2) a line explains s^2 exp(-s^2),
        each = BEND**2 / x.shape[-1]  # and s^2 is a sum of squares of normal numbers with this variance
        decay = (1 + 2 * each) ** (-x.shape[-1] / 2)
        explained = BEND**2 * decay / (1 + 2 * each) / (1 - decay)
        assert segment == pytest.approx(1 - explained, abs=0.01)
    else:
        assert 0.3 < segment < 0.7
    assert both > segment + 0.05, "the map changes"


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_prediction_depends_on_its_x_and_the_pairs_before_alone(mixer, draw):
    torch.manual_seed(0)
    model = build_model(mixer, 4, 16, width=16, depth=2, heads=1, device="cpu")
    assert not [name for name in model.state_dict() if "mlp" in name]
    x, y = draw("linear", batch=2, length=16, segment=8)
    out = model(x, y)
    assert out.shape == y.shape
    for changed, first in (((x, 7), 7), ((y, 7), 8)):
        tensor, place = changed
        other = tensor.clone()
        other[:, place] += 1.0
        moved = model(other, y) if tensor is x else model(x, other)
        assert torch.equal(moved[:, :first], out[:, :first])
        assert (moved[:, first:] != out[:, first:]).any()


def test_other_maps_are_for_long_segments_and_few_mixers():
    config = Config(mixer=("lla", "gla"), nonlinear_mixer=("lla",), segment=(8, 32), seeds=1)
    found = {(t.target, t.segment, t.mixer) for t in trials(config)}
    assert found == {
        *(("linear", segment, mixer) for segment in (8, 32) for mixer in ("lla", "gla")),
        ("fourier", 32, "lla"),
        ("spline", 32, "lla"),
    }


def made_up(errors, target="linear"):
    """A table with three seeds; ``errors[mixer][segment]``, at the second of two rates."""
    rows = [
        {"mixer": mixer, "target": target, "segment": segment, "seed": seed, "learning_rate": rate}
        | {"place": place, "error": error * (1 + 0.01 * seed) * (2.0 if rate == 0.1 else 1.0)}
        for mixer, by_segment in errors.items()
        for segment, error in by_segment.items()
        for seed, rate, place in itertools.product(range(3), (0.1, 0.2), (1, 2))
    ]
    return pandas.DataFrame(rows)


@pytest.mark.parametrize(
    ("softmax", "outcome", "closest"),
    (
        ({8: 1.2, 32: 0.6}, "supported", 1.2),
        ({8: 1.2, 32: 0.4}, "not supported", 0.8),
        ({8: 0.9, 32: 0.6}, "not supported", 0.9),
    ),
)
def test_lowest_at_every_length_is_lowest_where_the_other_is_closest(softmax, outcome, closest, judged):
    verdict = judged("softmax", made_up({"lla": {8: 1.0, 32: 0.5}, "softmax": softmax}))
    assert verdict.outcome == outcome
    assert verdict.effect.value == pytest.approx(closest)


@pytest.mark.parametrize(
    ("long", "outcome", "effect"), ((0.55, "supported", 1.5 / 1.1), (1.0, "not supported", 0.75))
)
def test_the_gap_is_larger_where_the_ratio_is(long, outcome, effect, judged):
    errors = {"lla": {8: 1.0, 32: 0.5}, "gla": {8: 1.5, 32: long}, "hyena": {8: 1.5, 32: long}}
    verdict = judged("gap", made_up(errors))
    assert verdict.outcome == outcome
    assert verdict.effect.value == pytest.approx(effect)


@pytest.mark.parametrize("target", ("fourier", "spline"))
@pytest.mark.parametrize(("softmax", "outcome"), ((0.6, "supported"), (0.4, "not supported")))
def test_other_maps_are_judged_on_their_own(target, softmax, outcome, judged):
    table = made_up({"lla": {32: 0.5}, "softmax": {32: softmax}}, target)
    assert judged(target, table).outcome == outcome
    assert judged("softmax", table).outcome == "inconclusive"


def test_without_lla_nothing_is_answered(judged):
    table = made_up({"softmax": {8: 1.0, 32: 1.0}, "gla": {8: 1.0, 32: 1.0}})
    assert {claim.judge(table).outcome for claim in CLAIMS} == {"inconclusive"}
    one_length = made_up({"lla": {8: 1.0}, "gla": {8: 1.0}})
    assert judged("gap", one_length).outcome == "inconclusive"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    (
        ({"segment": (12,)}, "segment 12 must be a positive multiple of 8 and divide length=64"),
        ({"segment": (48,)}, "segment 48 must be a positive multiple of 8 and divide length=64"),
        ({"target": ("step",)}, "target 'step' is unknown; choose from linear, fourier, spline"),
        ({"nonlinear_mixer": ("magic",)}, "nonlinear_mixer 'magic' is unknown"),
        ({"noise": -1.0}, "noise=-1.0 not negative"),
        ({"heads": 3}, "heads"),
        ({"learning_rate": (0.0,)}, "must be positive"),
        ({"target": ()}, "at least one value each"),
    ),
)
def test_wrong_configurations(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        Config(**changes)


def test_every_preset_is_for_claims_that_need_two_lengths():
    assert all(len(config.segment) > 1 and config.seeds > 1 for config in PRESETS.values())
