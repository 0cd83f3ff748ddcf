"""Limits of the family, through training: a large ridge and a closed gate are softmax attention."""

import pytest
import torch
from torch.nn import functional as F

from flashlla import models
from flashlla.experiments.demo.data import load_corpus, random_batch

STEPS = 50


@pytest.fixture(scope="module")
def losses():
    """Losses of all steps with one mixer, one seed of the weights, and the same batches."""
    text = load_corpus().train

    def train(mixer, seed=0, **options):
        torch.manual_seed(seed)
        sizes = {"vocab_size": 256, "dim": 32, "depth": 2, "heads": 4}
        model = models.LanguageModel(models.LanguageModelConfig(**sizes, mixer=mixer, mixer_options=options))
        optimizer, generator = (
            torch.optim.AdamW(model.parameters(), lr=5e-3),
            torch.Generator().manual_seed(0),
        )
        values = []
        for _ in range(STEPS):
            inputs, targets = random_batch(text, 8, 64, generator)
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.detach())
        return torch.stack(values)

    return train


@pytest.mark.parametrize("limit", ({"ridge": 1e6}, {"ridge": 1.0, "gate": 0.0}), ids=("ridge", "gate"))
def test_lla_at_its_limit_trains_as_softmax_attention_does(limit, losses):
    softmax = losses("softmax")
    noise = (losses("softmax", seed=1) - softmax).abs().mean()
    assert softmax[0] - softmax[-1] > 2
    difference = (losses("lla", **limit) - softmax).abs()
    assert difference.mean() < 1e-4 * noise
    assert difference.max() < 1e-3 * noise


def test_lla_away_from_it_does_not(losses):
    softmax = losses("softmax")
    noise = (losses("softmax", seed=1) - softmax).abs().mean()
    assert (losses("lla", ridge=0.1) - softmax).abs().mean() > 0.2 * noise
