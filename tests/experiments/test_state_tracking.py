"""Swaps and permutations, and training inside a trial."""

import itertools
import json

import pandas
import pytest
import torch

from flashlla.experiments.common.training import at_best_rate, train
from flashlla.experiments.state_tracking.data import sequences, swaps, transitions
from flashlla.experiments.state_tracking.run import Config


@pytest.mark.parametrize("positions", [2, 3, 5])
def test_states_are_the_swaps_applied_in_turn(positions):
    tokens, states = sequences(4, 20, positions, torch.Generator().manual_seed(0))
    permutations = list(itertools.permutations(range(positions)))
    assert transitions(positions).shape == (len(permutations), len(swaps(positions)))
    for row, names in zip(tokens.tolist(), states.tolist(), strict=True):
        things = list(range(positions))
        for token, name in zip(row, names, strict=True):
            i, j = swaps(positions)[token]
            things[i], things[j] = things[j], things[i]
            assert permutations[name] == tuple(things)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"positions": (6,)}, "positions=6 must be 2 to 5"),
        ({"length": (12,)}, "length=12 must be a positive multiple of 8"),
        ({"steps": 0}, "steps=0"),
        ({"heads": 3}, "heads"),
        ({"learning_rate": ()}, "at least one value each"),
    ],
)
def test_wrong_configurations(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        Config(**changes)


def test_training_goes_on_where_it_was_cut_short(tmp_path):
    def fit(folder, steps=None):
        torch.manual_seed(0)
        model, seen = torch.nn.Linear(2, 1), []

        def batch(generator):
            seen.append(1)
            if steps is not None and len(seen) > steps:
                raise KeyboardInterrupt
            return torch.randn(8, 2, generator=generator)

        def loss(model, x):
            return (model(x) - x.sum(1, keepdim=True)).square().mean()

        records = train(model, loss, batch, folder, steps=20, learning_rate=0.1, seed=3)
        return model, records, len(seen)

    expected, records, _ = fit(tmp_path / "whole")
    assert [record["step"] for record in records] == list(range(1, 21))
    assert records[-1]["loss"] < records[0]["loss"]
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", steps=12)
    model, _, steps = fit(tmp_path / "cut")
    assert steps == 10, "ten steps were behind a checkpoint"
    assert torch.equal(model.weight, expected.weight)


def test_each_mixer_is_reported_at_its_best_rate():
    rows = [
        {"mixer": mixer, "learning_rate": rate, "seed": seed, "error": error + seed}
        for mixer, errors in (("a", {0.1: 3, 0.2: 1}), ("b", {0.1: 2, 0.2: 5}))
        for rate, error in errors.items()
        for seed in (0, 1)
    ]
    best = at_best_rate(pandas.DataFrame(rows), ["mixer"], "error")
    assert json.loads(best.groupby("mixer")["learning_rate"].unique().to_json()) == {"a": [0.2], "b": [0.1]}
    worst = at_best_rate(pandas.DataFrame(rows), ["mixer"], "error", highest=True)
    assert set(worst["error"]) == {3, 4, 5, 6}
