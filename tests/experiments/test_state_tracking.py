"""Swaps and permutations, and training inside a trial."""

import itertools

import pytest
import torch

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
