"""Associative recall: what a sequence holds, that no mixer has a convolution, and how claims are judged."""

from __future__ import annotations

import importlib

import pandas
import pytest
import torch
from torch import nn

from flashlla.experiments.associative_recall import CLAIMS
from flashlla.experiments.associative_recall.data import FILLER, IGNORED, recall
from flashlla.models import LanguageModel
from flashlla.models.mixers import MIXERS

run = importlib.import_module("flashlla.experiments.associative_recall.run")
VOCAB, PAIRS, LENGTH = 32, 5, 24


def test_every_key_is_asked_for_once(generator):
    tokens, targets = recall(50, LENGTH, PAIRS, VOCAB, generator)
    assert tokens.shape == targets.shape == (50, LENGTH)
    for row, target in zip(tokens.tolist(), targets.tolist(), strict=True):
        keys, values = row[: 2 * PAIRS : 2], row[1 : 2 * PAIRS : 2]
        assert len(set(keys)) == PAIRS and all(FILLER < k < VOCAB // 2 for k in keys)
        assert all(VOCAB // 2 <= v < VOCAB for v in values)
        asked = {row[i]: target[i] for i in range(LENGTH) if target[i] != IGNORED}
        assert asked == dict(zip(keys, values, strict=True))
        assert all(t == IGNORED for t in target[: 2 * PAIRS])
        assert all(row[i] == FILLER for i in range(2 * PAIRS, LENGTH) if target[i] == IGNORED)


def test_most_queries_come_soon(generator):
    _, targets = recall(500, 200, 2, VOCAB, generator)
    places = (targets != IGNORED).nonzero()[:, 1]
    assert places.double().median() < 60


@pytest.mark.parametrize("mixer", MIXERS)
def test_no_mixer_has_a_short_convolution(mixer):
    model = LanguageModel(run.model_config(mixer, VOCAB, LENGTH, 16, 2, 1), device="meta")
    assert not any(isinstance(m, nn.Conv1d) or "short" in type(m).__name__.lower() for m in model.modules())
    assert not any("conv" in name and "long" not in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"length": (12,)}, "must have one value for each of pairs"),
        ({"pairs": (2, 4, 8, 32)}, "pairs=32 must be 1 to 31"),
        ({"length": (12, 24, 31, 96)}, "length=31 must be 32"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_sizes_that_do_not_fit(changes, words):
    with pytest.raises(ValueError, match=words):
        run.Config(**changes)


def table(**accuracies: float) -> pandas.DataFrame:
    rows = [
        {"mixer": mixer, "seed": seed, "dim": 16, "pairs": 4, "learning_rate": 0.01}
        | {"accuracy": accuracy + 0.001 * seed}
        for mixer, accuracy in accuracies.items()
        for seed in range(3)
    ]
    return pandas.DataFrame(rows)


def test_claims_are_judged_both_ways():
    claims = {claim.name: claim for claim in CLAIMS}
    for lla, softmax, outcome in ((0.9, 0.5, "supported"), (0.5, 0.9, "not supported")):
        found = table(lla=lla, softmax=softmax, gated_deltanet=0.6, mamba2=0.55)
        assert claims["all"].judge(found).outcome == outcome
        assert claims["softmax"].judge(found).outcome == outcome
    assert (
        claims["recurrent"].judge(table(softmax=0.9, gated_deltanet=0.6, mamba2=0.5)).outcome == "supported"
    )
    assert claims["softmax"].judge(table(softmax=0.9)).outcome == "inconclusive"


def test_seeds_are_repeatable():
    draws = [recall(3, LENGTH, PAIRS, VOCAB, torch.Generator().manual_seed(1))[0] for _ in range(2)]
    assert torch.equal(*draws)
