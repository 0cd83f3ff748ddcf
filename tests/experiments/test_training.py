"""Training inside a trial: the same after an interruption, evaluations, policies, and the rate to report."""

import json

import pandas
import pytest
import torch

from flashlla.experiments.common.costs import costs
from flashlla.experiments.common.training import at_best_rate, train, train_policy


def sum_loss(model, x):
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


def linear():
    torch.manual_seed(0)
    return torch.nn.Linear(2, 1)


def stopping(call, after):
    """``call`` that is interrupted at its call number ``after``, and a list with an entry for every call."""
    seen = []

    def counted(*args):
        seen.append(args)
        if len(seen) > after:
            raise KeyboardInterrupt
        return call(*args)

    return counted, seen


def test_training_goes_on_where_it_was_cut_short(tmp_path):
    def fit(folder, after=1000):
        model = linear()
        batch, seen = stopping(lambda generator: torch.randn(8, 2, generator=generator), after)
        history = train(model, sum_loss, batch, folder, steps=20, learning_rate=0.1, seed=3)
        return model, history, len(seen)

    expected, history, _ = fit(tmp_path / "whole")
    assert [record["step"] for record in history.steps] == list(range(1, 21))
    assert history.steps[-1]["loss"] < history.steps[0]["loss"] and not history.evaluations
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", after=12)
    model, again, steps = fit(tmp_path / "cut")
    assert steps == 10, "ten steps were behind a checkpoint"
    assert torch.equal(model.weight, expected.weight)
    assert [r["loss"] for r in again.steps] == [r["loss"] for r in history.steps]


def test_evaluations_are_told_the_step_and_kept_apart(tmp_path):
    def evaluate(model, step):
        assert not model.training and not torch.is_grad_enabled()
        return {"loss": float(step)}  # a name that steps have as well

    model = linear()
    history = train(
        model,
        sum_loss,
        lambda generator: torch.randn(8, 2, generator=generator),
        tmp_path,
        steps=7,
        learning_rate=0.1,
        seed=0,
        evaluate=evaluate,
        evaluate_every=3,
    )
    assert [(r["step"], r["loss"]) for r in history.evaluations] == [(3, 3.0), (6, 6.0), (7, 7.0)]
    assert len(history.steps) == 7
    found = costs(model, history, history)
    assert found["parameters"] == 3 and found["peak_megabytes"] > 1
    assert history.seconds == sum(record["seconds"] for record in history.steps) > 0


def test_a_policy_is_trained_on_what_it_has_drawn_itself(tmp_path):
    """A draw holds the weights that it was made with, and each of its batches serves one update."""

    def fit(folder, after=1000):
        policy = linear()

        def draw(step):
            state = policy.weight.detach().clone()
            return [(step, number, state) for number in range(3)]

        drawn, seen = stopping(draw, after)
        used = []

        def loss(policy, batch):
            used.append(batch)
            return (policy.weight - batch[2] - 1).square().sum()

        history = train_policy(
            policy, loss, drawn, folder, draws=4, updates=3, learning_rate=0.1, seed=0, checkpoint_every=1
        )
        return policy, history, used, len(seen)

    policy, history, used, draws = fit(tmp_path / "whole")
    assert draws == 4 and len(history.steps) == 12
    assert [batch[:2] for batch in used] == [(step - step % 3, step % 3) for step in range(12)]
    assert not torch.equal(used[0][2], used[3][2]) and torch.equal(used[0][2], used[2][2])
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", after=2)
    again, _, _, draws = fit(tmp_path / "cut")
    assert draws == 2, "two draws were behind a checkpoint"
    assert torch.equal(again.weight, policy.weight)


def test_each_mixer_is_reported_at_its_best_rate():
    rows = [
        {"mixer": mixer, "learning_rate": rate, "seed": seed, "error": error + seed}
        for mixer, errors in (("a", {0.1: 3, 0.2: 1}), ("b", {0.1: 2, 0.2: 5}))
        for rate, error in errors.items()
        for seed in (0, 1)
    ]
    best = at_best_rate(pandas.DataFrame(rows), ["mixer"], "error")
    assert json.loads(best.groupby("mixer")["learning_rate"].unique().to_json()) == {"a": [0.2], "b": [0.1]}
    worst = at_best_rate(pandas.DataFrame(rows), ["mixer"], "error", highest=True)
    assert set(worst["error"]) == {3, 4, 5, 6}
