"""Blocks with and without an MLP."""

import pytest
import torch

from flashlla import models
from flashlla.models import diffusion
from flashlla.models.mixers import MIXERS


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_width_of_0_leaves_the_mixers_alone(mixer, make_model, tokens):
    whole, bare = (make_model(mixer, kv_heads=4, **changes) for changes in ({}, {"mlp_hidden": 0}))
    left_out = {n: p.numel() for n, p in whole.named_parameters() if ".mlp" in n}
    assert len(left_out) == 2 * 4, "a norm and three matrices a block"
    assert set(bare.state_dict()) == set(whole.state_dict()) - set(left_out)
    assert bare.num_parameters() == whole.num_parameters() - sum(left_out.values())

    x = bare.embedding(tokens)
    for block in bare.blocks:
        x = x + block.mixer(block.mixer_norm(x))
    torch.testing.assert_close(bare(tokens), bare.logits(bare.norm(x)))


@pytest.mark.parametrize(("changes", "writes"), (({}, 6), ({"mlp_hidden": 0}, 3)))
def test_what_is_written_starts_smaller_the_more_often_it_is_done(changes, writes, make_model):
    model = make_model("softmax", dim=256, depth=3, **changes)
    usual = torch.nn.Linear(256, 256).weight.std()
    for block in model.blocks:
        start = block.mixer.attention.out_proj.weight.std()
        torch.testing.assert_close(start, usual * writes**-0.5, rtol=0.02, atol=0.0)


def test_states_and_storage_without_an_mlp(make_model, tokens, tmp_path):
    model = make_model(mlp_hidden=0, dtype=torch.float64).eval()
    models.save_model(model, tmp_path)
    again = models.load_model(tmp_path).eval()
    with torch.no_grad():
        states = again.make_states(3, 12)
        steps = torch.cat([again(piece, states) for piece in tokens.split(5, 1)], 1)
    torch.testing.assert_close(steps, model(tokens))


def test_presets_keep_it():
    config = models.LanguageModelConfig.preset("tiny", mixer="mamba2", mlp_hidden=0)
    assert config.hidden == 0 and config.matched().hidden > 0


def test_a_diffusion_transformer_has_an_mlp():
    config = diffusion.TrajectoryConfig(channels=2, dim=24, depth=1, heads=4, mlp_hidden=0)
    with pytest.raises(ValueError, match="hidden=0 must be at least 1"):
        diffusion.TrajectoryTransformer(config)
