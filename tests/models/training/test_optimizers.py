"""Which parameter gets which update, against PyTorch's own optimizers, clipping and averages."""

import copy

import pytest
import torch
from problems import batch, configure, loss, make_model, make_trainer
from torch import nn

from flashlla.models.training import Muon, OptimizerConfig
from flashlla.models.training.ema import MovingAverage
from flashlla.models.training.muon import orthogonalize
from flashlla.models.training.optimizers import build_optimizers, clip_gradients, create_state


def names_in(model, optimizer, decays=None):
    names = {p: name for name, p in model.named_parameters()}
    groups = [g for g in optimizer.param_groups if decays is None or bool(g["weight_decay"]) == decays]
    return {names[p] for group in groups for p in group["params"]}


@pytest.mark.parametrize("tie_embeddings", (True, False))
def test_muon_has_the_matrices_of_the_blocks(tie_embeddings):
    model = make_model(tie_embeddings=tie_embeddings, mixer_options={"gate": "learned"})
    adamw, muon = build_optimizers(model, OptimizerConfig("muon"))
    rest = {"embedding.weight", "norm.weight"} | (set() if tie_embeddings else {"head"})
    blocks = {name for name, _ in model.named_parameters()} - rest
    matrices = {name for name in blocks if "proj" in name or ".mlp." in name}
    assert names_in(model, muon) == matrices
    assert names_in(model, adamw) == rest | (blocks - matrices)
    assert {"blocks.0.mixer.attention.ridge.raw", "blocks.1.mixer.attention.gate.raw"} < names_in(
        model, adamw
    )
    assert names_in(model, adamw, decays=True) == rest - {"norm.weight"}


def test_muon_needs_blocks():
    with pytest.raises(ValueError, match=r"no matrix inside an nn\.ModuleList"):
        build_optimizers(nn.Linear(3, 3), OptimizerConfig("muon"))
    with pytest.raises(ValueError, match="matrices only"):
        Muon([nn.Parameter(torch.ones(3))])
    with pytest.raises(ValueError, match="no parameter that wants a gradient"):
        build_optimizers(nn.Linear(3, 3).requires_grad_(False), OptimizerConfig())


@pytest.mark.parametrize("shape", ((12, 12), (8, 40), (40, 8)))
def test_orthogonalize_moves_singular_values_to_one(shape, generator):
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64)
    found = orthogonalize(matrix, steps=10)
    values = torch.linalg.svdvals(found)
    assert found.dtype == torch.float64
    assert ((values > 0.6) & (values < 1.3)).all()
    # The singular vectors stay: what remains is a positive multiple of each.
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.mT @ found @ vh.mT
    assert (inside - inside.diagonal().diag()).abs().max() < 1e-10
    assert torch.equal(orthogonalize(torch.zeros(shape)), torch.zeros(shape))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_muon_is_that_of_torch(generator):
    """Up to bfloat16, in which torch orthogonalises: five steps of updates of 0.1 an entry."""
    ours = nn.Parameter(torch.randn(24, 16, generator=generator))
    theirs = nn.Parameter(ours.detach().clone())
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    pair = (Muon([ours], **options), torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options))
    start = ours.detach().clone()
    for _ in range(5):
        gradient = torch.randn(24, 16, generator=generator)
        for p, optimizer in zip((ours, theirs), pair, strict=True):
            p.grad = gradient.clone()
            optimizer.step()
    assert (ours - theirs).norm() < 0.02 * (ours - start).norm()


@pytest.mark.parametrize("max_norm", (0.01, 1e3))
def test_clipping_is_that_of_torch(max_norm):
    model = make_model()
    loss(model, batch(0, 0)).backward()
    twin = copy.deepcopy(model)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        q.grad = p.grad.clone()
    norm = clip_gradients(list(model.parameters()), max_norm)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(twin.parameters(), max_norm))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_the_norm_of_half_precision_is_wide():
    p = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    p.grad = torch.tensor([3.0, 4.0], dtype=torch.bfloat16)
    q = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    q.grad = torch.tensor([0.5], dtype=torch.bfloat16)
    norm = clip_gradients([p, q], 1e9)
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(25.25**0.5)


@pytest.mark.parametrize("name", ("adamw", "muon"))
def test_creating_the_state_changes_no_weight(name):
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    optimizers = build_optimizers(model, OptimizerConfig(name, learning_rate=3.0))
    create_state(optimizers)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(group["lr"] == 3.0 for optimizer in optimizers for group in optimizer.param_groups)
    assert all(p.grad is None for p in model.parameters())


def test_moving_average():
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = MovingAverage(model, 0.3)
    expected = 0.0
    for step in range(1, 9):
        nn.init.constant_(model.weight, float(step))
        average.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert average.tensors["weight"].tolist() == [[pytest.approx(expected)] * 2]
    with average.in_place():
        assert model.weight.tolist() == [[pytest.approx(expected)] * 2]
    assert model.weight.tolist() == [[8.0, 8.0]]


def test_moving_average_of_half_precision_is_wide():
    average = MovingAverage(nn.Linear(2, 1, dtype=torch.bfloat16), 0.9)
    average.update(1)
    assert all(t.dtype == torch.float32 for t in average.tensors.values())


def test_the_trainer_averages_and_evaluates_with_the_average(tmp_path):
    seen = []

    def evaluate(model):
        assert not model.training and not torch.is_grad_enabled()
        seen.append({name: p.clone() for name, p in model.named_parameters()})
        return {"validation_loss": loss(model, batch(99, 0))}

    trainer = make_trainer(tmp_path, config=configure(4, evaluate_every=2), evaluate=evaluate)
    trainer.fit()
    averaged, last = trainer.weights(averaged=True), trainer.weights()
    assert len(seen) == 2
    assert all(torch.equal(t, averaged[name]) for name, t in seen[-1].items())
    assert any(not torch.equal(averaged[name], last[name]) for name in last)
    assert trainer.model.training
    with pytest.raises(ValueError, match="needs a run with ema_decay"):
        make_trainer(tmp_path / "other", config=configure(ema_decay=None)).weights(averaged=True)
