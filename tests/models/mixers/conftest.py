"""The mixers with a state of their own, small, and inputs for them."""

import pytest
import torch

from flashlla.models import mixers

DIM, HEADS = 24, 4
SMALL = {"mamba2": {"state_dim": 6}, "hyena": {"filter_length": 40}}


@pytest.fixture
def make_mixer():
    def make(name, *, seed=0, dtype=torch.float64, heads=HEADS, kv_heads=None, **options):
        torch.manual_seed(seed)
        options = {"chunk_size": 16, **SMALL.get(name, {}), **options}
        return mixers.build_mixer(name, DIM, heads, kv_heads, dtype=dtype, **options)

    return make


@pytest.fixture
def draw(generator):
    """``[batch, seq, dim]`` from the seeded generator."""

    def make(batch, seq, dtype=torch.float64):
        return torch.randn(batch, seq, DIM, generator=generator, dtype=torch.float64).to(dtype)

    return make
