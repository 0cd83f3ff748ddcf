"""The configuration: checked at once, and the same after a trip through JSON."""

import json

import pytest

from flashlla import models

SIZES = {"vocab_size": 32, "dim": 24, "depth": 2, "heads": 4}


def test_round_trip_through_json():
    config = models.LanguageModelConfig(**SIZES, kv_heads=2, mixer_options={"ridge": 0.5, "window_size": 8})
    assert models.LanguageModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert models.LanguageModelConfig.from_dict(SIZES) == models.LanguageModelConfig(**SIZES)


def test_options_are_a_copy():
    options = {"ridge": 0.5}
    config = models.LanguageModelConfig(**SIZES, mixer_options=options)
    options["ridge"] = 7.0
    config.to_dict()["mixer_options"]["ridge"] = 8.0
    assert config.mixer_options == {"ridge": 0.5}


def test_width_of_the_mlp():
    assert models.LanguageModelConfig(**SIZES).hidden == 64
    assert models.LanguageModelConfig(**{**SIZES, "dim": 25}).hidden == 72
    assert models.LanguageModelConfig(**SIZES, mlp_hidden=10).hidden == 10


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    (
        ({"dim": 0}, ValueError, "dim=0 must be at least 1"),
        ({"depth": 2.0}, TypeError, "depth must be an int, got float"),
        ({"kv_heads": 3}, ValueError, "heads=4 is no multiple of kv_heads=3"),
        ({"mixer": "magic"}, ValueError, "mixer='magic' is unknown; choose one of lla, parallax, softmax"),
        ({"mixer_options": 3}, TypeError, "mixer_options must be a mapping"),
        ({"mixer_options": {"ridge": object()}}, TypeError, "mixer_options must hold JSON values"),
        ({"tie_embeddings": 1}, TypeError, "tie_embeddings must be a bool"),
        ({"dims": 3, "layers": 2}, ValueError, "unknown keys in a LanguageModelConfig: dims, layers"),
    ),
)
def test_wrong_fields(changes, error, message):
    with pytest.raises(error, match=message):
        models.LanguageModelConfig.from_dict({**SIZES, **changes})


def test_missing_keys():
    with pytest.raises(ValueError, match="missing keys in a LanguageModelConfig: depth, heads"):
        models.LanguageModelConfig.from_dict({"vocab_size": 32, "dim": 24})
