"""The published algorithm, our baseline: right to bfloat16 where it is easy, itself where it is hard."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from other_python import elsewhere

from flashlla import lla_attention
from flashlla.testing.numerics import error_norm_ratio, evaluate, exact
from flashlla.testing.problems import random_operands

NAMES = ("out", "q", "k", "v")


def as_published(q, k, v, ridge):
    """The definition, its ridge relative to a sum of weights that counts as a constant; ``[1, n, 1, d]``."""
    q, k, v = (t[0, :, 0] for t in (q, k, v))
    n, d = q.shape
    s = (q @ k.mT * d**-0.5).masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
    w = (s - s.amax(1, keepdim=True).detach()).exp()
    omega, z = w.sum(1), k[None] - q[:, None]
    mu = torch.einsum("ts,tsd->td", w, z)
    system = torch.einsum("ts,tsd,tse->tde", w, z, z)
    system = system + ridge * omega.detach()[:, None, None] * torch.eye(d, dtype=q.dtype)
    rho = torch.linalg.solve(system, mu)
    weights = w * (1 - torch.einsum("tsd,td->ts", z, rho)) / (omega - (mu * rho).sum(1))[:, None]
    return (weights @ v)[None, :, None]


def errors(n: int, dim: int, ridge: float, blocks: list[int] | None = None) -> dict[str, dict[str, float]]:
    """Error norm ratios of the baseline, of the baseline against its own gradient, and of our kernels."""
    from baselines.published import Config, Configs, published_attention

    torch.set_num_threads(1)
    operands, do = random_operands(
        "iid", q_len=n, heads=1, head_dim=dim, dtype=torch.bfloat16, ridge=None, gate=False
    )
    config = Config(*blocks, num_warps=4, num_stages=1) if blocks else None
    configs = Configs(config, config, config) if blocks else None
    result = evaluate(published_attention, operands, do, ridge=ridge, configs=configs)
    wide = {name: t.double() for name, t in operands.items()}
    truths = {
        "exact": exact(lla_attention, operands, do, ridge=ridge),
        "as published": evaluate(as_published, wide, do.double(), ridge=ridge),
    }
    out = {
        against: {name: error_norm_ratio(result[name], truth[name]) for name in NAMES}
        for against, truth in truths.items()
    }
    ours = evaluate(lla_attention, operands, do, ridge=ridge, backend="triton")
    return {**out, "ours": {name: error_norm_ratio(ours[name], truths["exact"][name]) for name in NAMES}}


@pytest.mark.parametrize(
    "n, dim, blocks",
    [
        (33, 16, None),
        *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((96, 32, None), (70, 16, [16, 32]))),
    ],
)
def test_right_at_a_mild_ridge(n, dim, blocks):
    found = elsewhere(errors, n, dim, 10.0, blocks, interpreted=True)
    assert found["exact"]["out"] < 0.01 and found["exact"]["v"] < 0.02
    assert all(found["exact"][name] < 0.2 for name in "qk"), "the missing term is worth a few percent"
    assert all(error < 0.02 for error in found["as published"].values())
    assert all(found["exact"][name] > 3 * found["as published"][name] for name in "qk")


def test_loses_its_digits_at_a_small_ridge():
    found = elsewhere(errors, 64, 32, 0.01, interpreted=True)
    assert all(found["exact"][name] > 50 * found["ours"][name] for name in NAMES)


def resources(dim: int) -> list[dict]:
    """What the kernels of one forward and backward pass take of an sm_90, compiled without one."""
    from baselines.published import published_backward, published_forward

    from flashlla.ops.triton import _runtime
    from flashlla.testing.offline import SHARED_LIMIT, TARGETS, Launch, compile_launch

    launches = []

    def record(kernel, grid, *arguments, **constants):
        launches.append(Launch(kernel, grid, arguments, constants))

    q = torch.empty(2, 1024, 4, dim, dtype=torch.bfloat16)
    with mock.patch.object(_runtime, "run", record):
        _, saved = published_forward(q, q, q, 1.0)
        published_backward(q, q, q, q, saved, 1.0)
    used = [compile_launch(launch, TARGETS["sm_90"]) for launch in launches]
    limit = SHARED_LIMIT["sm_90"]
    return [
        {"kernel": launch.name, "limit": limit, **used._asdict()}
        for launch, used in zip(launches, used, strict=True)
    ]


@pytest.mark.parametrize("dim", [64, 128])
def test_compiles_for_a_gpu(dim):
    found = elsewhere(resources, dim, interpreted=False)
    assert [kernel["kernel"].split("_")[1] for kernel in found] == ["fwd", "rows", "keys"]
    assert all(kernel["shared"] <= kernel["limit"] for kernel in found)
    assert all(kernel["instructions"]["wgmma"] + kernel["instructions"]["mma"] > 0 for kernel in found)
    if dim == 64:
        assert found[0]["spilled_in_loops"] == 0


def complaints() -> list[str]:
    """What the baseline says of operands that it does not take."""
    from baselines.published import published_attention

    q, said = torch.zeros(1, 32, 2, 32, dtype=torch.bfloat16), []
    for wrong in (q.float(), q.transpose(1, 2), q[..., :24].contiguous(), q[0]):
        try:
            published_attention(wrong, wrong, wrong, 1.0)
        except ValueError as error:
            said.append(str(error))
    return said


def test_rejects_what_it_does_not_take():
    expected = ["contiguous and bfloat16", "contiguous and bfloat16", "power of two", "must be equal"]
    said = elsewhere(complaints, interpreted=True)
    assert len(said) == 4 and all(part in whole for part, whole in zip(expected, said, strict=True))
