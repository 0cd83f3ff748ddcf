"""What is measured computes the same attention, how it is measured, and the claims on tables made up."""

import itertools
import json
import time

import pandas
import pytest
import torch

from flashlla.experiments.cost_profile.claims import CLAIMS, exponents
from flashlla.experiments.cost_profile.methods import BOTH, DECODE, PHASES, methods, prepare
from flashlla.experiments.cost_profile.results import draw, summary
from flashlla.experiments.cost_profile.run import Config, Trial, run, trials
from flashlla.experiments.cost_profile.timing import time_ratio

CASE = {"heads": 2, "head_dim": 16, "dtype": "float32", "device": "cpu", "seed": 0}


def test_the_forms_of_lla_compute_the_same():
    for phase in PHASES:
        results = [
            prepare(phase, method=method, length=256, **CASE)()
            for method in methods("cpu")
            if "lla" in method
        ]
        assert len(results) == 3
        for result in results[1:]:
            torch.testing.assert_close(result, results[0], atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", list(methods("cpu")))
def test_a_step_of_decoding_is_the_last_row_of_the_forward_pass(name):
    method = methods("cpu")[name]
    generator = torch.Generator().manual_seed(1)
    q, k, v = (method.arrange(torch.randn(1, 70, 2, 16, generator=generator)) for _ in range(3))
    axis = 1 if "lla" in name else 2
    last = q.narrow(axis, 69, 1)
    rows = method.attend(q, k, v).narrow(axis, 69, 1)
    torch.testing.assert_close(method.step(last, *method.remember(k, v)), rows, atol=1e-4, rtol=0)


def test_a_call_that_takes_twice_as_long_has_the_ratio_2():
    ratio = time_ratio(lambda: time.sleep(0.04), lambda: time.sleep(0.02), 0.0, "cpu")
    assert ratio == pytest.approx(2, rel=0.4)


def test_a_trial_has_a_row_for_every_phase_and_the_peak_of_what_a_call_allocates(tmp_path):
    """The naive form holds a few tensors ``[length, length, head_dim + 1]``."""
    rows = run(Trial("lla, naive", 512, 0, 1, 16, "float32", 0.0, "cpu"), tmp_path)
    assert [row["phase"] for row in rows] == list(PHASES)
    assert all(row["ratio"] > 1 for row in rows)
    forward, both, decode = (row["peak"] for row in rows)
    one = 512 * 512 * 17 * 4
    assert 2 * one < forward < 8 * one and forward < both < 12 * one and decode is None
    json.dumps(rows, allow_nan=False)


def test_the_naive_form_stops_where_memory_does():
    lengths = {(t.method, t.length) for t in trials(Config())}
    assert ("lla, naive", 1024) in lengths and ("lla, naive", 2048) not in lengths
    assert {method for method, _ in lengths} == set(methods("cpu"))
    assert {t.method for t in trials(Config(mixer=("softmax",)))} == {"softmax"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mixer": ("hyena",)}, "mixer 'hyena' is not measured here; choose from lla, mesanet, softmax"),
        ({"length": (128,)}, "must name lengths of at least 256"),
        ({"head_dim": 128}, "head_dim=128 1 to 96"),
        ({"dtype": "float64"}, "dtype='float64' is unknown"),
        ({"device": "meta"}, "device='meta' must be one of cpu, cuda"),
    ],
)
def test_wrong_configurations(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        Config(**changes)


def made_up(exponent, ratio):
    """Memory that grows with powers of the length, by method, from 256 on; a constant ratio."""
    rows = []
    for (method, power), phase, seed, length in itertools.product(
        exponent.items(), PHASES, range(3), (256, 512, 1024)
    ):
        peak = None if phase == DECODE else 1000 * (1 + 0.01 * seed) * length**power
        rows.append((method, phase, seed, length, ratio + 0.01 * seed, peak))
    return pandas.DataFrame(rows, columns=["method", "phase", "seed", "length", "ratio", "peak"])


def outcomes(table):
    return {claim.judge(table).outcome for claim in CLAIMS}


def test_claims_that_hold():
    table = made_up({"lla, naive": 2.0, "lla, blockwise": 1.0, "lla": 0.9}, ratio=4.0)
    assert outcomes(table) == {"supported"}
    assert exponents(table, "lla, naive", BOTH) == pytest.approx([2.0] * 3)
    assert summary(table).shape == (3, 7) and set(draw(table)) == {"time", "memory"}


def test_claims_that_fail():
    table = made_up({"lla, naive": 1.0, "lla, blockwise": 2.0, "lla": 1.5}, ratio=0.5)
    assert outcomes(table) == {"not supported"}


def test_claims_about_what_is_not_there_are_inconclusive():
    table = made_up({"softmax": 1.0}, ratio=1.0)
    assert outcomes(table) == {"inconclusive"}
    short = made_up({"lla, naive": 2.0, "lla, blockwise": 1.0, "lla": 0.9}, ratio=4.0)
    assert exponents(short[short["length"] == 256], "lla", BOTH) == []
