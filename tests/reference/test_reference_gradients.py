"""The reference differentiated: against finite differences, and against the hand-written backward."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from flashlla import lla_attention, parallax_attention, softmax_attention
from flashlla.ops import reference
from flashlla.ops.types import Options
from flashlla.testing.numerics import error_norm_ratio, exact
from flashlla.testing.problems import random_operands

# name: (q_len, kv_len, options)
MASKS = {
    "causal": (3, 3, {}),
    "window": (4, 4, {"window_size": 2}),
    "everything": (2, 3, {"causal": False}),
    "q_shorter": (2, 4, {}),
    "q_longer": (4, 2, {}),
}
MEMBERS = {
    "lla": (lla_attention, {"ridge": 0.4}),
    "parallax": (parallax_attention, {"ridge": None, "probe": True}),
    "softmax": (softmax_attention, {"ridge": None, "gate": False}),
}
member = pytest.mark.parametrize("member", MEMBERS)
mask = pytest.mark.parametrize("mask", MASKS)


def tiny(member: str, mask: str, **sizes):
    """The member as a function of its operands alone, and the operands."""
    function, drawn = MEMBERS[member]
    q_len, kv_len, options = MASKS[mask]
    sizes = {"heads": 2, "kv_heads": 1, "head_dim": 2, "value_dim": 2, **sizes}
    operands, do = random_operands("iid", q_len=q_len, kv_len=kv_len, dtype=torch.float64, **sizes, **drawn)
    names = list(operands)

    def call(*tensors):
        return function(**dict(zip(names, tensors, strict=True)), **options, backend="reference")

    return call, operands, do


@member
@mask
def test_gradcheck(member, mask):
    call, operands, _ = tiny(member, mask)
    assert gradcheck(call, [t.requires_grad_() for t in operands.values()])


@member
@mask
def test_gradgradcheck(member, mask):
    call, operands, _ = tiny(member, mask)
    assert gradgradcheck(call, [t.requires_grad_() for t in operands.values()])


@member
@pytest.mark.parametrize("data", ["iid", "steep", "far"])
@pytest.mark.parametrize(
    ("q_len", "kv_len", "options"),
    [
        pytest.param(9, 9, {}, id="causal"),
        pytest.param(9, 9, {"window_size": 4}, id="window"),
        pytest.param(7, 9, {"causal": False}, id="everything"),
        pytest.param(4, 9, {}, id="q_shorter"),
        pytest.param(9, 4, {}, id="q_longer"),
        pytest.param(9, 4, {"window_size": 2, "scale": 0.0}, id="q_longer_window_scale_0"),
        pytest.param(5, 0, {}, id="no_keys"),
    ],
)
def test_hand_written_backward_is_autograd_of_the_definition(member, data, q_len, kv_len, options):
    function, drawn = MEMBERS[member]
    sizes = {"batch": 2, "heads": 4, "kv_heads": 2, "head_dim": 5, "value_dim": 3}
    operands, do = random_operands(data, q_len=q_len, kv_len=kv_len, dtype=torch.float64, **sizes, **drawn)
    expected = exact(function, operands, do, **options)
    q, k, v, gate = (
        *(operands[n] for n in ("q", "k", "v")),
        operands.get("gate", torch.ones(2, q_len, 4).double()),
    )
    probe = -operands["r"] if "r" in operands else None
    resolved = Options(
        options.get("scale", 5**-0.5),
        options.get("causal", True),
        options.get("window_size", 0),
        "auto",
        0.5,
        1,
    )
    grads = reference.attention_backward(do, q, k, v, probe, operands.get("ridge"), gate, resolved)
    actual = {"q": grads.dq, "k": grads.dk, "v": grads.dv, "ridge": grads.dridge, "gate": grads.dgate}
    if probe is not None:
        actual["r"] = -grads.dprobe
    for name in operands:
        assert error_norm_ratio(actual[name], expected[name]) < 1e-10, name


def test_rows_that_see_nothing_have_no_gradient():
    operands, do = random_operands("iid", q_len=6, kv_len=2, head_dim=3, dtype=torch.float64)
    grads = exact(lla_attention, operands, do)
    assert not grads["out"][:, :4].any()
    for name in ("q", "ridge", "gate"):
        assert not grads[name][:, :4].any()
        assert grads[name][:, 5:].isfinite().all()
