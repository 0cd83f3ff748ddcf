"""Tiny models that all tests of this folder share."""

import pytest
import torch

from flashlla import models


@pytest.fixture
def make_model():
    def make(mixer="lla", *, seed=0, dtype=None, **changes):
        torch.manual_seed(seed)
        sizes = {"vocab_size": 32, "dim": 32, "depth": 2, "heads": 4, "kv_heads": 2, "mixer": mixer}
        model = models.LanguageModel(models.LanguageModelConfig(**{**sizes, **changes}), dtype=dtype)
        for name, p in model.named_parameters():
            if name.endswith("r_scale"):
                torch.nn.init.normal_(p)  # Parallax away from its start, which is softmax attention
        return model

    return make


@pytest.fixture
def tokens(generator):
    return torch.randint(0, 32, (3, 12), generator=generator)
