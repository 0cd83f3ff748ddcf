"""The presets: their sizes, and as many parameters with every mixer."""

import pytest
import torch

from flashlla import models
from flashlla.models import diffusion
from flashlla.models.mixers import MIXERS

KINDS = {
    "language": (models.LanguageModelConfig, models.LanguageModel),
    "encoder": (models.EncoderConfig, models.Encoder),
    "policy": (models.PolicyConfig, models.PolicyModel),
    "trajectory": (diffusion.TrajectoryConfig, diffusion.TrajectoryTransformer),
    "video": (diffusion.VideoConfig, diffusion.VideoTransformer),
}
MILLIONS = {"tiny": 1, "small": 30, "base": 125, "large": 350}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_preset = pytest.mark.parametrize("preset", MILLIONS)


def parameters(kind, preset, **changes):
    config, model = KINDS[kind]
    with torch.device("meta"):
        return model(config.preset(preset, **changes)).num_parameters()


@every_kind
def test_the_presets_are_these(kind):
    assert set(KINDS[kind][0].PRESETS) == set(MILLIONS)


@every_preset
@every_kind
def test_a_preset_has_the_size_it_is_named_for(kind, preset):
    assert parameters(kind, preset, mixer="softmax") == pytest.approx(MILLIONS[preset] * 1e6, rel=0.1)


@pytest.mark.parametrize("mixer", [*MIXERS, ("mamba2", "lla"), ("gla", "hyena", "parallax")], ids=str)
@every_kind
def test_every_mixer_has_as_many_parameters(kind, mixer):
    depth = {"depth": 6}  # of any pattern here
    for preset in ("tiny", "small"):
        ours, softmax = (parameters(kind, preset, mixer=m, **depth) for m in (mixer, "softmax"))
        assert ours == pytest.approx(softmax, rel=0.02)


@pytest.mark.parametrize("mixer", MIXERS)
def test_so_it_is_for_the_large_ones(mixer):
    for preset in ("base", "large"):
        ours, softmax = (parameters("language", preset, mixer=m) for m in (mixer, "softmax"))
        assert ours == pytest.approx(softmax, rel=0.02)


def test_what_is_given_stays():
    config = models.LanguageModelConfig.preset("tiny", mixer="mamba2", dim=64, vocab_size=300, mlp_hidden=40)
    assert (config.dim, config.vocab_size, config.mlp_hidden, config.depth) == (64, 300, 40, 5)
    grouped = models.LanguageModelConfig.preset("tiny", mixer="parallax", kv_heads=2)
    assert grouped.mlp_hidden < models.LanguageModelConfig.preset("tiny", mixer="softmax", kv_heads=2).hidden


def test_wrong_presets():
    with pytest.raises(
        ValueError, match="preset 'huge' of LanguageModelConfig is unknown; choose one of tiny"
    ):
        models.LanguageModelConfig.preset("huge")
    wide = {"mixer_options": {"state_dim": 4096}, "mixer": "mamba2"}
    with pytest.raises(
        ValueError, match=r"has .* parameters a block, .* give mlp_hidden, or a narrower mixer"
    ):
        models.LanguageModelConfig.preset("tiny", **wide)
