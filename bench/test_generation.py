"""Tokens a second of generation with the model of ``flashlla demo``, by kind of cache and of step."""

from __future__ import annotations

import pytest
import torch
from _common import interleave

from flashlla.models import LanguageModel, LanguageModelConfig, generate

PROMPT, NEW = 39, 128


def without_cache(model: LanguageModel, prompt: torch.Tensor, new: int) -> torch.Tensor:
    """A forward pass over the whole text for every token."""
    tokens = prompt
    for _ in range(new):
        tokens = torch.cat([tokens, model(tokens, last_only=True)[:, -1].argmax(-1, keepdim=True)], 1)
    return tokens


@pytest.mark.parametrize("mixer", ["lla", "softmax"])
def test_generation(benchmark, report, shrink, mixer):
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(vocab_size=256, dim=128, depth=2, heads=4, mixer=mixer)).eval()
    prompt, new = torch.randint(256, (1, PROMPT)), shrink(NEW)
    ways = {
        "static": lambda: generate(model, prompt, new),
        "growing": lambda: generate(model, prompt, new, cache="growing"),
        "paged": lambda: generate(model, prompt, new, cache="paged"),
        "static, compiled": lambda: generate(model, prompt, new, compile=True),
        "no cache": lambda: without_cache(model, prompt, new),
    }
    with torch.no_grad():
        expected = ways["no cache"]()
    assert all(torch.equal(way(), expected) for way in ways.values())
    times = interleave(benchmark, ways, rounds=5)
    for name, seconds in times.items():
        report(
            "Generation, tokens a second",
            f"{mixer}, {name}",
            new / seconds,
            better="larger",
            detail={"prompt": PROMPT, "new": new},
        )
