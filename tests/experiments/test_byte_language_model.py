"""Held-out windows, training with evaluations, and the claims on tables that are made up."""

import pandas
import pytest
import torch

from flashlla.experiments.byte_language_model.claims import CLAIMS
from flashlla.experiments.byte_language_model.data import corpus, held_out
from flashlla.experiments.byte_language_model.results import draw, summary
from flashlla.experiments.byte_language_model.run import Config, Trial, run, trials

STEPS = 4
TRIAL = Trial("softmax", "muon", 1e-2, 0, 32, 1, 1, 32, 2, 10, 4, "cpu")


def test_held_out_windows_are_always_the_same_and_of_the_other_files():
    text = corpus()
    x, y = held_out(text, 5, 40)
    assert x.shape == y.shape == (5, 40) and torch.equal(x[:, 1:], y[:, :-1])
    assert torch.equal(x, held_out(text, 5, 40)[0])
    validation = bytes(text.validation.tolist())
    assert all(bytes(row) in validation for row in x.tolist())


def test_a_trial_has_a_row_for_every_evaluation(tmp_path):
    rows = run(TRIAL, tmp_path)
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10]
    assert [row["tokens"] for row in rows] == [64 * row["step"] for row in rows]
    seconds = [row["training_seconds"] for row in rows]
    assert seconds == sorted(set(seconds)) and seconds[0] > 0
    assert rows[-1]["bits"] < rows[0]["bits"]


def test_trials_are_all_combinations_and_no_rate_leaves_an_optimizer_out():
    assert len(list(trials(Config()))) == 3 * 3 * (2 + 2)
    assert {trial.optimizer for trial in trials(Config(adamw=()))} == {"muon"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"adamw": (), "muon": ()}, "at least one learning rate"),
        ({"muon": (0.0,)}, "must be positive learning rates"),
        ({"context": 5000}, "context=5000 must be 1 to 4096"),
        ({"steps": 0}, "steps=0"),
        ({"heads": 5}, "heads"),
    ],
)
def test_wrong_configurations(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        Config(**changes)


def made_up(gains, seconds=1.0):
    """Four evaluations of each run: bits that fall by 1 each, less a gain over softmax at the end.

    The worse of two rates has bits that would turn every claim round. A step of LLA takes twice as long.
    """
    rows = []
    for (mixer, optimizer), gain in {("softmax", "adamw"): 0, ("softmax", "muon"): 0, **gains}.items():
        for rate, penalty in ((0.1, 0.0), (0.2, 5.0)):
            for seed in range(3):
                for step in range(1, STEPS + 1):
                    bits = 8 - step - gain * (step == STEPS) + penalty + 0.01 * seed
                    time = step * (2 * seconds if mixer == "lla" else 1.0)
                    rows.append((mixer, optimizer, rate, seed, STEPS, step, 512 * step, bits, time))
    names = [
        "mixer",
        "optimizer",
        "learning_rate",
        "seed",
        "steps",
        "step",
        "tokens",
        "bits",
        "training_seconds",
    ]
    return pandas.DataFrame(rows, columns=names)


def outcomes(table):
    return {claim.name: claim.judge(table).outcome for claim in CLAIMS}


def test_claims_that_hold():
    gains = {
        ("parallax", "adamw"): 0.1,
        ("parallax", "muon"): 0.3,
        ("lla", "adamw"): 0.2,
        ("lla", "muon"): 0.2,
    }
    table = made_up(gains)
    assert set(outcomes(table).values()) == {"supported"}
    assert summary(table).shape == (3, 5) and set(draw(table)) == {"loss", "gain"}


def test_claims_that_fail():
    worse = {
        ("parallax", "adamw"): 0.1,
        ("parallax", "muon"): -0.1,
        ("lla", "adamw"): -0.2,
        ("lla", "muon"): -0.2,
    }
    found = outcomes(made_up(worse))
    assert found.pop("time_adamw") == found.pop("time_muon") == "supported"
    assert set(found.values()) == {"not supported"}
    faster_and_better = {("lla", "adamw"): 0.2, ("lla", "muon"): 0.2}
    found = outcomes(made_up(faster_and_better, seconds=0.25))
    assert found["time_adamw"] == found["time_muon"] == "not supported"


def test_the_lead_in_time_is_taken_between_the_evaluations_of_the_slower_run():
    verdict = next(c for c in CLAIMS if c.name == "time_muon").judge(made_up({("lla", "muon"): 1.0}))
    assert verdict.effect.value == pytest.approx(2.0), "8 - 2 of LLA at 4 seconds, 8 - 4 of softmax"
    assert "2.00 times as long" in verdict.detail


def test_claims_about_what_is_not_there_are_inconclusive():
    table = made_up({("parallax", "muon"): 0.3})
    found = outcomes(table[table["optimizer"] == "muon"])
    assert found.pop("parallax_muon") == "supported"
    assert set(found.values()) == {"inconclusive"}
    assert set(outcomes(table[table["mixer"] == "softmax"]).values()) == {"inconclusive"}
