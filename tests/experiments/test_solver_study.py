"""The studied layer, what is measured of its solver, and the claims on made-up tables."""

import itertools
import json

import pandas
import pytest
import torch

from flashlla import lla_attention, lla_attention_with_stats
from flashlla.experiments.solver_study import EXPERIMENT
from flashlla.experiments.solver_study.measure import CAPS, TOLERANCES, losses, solver_rows
from flashlla.experiments.solver_study.model import Operands, attention_layers, build
from flashlla.experiments.solver_study.results import draw, summary
from flashlla.experiments.solver_study.run import PRESETS, Config, run, trials
from flashlla.ops.solver import conjugate_gradients
from flashlla.testing.numerics import error_norm_ratio

RIDGE = 0.2


def operands(length=128, head_dim=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, length, 2, head_dim, generator=generator, dtype=dtype) for _ in range(3))
    return Operands(q, k, v, torch.tensor([RIDGE, 1.0], dtype=dtype))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mixer": ("lla", "softmax")}, "mixer='lla softmax' must be lla alone"),
        ({"ridge": (1.0, 0.0)}, r"ridge=\(1.0, 0.0\) must be positive"),
        (
            {"bandwidth": (2.0, 2.0)},
            r"bandwidth=\(2.0, 2.0\) must be positive numbers, at least one and each",
        ),
        ({"learned": ("gate",)}, r"learned=\('gate',\) may name ridge and bandwidth"),
        ({"steps": 30}, "steps=30 must be a positive multiple of 4"),
        ({"test": 0}, "test=0"),
        ({"heads": 3}, "heads=3"),
        ({"longest": 100}, "longest=100 must be at least 128"),
    ],
)
def test_wrong_configurations(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        Config(**changes)


def test_every_model_once_and_what_is_usual_shared():
    found = list(trials(PRESETS["small"]))
    settings = {(trial.ridge, trial.bandwidth, trial.learned) for trial in found}
    assert len(found) == len(set(found)) == 3 * 8 == 3 * len(settings)
    assert (1.0, 1.0, "nothing") in settings and (1.0, 1.0, "ridge") in settings


def test_models_of_a_seed_start_from_the_same_weights_and_learn_what_they_should():
    models = []
    for ridge, bandwidth, learned in ((0.1, 2.0, "nothing"), (1.0, 1.0, "ridge"), (1.0, 1.0, "bandwidth")):
        torch.manual_seed(0)
        models.append(build(32, 2, 2, ridge, bandwidth, learned))
    for one, other in itertools.pairwise(model.state_dict() for model in models):
        assert all(torch.equal(one[name], other[name]) for name in one)
    learned = [{n for n, p in model.named_parameters() if p.requires_grad} for model in models]
    layers = [f"blocks.{i}.mixer.attention" for i in range(2)]
    assert learned[1] - learned[0] == {f"{layer}.ridge.raw" for layer in layers}
    assert learned[2] - learned[0] == {f"{layer}.bandwidth.raw" for layer in layers}
    assert not any("_norm.weight" in name for name in learned[0] if "attention" in name)
    tokens = torch.randint(256, (1, 40))
    for model, names in zip(models, learned, strict=True):
        model(tokens).logsumexp(-1).sum().backward()
        assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if n in names)


def test_the_bandwidth_changes_the_weights_and_nothing_else():
    torch.manual_seed(0)
    layer = attention_layers(build(32, 1, 2, ridge=0.3, bandwidth=2.0))[0]
    layer(torch.randn(1, 40, 32))
    q, k, v, ridge = layer.operands
    plain = [t * 2.0**0.5 for t in (q, k)]
    assert plain[1].square().mean().item() == pytest.approx(1.0, abs=1e-3)
    expected = lla_attention(*plain, v, ridge=0.3, scale=1 / (2.0 * 16**0.5))
    torch.testing.assert_close(lla_attention(q, k, v, ridge=ridge), expected, rtol=1e-4, atol=1e-5)


def test_rows_are_of_the_queries_that_see_so_many_keys():
    ops = operands()
    rows = list(solver_rows(ops, 128))
    assert [(row["length"], row["cap"]) for row in rows] == list(itertools.product((32, 64, 128), CAPS))
    q, k, v, ridge = ops
    exact = lla_attention(*(t.double() for t in (q, k, v)), ridge=ridge.double(), backend="reference")
    seen = {32: slice(20, 32), 64: slice(32, 64), 128: slice(64, 128)}
    for row in rows:
        part = seen[row["length"]]
        out = lla_attention(q, k, v, ridge=ridge, solver="cg", rtol=1e-7, max_iters=row["cap"])
        error = error_norm_ratio(out[:, part], exact[:, part])
        assert row["error"] == pytest.approx(error, rel=0.01, abs=3e-6)
        for suffix, rtol in TOLERANCES.items():
            stats = lla_attention_with_stats(q, k, v, ridge=ridge, solver="cg", rtol=rtol)
            found = stats.iterations[:, part]
            assert row["max" + suffix] == found.max() and row["median" + suffix] <= row["q95" + suffix]
            assert found.min() > 0, "rows that iterate"


def test_losses_leave_the_model_with_its_exact_solver():
    torch.manual_seed(0)
    model = build(32, 1, 1, ridge=0.01)
    tokens = torch.randint(256, (2, 65))
    found = losses(model, tokens[:, :-1], tokens[:, 1:], CAPS)
    assert list(found) == [*CAPS, None]
    assert abs(found[2] - found[None]) > abs(found[32] - found[None])
    assert losses(model, tokens[:, :-1], tokens[:, 1:], ()) == {None: found[None]}


def test_the_uncentred_system_of_the_paper_gives_the_same_output_after_every_iteration():
    """Both right-hand sides are m = kbar - q, and the matrices differ by m m^T: the iterates are parallel."""
    q, k, v, _ = operands(length=48, dtype=torch.float64)
    for cap in (1, 2, 4, 8):
        ours = lla_attention(q, k, v, ridge=RIDGE, solver="cg", rtol=1e-14, max_iters=cap)
        for row in (30, 47):
            keys, query = k[0, : row + 1, 0], q[0, row, 0]
            weights = torch.softmax(keys @ query / 4.0, 0)
            z = keys - query
            mean = weights @ z
            system = (z * weights[:, None]).T @ z + RIDGE * torch.eye(16, dtype=torch.float64)
            slope, *_ = conjugate_gradients(lambda x, system=system: x @ system, mean, 1e-14, cap)
            paper = weights * (1 - z @ slope) / (1 - mean @ slope)
            torch.testing.assert_close(paper @ v[0, : row + 1, 0], ours[0, row, 0], rtol=1e-6, atol=1e-6)


def test_a_trial_that_is_done_again_has_the_same_rows(tmp_path):
    trial = next(trials(PRESETS["smoke"]))
    rows = run(trial, tmp_path / "a")
    assert len(rows) == 5 * trial.depth * 3 * len(CAPS)
    assert json.loads(json.dumps(rows)) == run(trial, tmp_path / "a"), "from the last checkpoint"
    last = [row for row in rows if row["step"] == trial.steps]
    assert all(row["loss_stopped"] is not None for row in last)
    assert last[0]["loss"] < rows[0]["loss"]


def table(slope=0.0, error=1e-4, change=1e-4, growth=1.5, learned=-0.1, seeds=3):
    """A made-up table: what is asked of, as it is given here and a little different for every seed."""
    rows = []
    settings = [(ridge, 1.0, "nothing") for ridge in (0.01, 0.1, 1.0, 10.0)]
    settings += [(1.0, 0.5, "nothing"), (1.0, 1.0, "ridge"), (1.0, 1.0, "bandwidth")]
    for seed, (ridge, bandwidth, what), step, layer, length, cap in itertools.product(
        range(seeds), settings, (0, 8), (1, 2), (128, 256, 512), CAPS
    ):
        noise = 1 + 0.01 * seed
        iterations = 10 / ridge**0.2 * layer * (length / 128) ** (slope * noise)
        loss = 2.0 + 0.01 * seed + (learned * noise if what != "nothing" else 0.1 * (bandwidth != 1.0))
        rows.append(
            {
                **{"seed": seed, "ridge": ridge, "bandwidth": bandwidth, "learned": what},
                **{"steps": 8, "context": 256, "step": step, "layer": layer, "length": length, "cap": cap},
                "q95": iterations * (growth * noise if step else 1.0),
                "max": 2 * iterations,
                "error": error * noise * (32 / cap) ** 2,
                "loss": loss,
                "loss_stopped": loss + change * noise * 32 / cap,
                **{"ridge_now": ridge, "bandwidth_now": bandwidth},
            }
        )
    return pandas.DataFrame(rows)


def outcomes(rows):
    return {claim.name: claim.judge(rows).outcome for claim in EXPERIMENT.claims}


def test_claims_both_ways():
    assert set(outcomes(table()).values()) == {"supported"}
    against = table(slope=0.3, error=0.1, change=0.1, growth=0.8, learned=0.1)
    assert set(outcomes(against).values()) == {"not supported"}
    assert EXPERIMENT.claims[0].judge(against).effect.value == pytest.approx(0.3, rel=0.02)


def test_claims_that_the_table_does_not_answer():
    rows = table()
    assert set(outcomes(rows[rows["learned"] == "ridge"]).values()) == {"inconclusive"}
    assert set(outcomes(rows[rows["length"] > rows["context"]]).values()) == {"supported", "inconclusive"}
    assert set(outcomes(table(seeds=1)).values()) == {"inconclusive"}


def test_readers_get_a_table_and_figures():
    rows = table()
    learned = list(summary(rows)["learned"])
    assert learned == ["bandwidth", *["nothing"] * 5, "ridge"]
    assert set(draw(rows)) == {"iterations", "stopping", "learning"}
    assert set(draw(rows[rows["learned"] == "nothing"])) == set(draw(rows))
