"""Learning rates at the corners of a run, and configurations that make no sense."""

import math

import pytest

from flashlla.models.training import (
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
    TrainerConfig,
    batch_seed,
    learning_rate_factor,
)


def factors(steps, **options):
    return [learning_rate_factor(ScheduleConfig(**options), step, steps) for step in range(steps)]


def test_cosine():
    found = factors(12, kind="cosine", warmup_steps=4, floor=0.1)
    assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert found[8] == pytest.approx(0.55)  # half-way down
    assert found[11] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 7 / 8)) / 2)
    assert found[4:] == sorted(found[4:], reverse=True)


def test_wsd():
    assert factors(8, kind="wsd", warmup_steps=2, decay_steps=4, floor=0.0) == [
        0.5,
        1,
        1,
        1,
        1,
        0.75,
        0.5,
        0.25,
    ]
    assert factors(4, kind="wsd", warmup_steps=0, decay_steps=0) == [1.0] * 4
    assert factors(4, kind="wsd", warmup_steps=2, decay_steps=2, floor=0.5) == [0.5, 1, 1, 0.75]


@pytest.mark.parametrize("kind", ("constant", "cosine", "wsd"))
def test_one_step_and_nothing_but_warm_up(kind):
    assert factors(1, kind=kind, floor=0.0) == [1.0]
    assert factors(3, kind=kind, warmup_steps=3) == pytest.approx([1 / 3, 2 / 3, 1])
    assert all(factor > 0 for factor in factors(50, kind=kind, warmup_steps=5, floor=0.0))


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (lambda: TrainerConfig(0), r"steps=0 must be at least 1"),
        (lambda: TrainerConfig(True), r"steps must be an int, got bool"),
        (lambda: TrainerConfig(9, keep=1), r"keep=1 must be at least 2"),
        (lambda: TrainerConfig(9, micro_batches=0), r"micro_batches=0 must be at least 1"),
        (
            lambda: TrainerConfig(9, precision="float16"),
            r"precision='float16' is unknown; choose one of float32",
        ),
        (lambda: TrainerConfig(9, clip_norm=0), r"clip_norm=0 must be greater than 0"),
        (lambda: TrainerConfig(9, ema_decay=1.0), r"ema_decay=1.0 must be less than 1"),
        (lambda: TrainerConfig(9, compile=3), r"compile must be a bool or the name of a backend"),
        (lambda: TrainerConfig(9, optimizer="muon"), r"optimizer must be a OptimizerConfig, got str"),
        (
            lambda: TrainerConfig(9, schedule=ScheduleConfig(warmup_steps=10)),
            r"= 10 is more than steps=9; shorten",
        ),
        (lambda: ScheduleConfig("linear"), r"kind='linear' is unknown"),
        (lambda: ScheduleConfig(decay_steps=3), r"decay_steps=3 is for kind='wsd'"),
        (lambda: ScheduleConfig(floor=1.5), r"floor=1.5 must be at most 1"),
        (lambda: OptimizerConfig("sgd"), r"name='sgd' is unknown; choose one of adamw, muon"),
        (lambda: OptimizerConfig(learning_rate=math.nan), r"learning_rate=nan must be"),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), r"betas\[1\]=1.0 must be less than 1"),
        (lambda: OptimizerConfig(betas=0.9), r"betas must be two floats"),
        (lambda: ParallelConfig("zero"), r"strategy='zero' is unknown"),
        (lambda: ParallelConfig(context=0), r"context=0 must be at least 1"),
    ),
)
def test_configurations_are_checked(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_seeds_differ_with_every_argument():
    seeds = {
        batch_seed(*key) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0, 1), (0, 256, 0)]
    }
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
